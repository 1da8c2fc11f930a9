"""The version of the numerics contract; part of every cache key, digest and report."""

VERSION = 1
"""Raised whenever a definition in ``docs/numerics.md`` changes the bits of any result."""
