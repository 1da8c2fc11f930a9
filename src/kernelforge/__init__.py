"""Fused ops of DeepSeek-V4-class models: written once in TileLang, the same bits on every device."""

from __future__ import annotations

import importlib
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .ops.compress.op import csa_compress, hca_compress
    from .ops.compress.state import CompressState
    from .ops.compressed_attention.op import csa_attention, hca_attention
    from .ops.fp4_to_fp8.op import LosslessError, fp4_to_fp8
    from .ops.grouped_projection.op import grouped_output_projection
    from .ops.lightning_indexer.op import indexer_logits, lightning_indexer
    from .ops.mega_moe.op import mega_moe
    from .ops.mega_moe.schedule import moe_schedule
    from .ops.mhc.op import mhc_head, mhc_post, mhc_pre
    from .ops.mx_quantize.fake_quant import fake_quant_mxfp4
    from .ops.mx_quantize.op import dequantize_mxfp4, quantize_mxfp4, quantize_mxfp8
    from .ops.mxfp4_gemm.op import grouped_mxfp4_gemm, mxfp4_gemm
    from .ops.route_topk.op import route_topk
    from .ops.sinkhorn.op import sinkhorn

__version__ = "0.1.0"

_API = {
    "CompressState": "ops.compress.state",
    "LosslessError": "ops.fp4_to_fp8.op",
    "csa_attention": "ops.compressed_attention.op",
    "csa_compress": "ops.compress.op",
    "dequantize_mxfp4": "ops.mx_quantize.op",
    "fake_quant_mxfp4": "ops.mx_quantize.fake_quant",
    "fp4_to_fp8": "ops.fp4_to_fp8.op",
    "grouped_mxfp4_gemm": "ops.mxfp4_gemm.op",
    "grouped_output_projection": "ops.grouped_projection.op",
    "hca_attention": "ops.compressed_attention.op",
    "hca_compress": "ops.compress.op",
    "indexer_logits": "ops.lightning_indexer.op",
    "lightning_indexer": "ops.lightning_indexer.op",
    "mega_moe": "ops.mega_moe.op",
    "mhc_head": "ops.mhc.op",
    "mhc_post": "ops.mhc.op",
    "mhc_pre": "ops.mhc.op",
    "moe_schedule": "ops.mega_moe.schedule",
    "mxfp4_gemm": "ops.mxfp4_gemm.op",
    "quantize_mxfp4": "ops.mx_quantize.op",
    "quantize_mxfp8": "ops.mx_quantize.op",
    "route_topk": "ops.route_topk.op",
    "sinkhorn": "ops.sinkhorn.op",
}

_MODULES = ("cache", "nn")
"""Public modules, imported when first used."""

__all__ = [
    "CompressState",
    "LosslessError",
    "__version__",
    "csa_attention",
    "csa_compress",
    "dequantize_mxfp4",
    "fake_quant_mxfp4",
    "fp4_to_fp8",
    "grouped_mxfp4_gemm",
    "grouped_output_projection",
    "hca_attention",
    "hca_compress",
    "indexer_logits",
    "lightning_indexer",
    "mega_moe",
    "mhc_head",
    "mhc_post",
    "mhc_pre",
    "moe_schedule",
    "mxfp4_gemm",
    "quantize_mxfp4",
    "quantize_mxfp8",
    "route_topk",
    "sinkhorn",
]


def __getattr__(name: str) -> Any:
    """Import an op when it is first used: ``import kernelforge`` alone loads neither torch nor TileLang."""
    if name in _MODULES:
        return importlib.import_module(f".{name}", __name__)
    if name not in _API:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f".{_API[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_API, *_MODULES})


if "torch" in sys.modules:  # torch.ops.kernelforge.* for whoever has torch already
    for _module in sorted(set(_API.values())):
        importlib.import_module(f".{_module}", __name__)
