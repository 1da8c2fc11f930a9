"""Compile, disk cache, launch, tuning table."""

from .cache import Cache, CacheError, default_root
from .compile import KernelSpec
from .kernels import artifact, executable
from .tuning import schedule

__all__ = ["Cache", "CacheError", "KernelSpec", "artifact", "default_root", "executable", "schedule"]
