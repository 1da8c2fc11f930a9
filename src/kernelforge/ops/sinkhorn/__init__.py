"""Sinkhorn normalization of small matrices."""
