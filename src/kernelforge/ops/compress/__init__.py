"""Compression of key-value streams: one entry per window of tokens, with overlap (CSA) or without (HCA)."""
