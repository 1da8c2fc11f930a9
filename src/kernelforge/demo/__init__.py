"""`kernelforge demo`: a real model's feed-forward layers in MXFP4 on every backend."""
