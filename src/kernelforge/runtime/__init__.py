"""Compile, disk cache, launch, tuning table."""

from .cache import Cache, CacheError, default_root
from .kernels import KernelSpec, artifact, executable
from .tuning import schedule

__all__ = ["Cache", "CacheError", "KernelSpec", "artifact", "default_root", "executable", "schedule"]
