"""The contract of the MX block accumulation in NumPy, independent of the C++, and operands to try it on."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

BLOCK = 32
TWICE_E2M1 = np.array([0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12], np.float64)


def read_scale(byte: Array) -> Array:
    """E8M0 bytes as the contract reads them, float32."""
    exponent = byte.astype(np.int32) - 127
    value = np.ldexp(np.float32(1), np.clip(exponent, -50, 63)).astype(np.float32)
    value = np.where(exponent < -50, np.float32(0), value)
    value = np.where(exponent > 63, np.float32(np.inf), value)
    return np.where(byte == 0xFF, np.float32(np.nan), value).astype(np.float32)


def unpack_e2m1(packed: Array) -> Array:
    """uint8 [R, K/2] -> twice the values, float64 [R, K]."""
    out = np.empty((packed.shape[0], packed.shape[1] * 2))
    out[:, 0::2] = TWICE_E2M1[packed & 15]
    out[:, 1::2] = TWICE_E2M1[packed >> 4]
    return out


def e4m3_values() -> Array:
    codes = np.arange(256)
    exponent, mantissa = (codes >> 3) & 15, codes & 7
    magnitude = np.where(exponent == 0, mantissa * 2.0**-9, (8 + mantissa) * 2.0 ** (exponent - 10.0))
    magnitude[(codes & 0x7F) == 0x7F] = np.nan
    return np.where(codes >= 128, -magnitude, magnitude)


def window(x: Array) -> tuple[Array, Array, Array]:
    """float64 [R, K] -> q [R, B, 32], e [R, B], and which blocks hold only finite elements."""
    blocks = x.reshape(x.shape[0], -1, BLOCK)
    finite: Array = np.asarray(np.isfinite(blocks).all(-1))
    blocks = np.where(finite[..., None], blocks, 0.0)
    amax = np.abs(blocks).max(-1)
    _, exponent = np.frexp(amax)  # amax < 2^exponent, so 15 - exponent gives at most 2^15
    scaled = np.rint(np.ldexp(amax, 15 - exponent))
    exponent = np.where(scaled > 32639, exponent + 1, exponent)
    exponent = np.where(amax == 0, 0, exponent).astype(np.int64)
    return np.rint(np.ldexp(blocks, (15 - exponent)[..., None])), exponent, finite


def read_a(a_format: str, a: Array, a_scale: Any) -> tuple[Array, Array]:
    """Integers q [M, B, 32] and factors [M, B] (float32)."""
    if a_format == "e2m1":
        q = unpack_e2m1(a)
        return q.reshape(q.shape[0], -1, BLOCK), np.float32(0.25) * read_scale(a_scale)
    if a_format == "bf16":
        with np.errstate(invalid="ignore"):
            x = (a.astype(np.uint32) << 16).view(np.float32).astype(np.float64)
        q, e, finite = window(np.where(np.abs(x) < 2.0**-50, 0.0, x))
        factor = np.where(e - 16 > 63, np.inf, np.ldexp(1.0, np.minimum(e - 16, 63))).astype(np.float32)
    else:
        q, e, finite = window(e4m3_values()[a])
        if a_format == "e4m3_e8m0":
            factor = np.ldexp(np.float32(1), e - 16).astype(np.float32) * read_scale(a_scale)
        else:
            scale = np.where(np.abs(a_scale) < np.float32(2.0**-50), np.float32(0), a_scale)
            scale = np.repeat(scale, 4, axis=1)[:, : e.shape[1]]
            factor = scale * np.ldexp(np.float32(1), e - 16).astype(np.float32)
            factor = np.where(np.abs(factor) < np.float32(2.0**-50), np.float32(0), factor)
            factor = np.where(np.abs(factor) > np.float32(2.0**63), np.copysign(np.float32(np.inf), factor), factor)
    return q, np.where(finite, factor, np.float32(np.nan)).astype(np.float32)


def reference(a_format: str, a: Any, a_scale: Any, w: Array, w_scale: Array, acc: Array) -> Array:
    """fp32 accumulator after all blocks, ascending, one rounded product and one rounded sum per block."""
    with np.errstate(all="ignore"):
        q, fa = read_a(a_format, a, a_scale)
        v = unpack_e2m1(w).reshape(w.shape[0], -1, BLOCK)
        fw = read_scale(w_scale)
        acc = acc.astype(np.float32).copy()
        for b in range(q.shape[1]):
            integer = (q[:, b] @ v[:, b].T).astype(np.float32)
            term = (integer + np.float32(0)) * (fa[:, b, None] * fw[None, :, b])
            acc = acc + term
    return acc


def canonical(x: Array) -> Array:
    """Bits with NaN and zero canonical, as the op's epilogue writes them."""
    bits = x.view(np.uint32).copy()
    bits[np.isnan(x)] = 0x7FC00000
    bits[x == 0] = 0
    return bits


def padded(x: Array, extra: int) -> Array:
    """The same array with a leading dimension `extra` larger."""
    wide = np.zeros((x.shape[0], x.shape[1] + extra), x.dtype)
    wide[:, : x.shape[1]] = x
    return wide[:, : x.shape[1]]


def operands(
    rng: np.random.Generator,
    m: int,
    n: int,
    k: int,
    a_format: str,
    scales: tuple[int, int] = (107, 147),
    special: float = 0.0,
) -> tuple[Any, Any, Any, Any]:
    """Random codes; scale bytes in the given range; `special` is the share of extreme scales and elements."""

    def scale_bytes(rows: int) -> Array:
        out = rng.integers(*scales, (rows, k // BLOCK)).astype(np.uint8)
        odd = rng.choice(np.array([0, 1, 0x4C, 0x4D, 190, 191, 0xFE, 0xFF], np.uint8), out.shape)
        return np.where(rng.random(out.shape) < special, odd, out)

    w = rng.integers(0, 256, (n, k // 2)).astype(np.uint8)
    w_scale = scale_bytes(n)
    if a_format == "e2m1":
        return rng.integers(0, 256, (m, k // 2)).astype(np.uint8), scale_bytes(m), w, w_scale
    if a_format == "bf16":
        sign = rng.integers(0, 2, (m, k)) << 15
        spread = rng.integers(1, 24, (m, k // BLOCK)).repeat(BLOCK, 1)
        exponent = (
            127 - rng.integers(0, 1 << 30, (m, k)) % spread + rng.integers(-20, 20, (m, k // BLOCK)).repeat(BLOCK, 1)
        )
        a = (sign | exponent << 7 | rng.integers(0, 128, (m, k))).astype(np.uint16)
        a[rng.random(a.shape) < 0.05] = 0
        odd = rng.integers(0, 65536, a.shape).astype(np.uint16)
        return np.where(rng.random(a.shape) < special / 8, odd, a), None, w, w_scale
    a = rng.integers(0, 256, (m, k)).astype(np.uint8)
    a[(a & 0x7F) == 0x7F] = 0x7E
    a[rng.random(a.shape) < special / 16] = 0x7F
    small = rng.random((m, k // BLOCK)).repeat(BLOCK, 1) < 0.3
    a = np.where(small & ((a & 0x7F) != 0x7F), a & 0x9F, a)  # blocks without large elements
    if a_format == "e4m3_e8m0":
        return a, scale_bytes(m), w, w_scale
    shape = (m, -(-k // 128))
    s = (rng.standard_normal(shape) * np.ldexp(1.0, rng.integers(-12, 12, shape))).astype(np.float32)
    odd = rng.integers(0, 1 << 32, shape, dtype=np.uint32).view(np.float32)
    return a, np.where(rng.random(shape) < special, odd, s), w, w_scale
