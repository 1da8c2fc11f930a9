"""Quantization to MX blocks and back."""
