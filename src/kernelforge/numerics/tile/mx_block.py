"""MX block accumulation (contract C3) as a TileLang macro.

Operands are tiles as they are stored in memory; decoding is part of the region, so that a backend which takes
``mx_block_accumulate`` whole reads the packed operands itself.
"""

from __future__ import annotations

import tilelang.language as T

from ...formats.tile import bf16, e2m1, e4m3, e8m0, integer
from ...formats.tile import window as windows
from ..block_accumulate import A_FORMATS
from .composite import composite
from .exact_dot import exact_dot

BLOCK = 32
"""Elements under one E8M0 scale (OCP MX 1.0, section 5.2)."""


@T.macro
def _decode_e2m1(codes, block, integers):
    """integers[r, q] = 2 * value of element q of MX block ``block`` (int8)."""
    for r, q in T.Parallel(integers.shape[0], BLOCK // 2):
        byte = T.alloc_var("int32")
        byte = T.cast(codes[r, block * (BLOCK // 2) + q], "int32")
        integers[r, 2 * q] = T.cast(e2m1.doubled(e2m1.low(byte)), "int8")
        integers[r, 2 * q + 1] = T.cast(e2m1.doubled(e2m1.high(byte)), "int8")


@T.macro
def _read_scales(scale, block, unit, factor):
    """factor[r] = unit * the E8M0 scale of row r; ``unit`` is a power of two."""
    for r in T.Parallel(factor.shape[0]):
        byte = T.alloc_var("int32")
        byte = T.cast(scale[r, block], "int32")
        factor[r] = e8m0.read_scale(byte) * T.float32(unit)


@T.macro
def _block_exponents(a, block, is_bf16, exponent):
    """exponent[i] = the window exponent of row i's block (contract C4)."""
    for i in T.Parallel(exponent.shape[0]):
        amax = T.alloc_var("int32")
        amax = 0
        for q in T.serial(BLOCK):
            code = T.cast(a[i, block * BLOCK + q], "int32")
            amax = T.max(amax, bf16.magnitude(code) if is_bf16 else e4m3.magnitude(code))
        exponent[i] = windows.exponent_bf16(amax) if is_bf16 else windows.exponent_e4m3(amax)


@T.macro
def _cut_windows(a, block, is_bf16, exponent, window):
    """window[i, q] = element q of row i's block in units of 2^(exponent[i] - 15) (int16)."""
    for i, q in T.Parallel(window.shape[0], BLOCK):
        code = T.alloc_var("int32")
        code = T.cast(a[i, block * BLOCK + q], "int32")
        if is_bf16:
            window[i, q] = T.cast(windows.window_bf16(code, exponent[i]), "int16")
        else:
            window[i, q] = T.cast(windows.window_e4m3(code, exponent[i]), "int16")


def _unit_bits(exponent):
    """float32 bits of a window's unit against twice an E2M1 value, 2^(exponent - 16); beyond 2^63 Inf."""
    finite = T.if_then_else(exponent > 79, integer.FLOAT32_INFINITY, (exponent + 111) << 23)
    return T.if_then_else(exponent == windows.UNUSABLE, integer.FLOAT32_NAN, finite)


@T.macro
def _window_factors(exponent, scale, block, blocks, a_format, factor):
    """factor[i] = the unit of row i's windows times the scale of its block."""
    for i in T.Parallel(factor.shape[0]):
        unit = T.alloc_var("float32")
        unit = T.reinterpret(_unit_bits(exponent[i]), "float32")
        if a_format == "bf16":
            factor[i] = unit
        elif a_format == "e4m3_e8m0":
            byte = T.alloc_var("int32")
            byte = T.cast(scale[i, block], "int32")
            factor[i] = unit * e8m0.read_scale(byte)
        else:
            bits = T.alloc_var("int32")
            bits = integer.read_bits(T.reinterpret(scale[i, block // 4], "int32"))
            product = T.alloc_var("float32")
            product = unit * T.reinterpret(bits, "float32")
            bits = integer.read_bits(T.reinterpret(product, "int32"))
            magnitude = T.alloc_var("int32")
            magnitude = bits & integer.MAGNITUDE
            infinite = (bits ^ magnitude) | integer.FLOAT32_INFINITY
            bits = T.if_then_else(magnitude > (190 << 23), infinite, bits)
            bits = T.if_then_else(magnitude > integer.FLOAT32_INFINITY, integer.FLOAT32_NAN, bits)
            # Blocks beyond K share the scale of a group that K cuts: 0 * Inf would be NaN.
            factor[i] = T.reinterpret(T.if_then_else(block < blocks, bits, 0), "float32")


@T.macro
def mx_block_accumulate(acc, a, a_scale, w, w_scale, a_format, blocks, rows=None):
    """acc[i, j] += term(i, j, b) for the MX blocks b of the tiles, ascending.

    Args:
        acc: fp32 fragment [bm, bn], the running sums.
        a: activations as stored, [bm, bk / 2] uint8 (``e2m1``), [bm, bk] uint8 (``e4m3_*``) or uint16 (``bf16``).
        a_scale: [bm, bk / 32] uint8, or [bm, bk / 128] float32 (``e4m3_f32``); not read for ``bf16``.
        w: packed E2M1 weights [bn, bk / 2] uint8.
        w_scale: E8M0 [bn, bk / 32] uint8.
        a_format: one of :data:`A_FORMATS`.
        blocks: MX blocks from the tile's first to the end of K; those of the tile beyond add nothing.
        rows: int32, the leading rows that the kernel uses; sums of the others may be anything. None for all of them.
    """
    used = []
    if rows is not None:
        limit = T.alloc_var("int32")
        limit = rows
        used.append(limit.buffer)
    with composite("mx_block_accumulate", acc, a, a_scale, w, w_scale, *used, a_format=A_FORMATS.index(a_format)):
        bm, bn = acc.shape
        a_integers = T.alloc_shared((bm, BLOCK), "int8" if a_format == "e2m1" else "int16")
        w_integers = T.alloc_shared((bn, BLOCK), "int8")
        a_factor = T.alloc_shared((bm,), "float32")
        w_factor = T.alloc_shared((bn,), "float32")
        dot = T.alloc_fragment((bm, bn), "int32")
        for b in T.serial(w_scale.shape[1]):
            _decode_e2m1(w, b, w_integers)
            _read_scales(w_scale, b, 1.0, w_factor)
            if a_format == "e2m1":
                _decode_e2m1(a, b, a_integers)
                _read_scales(a_scale, b, 0.25, a_factor)
            else:
                exponent = T.alloc_shared((bm,), "int32")
                _block_exponents(a, b, a_format == "bf16", exponent)
                _cut_windows(a, b, a_format == "bf16", exponent, a_integers)
                _window_factors(exponent, a_scale, b, blocks, a_format, a_factor)
            exact_dot(a_integers, w_integers, dot)
            for i, j in T.Parallel(bm, bn):
                acc[i, j] = acc[i, j] + T.cast(dot[i, j], "float32") * (a_factor[i] * w_factor[j])
