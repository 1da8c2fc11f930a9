"""NVIDIA CUDA backend of kernelforge."""
