"""Manifold-constrained hyper-connections (mHC)."""
