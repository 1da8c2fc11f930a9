"""The matrix product of native mode: whatever the device's bfloat16 matrix unit makes of it."""

from __future__ import annotations

from typing import Any

import tilelang.language as T

from ...formats.tile import bf16
from .attention import float_of
from .composite import composite


def _value(code: Any) -> Any:
    """A bfloat16 as float32."""
    return float_of(bf16.float32_bits(T.cast(code, "int32")))


@T.macro
def rounded_dot(a: Any, b: Any, out: Any, transpose_b: bool) -> None:
    """out[i, j] = sum over k of a[i, k] * b[j, k], rounded as the device likes: no bit contract.

    A backend takes the region with the matrix unit it has. The portable body adds in ascending order.

    Args:
        a: uint16 [m, k], bits of bfloat16, in shared memory; filled by elementwise code, not by copies.
        b: the same, [n, k]; [k, n] without ``transpose_b``.
        out: float32 fragment [m, n].
    """
    with composite("rounded_dot", a, b, out, transpose_b=int(transpose_b)):
        for i, j in T.Parallel(out.shape[0], out.shape[1]):
            total = T.alloc_var("float32")
            total = T.float32(0)
            for k in T.serial(a.shape[1]):
                if transpose_b:
                    total = total + _value(a[i, k]) * _value(b[j, k])
                else:
                    total = total + _value(a[i, k]) * _value(b[k, j])
            out[i, j] = total
