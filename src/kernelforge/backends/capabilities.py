"""What a device can do exactly."""

from __future__ import annotations

from dataclasses import dataclass, field

EXACT_DOT_INT8 = "exact_dot.int8"
"""int8 x int8 dot accumulated in int32."""
FP32_IEEE = "fp32.ieee"
"""binary32 add, subtract, multiply, each rounded to nearest even on its own."""
INT32 = "int32"
"""int32 arithmetic, shifts, bit operations, compare and select."""
EXACT_DOT_BF16 = "exact_dot.bf16"
"""Integer-valued bf16 products accumulated exactly while partial sums fit the accumulator."""
EXACT_DOT_FP8 = "exact_dot.fp8"
"""The same for E4M3 operands."""

KNOWN = frozenset({EXACT_DOT_INT8, FP32_IEEE, INT32, EXACT_DOT_BF16, EXACT_DOT_FP8})


@dataclass(frozen=True)
class Capabilities:
    """A backend's claims, checked against what an op needs before anything is compiled.

    Attributes:
        features: names out of :data:`KNOWN`.
        accumulator_bits: bits of significand that each floating-point dot engine keeps, by feature name.
        subnormals: whether fp32 arithmetic keeps subnormals; the contract never makes one, so both are right.
    """

    features: frozenset[str]
    accumulator_bits: dict[str, int] = field(default_factory=dict)
    subnormals: bool = True

    def __post_init__(self) -> None:
        unknown = (self.features | set(self.accumulator_bits)) - KNOWN
        if unknown:
            raise ValueError(f"features: unknown {sorted(unknown)}; known are {sorted(KNOWN)}")

    def require(self, op: str, needs: frozenset[str], backend: str) -> None:
        """Raise ``CapabilityError`` when the backend claims less than ``op`` needs."""
        missing = sorted(needs - self.features)
        if missing:
            raise CapabilityError(
                f"op {op} needs {', '.join(missing)}, which backend {backend!r} does not claim; "
                f"it claims {', '.join(sorted(self.features)) or 'nothing'}"
            )


class CapabilityError(RuntimeError):
    """A backend claims less than an op needs."""
