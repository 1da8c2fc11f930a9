"""Torch modules over kernelforge's ops. A module is imported when it is first used."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .experts import MXFP4Experts
    from .hyper_connection import HyperConnection, HyperHead
    from .moe import MoE
    from .tensor_parallel import TPMXFP4Linear

_API = {
    "HyperConnection": "hyper_connection",
    "HyperHead": "hyper_connection",
    "MXFP4Experts": "experts",
    "MoE": "moe",
    "TPMXFP4Linear": "tensor_parallel",
}

__all__ = [
    "HyperConnection",
    "HyperHead",
    "MXFP4Experts",
    "MoE",
    "TPMXFP4Linear",
]


def __getattr__(name: str) -> Any:
    if name not in _API:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f".{_API[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_API})
