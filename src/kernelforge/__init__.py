"""Fused ops of DeepSeek-V4-class models: written once in TileLang, the same bits on every device."""

from __future__ import annotations

import importlib
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .ops.mxfp4_gemm.op import grouped_mxfp4_gemm, mxfp4_gemm

__version__ = "0.1.0"

_API = {
    "grouped_mxfp4_gemm": "ops.mxfp4_gemm.op",
    "mxfp4_gemm": "ops.mxfp4_gemm.op",
}

__all__ = ["__version__", "grouped_mxfp4_gemm", "mxfp4_gemm"]


def __getattr__(name: str) -> Any:
    """Import an op when it is first used: ``import kernelforge`` alone loads neither torch nor TileLang."""
    if name not in _API:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f".{_API[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_API})


if "torch" in sys.modules:  # torch.ops.kernelforge.* for whoever has torch already
    for _module in sorted(set(_API.values())):
        importlib.import_module(f".{_module}", __name__)
