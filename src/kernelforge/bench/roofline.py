"""What this machine can do at best, measured in the same run as everything it is compared with."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from .measure import interleaved

COPY_BYTES = 256 << 20
"""Larger than any cache."""
SIDE, DEVICE_SIDE = 2048, 8192
"""Of the square matrices whose product gives the peak: on the CPU, on an accelerator."""


def product_dtype(device: str = "cpu") -> torch.dtype:
    """The type to multiply in with torch: bfloat16, or float32 on a CPU that oneDNN has no bfloat16 product for.

    There torch's product is a plain loop, many times slower than the one of float32, and a careful user keeps float32:
    so kernels are compared with that.
    """
    plain_loop = device == "cpu" and not torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return torch.float32 if plain_loop else torch.bfloat16


def short_name(dtype: torch.dtype) -> str:
    """bf16 or fp32."""
    return {torch.bfloat16: "bf16", torch.float32: "fp32"}[dtype]


@dataclass(frozen=True)
class Roofline:
    """Bytes per second of a copy (read and written), and multiply-adds per second, counted twice, of torch's products.

    ``product`` is in ``dtype``, see :func:`product_dtype`; ``int8`` is 0 where torch has none but a loop.
    """

    copy: float
    product: float
    int8: float
    dtype: torch.dtype

    @property
    def name(self) -> str:
        """Of ``dtype``."""
        return short_name(self.dtype)

    def least_seconds(self, nbytes: float, operations: float, integer: bool) -> float:
        """The time no call can beat: memory or arithmetic, whichever takes longer."""
        peak = max(self.product, self.int8) if integer else self.product
        return max(nbytes / self.copy, operations / peak)


def measure_roofline(device: str = "cpu") -> Roofline:
    """Measure copy bandwidth and the peak of products, and of int8 ones."""
    dtype = product_dtype(device)
    source = torch.ones(COPY_BYTES, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    side = SIDE if device == "cpu" else DEVICE_SIDE
    a = torch.randn(side, side, device=device).to(dtype)
    calls = {"copy": lambda: target.copy_(source), "product": lambda: a @ a}
    if dtype != torch.float32:  # a loop too
        codes = torch.randint(-8, 8, (side, side), dtype=torch.int8, device=device)
        try:
            torch._int_mm(codes, codes)
            calls["int8"] = lambda: torch._int_mm(codes, codes)
        except (RuntimeError, AttributeError):
            pass
    taken = interleaved(calls, rounds=5, seconds=0.1)
    operations = 2.0 * side**3
    return Roofline(
        copy=2 * COPY_BYTES / taken["copy"].best,
        product=operations / taken["product"].best,
        int8=operations / taken["int8"].best if "int8" in taken else 0.0,
        dtype=dtype,
    )
