"""Quantization to MX blocks of 32 (MXFP4, MXFP8) and MXFP4 back to floats, as TileLang kernels.

Integers only but for one exact product in the way back: the amax of a block is the integer maximum of its magnitudes'
bits, and rounding works on bits.
"""

import functools

import tilelang.language as T

from ...formats.tile import bf16, e2m1, e8m0, integer
from ...formats.tile.mx import BLOCK, block_scales, element_code

_STORAGE = {"float32": "float32", "bfloat16": "uint16", "float16": "uint16"}


def _tile(K, block_K):
    """Columns per tile: the largest divisor of K up to ``block_K``, in whole blocks, so that no tile is partial."""
    return max(width for width in range(BLOCK, min(K, block_K) + 1, BLOCK) if K % width == 0)


def _binary16_bits(code):
    """float32 bits of a binary16, exact; its subnormals are normal float32 numbers."""
    magnitude = code & 0x7FFF
    subnormal = T.reinterpret(T.cast(magnitude, "float32"), "int32") - (24 << 23)
    finite = T.if_then_else(
        magnitude < 0x400, T.if_then_else(magnitude == 0, 0, subnormal), (magnitude << 13) + (112 << 23)
    )
    exact = T.if_then_else(magnitude >= 0x7C00, integer.FLOAT32_INFINITY | (magnitude << 13), finite)
    return exact | ((code & 0x8000) << 16)


def _float32_bits(value, dtype):
    """float32 bits (int32) of an element as it is stored."""
    if dtype == "float32":
        return T.reinterpret(value, "int32")
    code = T.cast(value, "int32")
    return bf16.float32_bits(code) if dtype == "bfloat16" else _binary16_bits(code)


def mx_quantize(K, dtype, element, scale_rule, block_M, block_K, threads):
    """Codes and scales of x[M, K] in blocks of 32 along K.

    Args:
        K: static, a multiple of 32; M is dynamic.
        dtype: of x: "float32" | "bfloat16" | "float16" (16-bit floats are carried as their bits).
        element: "e2m1" (codes [M, K / 2], even index in the low nibble) | "e4m3" (codes [M, K]).
        scale_rule: "ceil" | "floor".
        block_M, block_K, threads: schedule; never changes a bit. block_K is at least 32.
    """
    M = T.dynamic("M")
    tile_K = _tile(K, block_K)
    per_byte = 2 if element == "e2m1" else 1
    bits_of = functools.partial(_float32_bits, dtype=dtype)

    @T.prim_func
    def main(
        x: T.Tensor((M, K), _STORAGE[dtype]),
        codes: T.Tensor((M, K // per_byte), "uint8"),
        scale: T.Tensor((M, K // BLOCK), "uint8"),
    ):
        with T.Kernel(T.ceildiv(K, tile_K), T.ceildiv(M, block_M), threads=threads) as (bx, by):
            x_tile = T.alloc_shared((block_M, tile_K), _STORAGE[dtype])
            code_tile = T.alloc_shared((block_M, tile_K // per_byte), "uint8")
            scale_tile = T.alloc_shared((block_M, tile_K // BLOCK), "uint8")
            T.copy(x[by * block_M, bx * tile_K], x_tile)
            block_scales(x_tile, scale_tile, bits_of, element, scale_rule, block_M)
            for i, b, q in T.Parallel(block_M, tile_K // BLOCK, BLOCK // per_byte):
                byte = T.alloc_var("int32")
                byte = T.cast(scale_tile[i, b], "int32")
                bits = T.alloc_var("int32")
                if element == "e2m1":
                    even = T.alloc_var("int32")
                    bits = _float32_bits(x_tile[i, b * BLOCK + 2 * q], dtype)
                    even = element_code(bits, byte, element)
                    bits = _float32_bits(x_tile[i, b * BLOCK + 2 * q + 1], dtype)
                    odd = element_code(bits, byte, element)
                    code_tile[i, b * (BLOCK // 2) + q] = T.cast(e2m1.pack(even, odd), "uint8")
                else:
                    bits = _float32_bits(x_tile[i, b * BLOCK + q], dtype)
                    code_tile[i, b * BLOCK + q] = T.cast(element_code(bits, byte, element), "uint8")
            T.copy(code_tile, codes[by * block_M, bx * (tile_K // per_byte)])
            T.copy(scale_tile, scale[by * block_M, bx * (tile_K // BLOCK)])

    return main


@T.macro
def _value_bits(code, half_scale):
    """float32 bits of an E2M1 code's value; the product is exact."""
    value = T.alloc_var("float32")
    value = T.cast(e2m1.doubled(code), "float32") * half_scale
    return T.reinterpret(value, "int32")


@T.macro
def _rounded(bits, dtype):
    """What stores the float32 with these bits as ``dtype``."""
    if dtype == "float32":
        return T.reinterpret(integer.canonical_bits(bits), "float32")
    elif dtype == "bfloat16":
        return T.cast(bf16.encode(bits), "uint16")
    else:
        return T.cast(bf16.encode_binary16(bits), "uint16")


def mxfp4_dequantize(K, dtype, block_M, block_K, threads):
    """out[M, K] = the values of packed MXFP4 [M, K / 2] under scales [M, K / 32], rounded to ``dtype``.

    Args: as in :func:`mx_quantize`.
    """
    M = T.dynamic("M")
    tile_K = _tile(K, block_K)

    @T.prim_func
    def main(
        packed: T.Tensor((M, K // 2), "uint8"),
        scale: T.Tensor((M, K // BLOCK), "uint8"),
        out: T.Tensor((M, K), _STORAGE[dtype]),
    ):
        with T.Kernel(T.ceildiv(K, tile_K), T.ceildiv(M, block_M), threads=threads) as (bx, by):
            packed_tile = T.alloc_shared((block_M, tile_K // 2), "uint8")
            scale_tile = T.alloc_shared((block_M, tile_K // BLOCK), "uint8")
            half_scale = T.alloc_shared((block_M, tile_K // BLOCK), "float32")
            out_tile = T.alloc_shared((block_M, tile_K), _STORAGE[dtype])
            T.copy(packed[by * block_M, bx * (tile_K // 2)], packed_tile)
            T.copy(scale[by * block_M, bx * (tile_K // BLOCK)], scale_tile)
            for i, b in T.Parallel(block_M, tile_K // BLOCK):
                byte = T.alloc_var("int32")
                byte = T.cast(scale_tile[i, b], "int32")
                half_scale[i, b] = e8m0.read_scale(byte) * T.float32(0.5)
            for i, b, q in T.Parallel(block_M, tile_K // BLOCK, BLOCK // 2):
                byte = T.alloc_var("int32")
                byte = T.cast(packed_tile[i, b * (BLOCK // 2) + q], "int32")
                bits = T.alloc_var("int32")
                bits = _value_bits(e2m1.low(byte), half_scale[i, b])
                out_tile[i, b * BLOCK + 2 * q] = _rounded(bits, dtype)
                bits = _value_bits(e2m1.high(byte), half_scale[i, b])
                out_tile[i, b * BLOCK + 2 * q + 1] = _rounded(bits, dtype)
            T.copy(out_tile, out[by * block_M, bx * tile_K])

    return main
