"""Small kernels, one per macro of ``kernelforge.formats.tile``; TileLang reads kernels from files."""

from __future__ import annotations

import tilelang.language as T

from kernelforge.formats.tile import bf16, e2m1, e4m3, e8m0, integer, window

COLUMNS = 128


def elementwise(macro, rows, dtypes, out_dtype="int32", parameters=()):
    """out[i, j] = macro(x0[i, j], ..., *parameters) with the inputs cast to int32 (float32 by its bits)."""

    def as_int(x):
        return T.reinterpret(x, "int32") if str(x.dtype) == "float32" else T.cast(x, "int32")

    if len(dtypes) == 1:

        @T.prim_func
        def main(x: T.Tensor((rows, COLUMNS), dtypes[0]), out: T.Tensor((rows, COLUMNS), out_dtype)):
            with T.Kernel(T.ceildiv(rows, 32), threads=128) as row:
                xs = T.alloc_shared((32, COLUMNS), dtypes[0])
                result = T.alloc_shared((32, COLUMNS), out_dtype)
                T.copy(x[row * 32, 0], xs)
                for i, j in T.Parallel(32, COLUMNS):
                    value = T.alloc_var("int32")
                    value = as_int(xs[i, j])
                    result[i, j] = T.cast(macro(value, *parameters), out_dtype)
                T.copy(result, out[row * 32, 0])

        return main

    @T.prim_func
    def main2(
        x: T.Tensor((rows, COLUMNS), dtypes[0]),
        y: T.Tensor((rows, COLUMNS), dtypes[1]),
        out: T.Tensor((rows, COLUMNS), out_dtype),
    ):
        with T.Kernel(T.ceildiv(rows, 32), threads=128) as row:
            xs = T.alloc_shared((32, COLUMNS), dtypes[0])
            ys = T.alloc_shared((32, COLUMNS), dtypes[1])
            result = T.alloc_shared((32, COLUMNS), out_dtype)
            T.copy(x[row * 32, 0], xs)
            T.copy(y[row * 32, 0], ys)
            for i, j in T.Parallel(32, COLUMNS):
                value = T.alloc_var("int32")
                value = as_int(xs[i, j])
                second = T.alloc_var("int32")
                second = as_int(ys[i, j])
                result[i, j] = T.cast(macro(value, second, *parameters), out_dtype)
            T.copy(result, out[row * 32, 0])

    return main2


def window_kernel(a_format, rows, blocks):
    """exponent[i, b] and windows[i, 32 b + q] of a matrix of E4M3 codes or BF16 bits."""
    dtype = "uint16" if a_format == "bf16" else "uint8"
    magnitude = bf16.magnitude if a_format == "bf16" else e4m3.magnitude
    exponent_of = window.exponent_bf16 if a_format == "bf16" else window.exponent_e4m3
    window_of = window.window_bf16 if a_format == "bf16" else window.window_e4m3

    @T.prim_func
    def main(
        a: T.Tensor((rows, blocks * 32), dtype),
        exponent: T.Tensor((rows, blocks), "int32"),
        high: T.Tensor((rows, blocks * 32), "int8"),
        low: T.Tensor((rows, blocks * 32), "int8"),
        as_bf16: T.Tensor((rows, blocks * 32), "uint16"),
    ):
        with T.Kernel(T.ceildiv(rows, 32), threads=128) as row:
            tile = T.alloc_shared((32, blocks * 32), dtype)
            exponents = T.alloc_shared((32, blocks), "int32")
            highs = T.alloc_shared((32, blocks * 32), "int8")
            lows = T.alloc_shared((32, blocks * 32), "int8")
            floats = T.alloc_shared((32, blocks * 32), "uint16")
            T.copy(a[row * 32, 0], tile)
            for i, b in T.Parallel(32, blocks):
                amax = T.alloc_var("int32")
                amax = 0
                for q in T.serial(32):
                    amax = T.max(amax, magnitude(T.cast(tile[i, b * 32 + q], "int32")))
                exponents[i, b] = exponent_of(amax)
            for i, j in T.Parallel(32, blocks * 32):
                code = T.alloc_var("int32")
                code = T.cast(tile[i, j], "int32")
                block_exponent = T.alloc_var("int32")
                block_exponent = exponents[i, j // 32]
                value = T.alloc_var("int32")
                value = window_of(code, block_exponent)
                highs[i, j] = T.cast(window.high(value), "int8")
                lows[i, j] = T.cast(window.low(value), "int8")
                floats[i, j] = T.cast(window.window_bits_as_bf16(value), "uint16")
            T.copy(exponents, exponent[row * 32, 0])
            T.copy(highs, high[row * 32, 0])
            T.copy(lows, low[row * 32, 0])
            T.copy(floats, as_bf16[row * 32, 0])

    return main


def quantize_kernel(element, rule, rows):
    """MX codes (one per byte, E2M1 packed) and scale bytes of float32 [rows, 128]."""
    packed = 2 if element == "e2m1" else 1
    encode = e2m1.encode if element == "e2m1" else e4m3.encode

    @T.prim_func
    def main(
        x: T.Tensor((rows, 128), "float32"),
        codes: T.Tensor((rows, 128 // packed), "uint8"),
        scale: T.Tensor((rows, 4), "uint8"),
    ):
        with T.Kernel(T.ceildiv(rows, 32), threads=128) as row:
            xs = T.alloc_shared((32, 128), "float32")
            scales = T.alloc_shared((32, 4), "uint8")
            out = T.alloc_shared((32, 128 // packed), "uint8")
            T.copy(x[row * 32, 0], xs)
            for i, b in T.Parallel(32, 4):
                amax = T.alloc_var("int32")
                amax = 0
                for q in T.serial(32):
                    amax = T.max(amax, e8m0.magnitude_bits(T.reinterpret(xs[i, b * 32 + q], "int32")))
                scales[i, b] = T.cast(e8m0.scale_byte(amax, element, rule), "uint8")
            for i, j in T.Parallel(32, 128 // packed):
                byte = T.alloc_var("int32")
                byte = T.cast(scales[i, j * packed // 32], "int32")
                even = T.alloc_var("int32")
                even = encode(integer.read_bits(T.reinterpret(xs[i, j * packed], "int32")), byte - 127)
                if element == "e2m1":
                    odd = T.alloc_var("int32")
                    odd = encode(integer.read_bits(T.reinterpret(xs[i, j * packed + 1], "int32")), byte - 127)
                    even = e2m1.pack(even, odd)
                out[i, j] = T.cast(T.if_then_else(byte == e8m0.NAN, 0, even), "uint8")
            T.copy(out, codes[row * 32, 0])
            T.copy(scales, scale[row * 32, 0])

    return main
