"""What a machine does in a second, as the schedules need to know it."""

from __future__ import annotations

from dataclasses import dataclass

WEIGHT_BYTES = 17 / 32
"""Of an MXFP4 weight with its share of the scale."""


def dispatch_row(hidden: int) -> int:
    """Bytes of a token on its way to an expert: MXFP8 elements, their scales, its weight, in whole 32-bit words."""
    return -(-(hidden + hidden // 32) // 4) * 4 + 4


def result_row(hidden: int) -> int:
    """Bytes of an expert's result on its way back: fp32, since the slots are added before the one rounding."""
    return 4 * hidden


@dataclass(frozen=True)
class Rates:
    """Seconds and bytes per second of one rank.

    Attributes:
        row_seconds: one token through one expert, both products.
        expert_seconds: once for each expert with at least one token, such as reading its weights.
        wave_seconds: once for each wave.
        token_seconds: once for each token: quantizing, packing, adding the slots up.
        bandwidth: bytes per second out of a rank.
        latency: seconds between a message's last byte sent and its arrival.
        agree_seconds: agreeing on the counts, before anything else can be sent.
    """

    row_seconds: float
    expert_seconds: float
    bandwidth: float
    latency: float = 0.0
    wave_seconds: float = 0.0
    token_seconds: float = 0.0
    agree_seconds: float = 0.0

    def __post_init__(self) -> None:
        for name in ("row_seconds", "expert_seconds", "latency", "wave_seconds", "token_seconds", "agree_seconds"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name}: given {getattr(self, name)}, wanted 0 or more")
        if not self.bandwidth > 0:
            raise ValueError(f"bandwidth: given {self.bandwidth}, wanted more than 0 bytes per second")

    @staticmethod
    def of_hardware(
        hidden: int,
        inter: int,
        *,
        flops: float,
        bandwidth: float,
        latency: float = 0.0,
        memory_bandwidth: float = float("inf"),
    ) -> Rates:
        """From data sheets.

        Args:
            hidden, inter: an expert's sizes; it multiplies by [2 * inter, hidden] and [hidden, inter].
            flops: operations per second that the products reach, a multiply-add counted twice.
            bandwidth: bytes per second out of a rank.
            latency: seconds.
            memory_bandwidth: bytes per second at which weights are read.
        """
        for name, value in (("flops", flops), ("memory_bandwidth", memory_bandwidth)):
            if not value > 0:
                raise ValueError(f"{name}: given {value}, wanted more than 0")
        weights = 3 * hidden * inter
        return Rates(
            row_seconds=2 * weights / flops,
            expert_seconds=weights * WEIGHT_BYTES / memory_bandwidth,
            bandwidth=bandwidth,
            latency=latency,
            agree_seconds=latency,
        )
