"""CPU backend of kernelforge."""
