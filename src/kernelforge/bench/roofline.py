"""What this machine can do at best, measured in the same run as everything it is compared with."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from .measure import interleaved

COPY_BYTES = 256 << 20
"""Larger than any cache."""
SIDE = 2048
"""Of the square matrices whose product gives the peak."""


@dataclass(frozen=True)
class Roofline:
    """Bytes per second of a copy (read and written), and multiply-adds per second, counted twice, of torch's products.

    ``int8`` is 0 where torch has no int8 product.
    """

    copy: float
    bf16: float
    int8: float

    def least_seconds(self, nbytes: float, operations: float, integer: bool) -> float:
        """The time no call can beat: memory or arithmetic, whichever takes longer."""
        peak = max(self.bf16, self.int8) if integer else self.bf16
        return max(nbytes / self.copy, operations / peak)


def measure_roofline(device: str = "cpu") -> Roofline:
    """Measure copy bandwidth and the peak of bf16 and int8 products."""
    source = torch.ones(COPY_BYTES, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    a = torch.randn(SIDE, SIDE, device=device).to(torch.bfloat16)
    calls = {"copy": lambda: target.copy_(source), "bf16": lambda: a @ a}
    codes = torch.randint(-8, 8, (SIDE, SIDE), dtype=torch.int8, device=device)
    try:
        torch._int_mm(codes, codes)
        calls["int8"] = lambda: torch._int_mm(codes, codes)
    except (RuntimeError, AttributeError):
        pass
    taken = interleaved(calls, rounds=5, seconds=0.1)
    operations = 2.0 * SIDE**3
    return Roofline(
        copy=2 * COPY_BYTES / taken["copy"].best,
        bf16=operations / taken["bf16"].best,
        int8=operations / taken["int8"].best if "int8" in taken else 0.0,
    )
