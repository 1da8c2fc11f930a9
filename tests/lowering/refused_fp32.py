"""Arithmetic outside the portable subset. Each line with a ``refused:`` comment must be refused with that message."""

import tilelang.language as T
from elementwise_kernel import elementwise


def exp():
    @T.macro
    def statement(X, Y, Z, i):
        Y[i] = T.exp(X[i])  # refused: T.exp is not portable: use numerics.exp

    return elementwise(statement)


def exp2():
    @T.macro
    def statement(X, Y, Z, i):
        Y[i] = T.exp2(X[i])  # refused: T.exp2 is not portable: use numerics.exp2

    return elementwise(statement)


def log():
    @T.macro
    def statement(X, Y, Z, i):
        Y[i] = T.log(X[i])  # refused: T.log is not portable: use a polynomial

    return elementwise(statement)


def sqrt():
    @T.macro
    def statement(X, Y, Z, i):
        Y[i] = T.sqrt(X[i])  # refused: T.sqrt is not portable: use x * numerics.rsqrt(x)

    return elementwise(statement)


def rsqrt():
    @T.macro
    def statement(X, Y, Z, i):
        Y[i] = T.rsqrt(X[i])  # refused: T.rsqrt is not portable: use numerics.rsqrt

    return elementwise(statement)


def trigonometry():
    @T.macro
    def statement(X, Y, Z, i):
        Y[i] = T.sin(X[i])  # refused: T.sin is not portable: use a polynomial
        Y[i] = T.cos(X[i])  # refused: T.cos is not portable: use a polynomial
        Y[i] = T.tanh(X[i])  # refused: T.tanh is not portable: use numerics.sigmoid

    return elementwise(statement)


def pow():
    @T.macro
    def statement(X, Y, Z, i):
        Y[i] = T.pow(X[i], 2.0)  # refused: T.pow is not portable: use a polynomial

    return elementwise(statement)


def sigmoid():
    @T.macro
    def statement(X, Y, Z, i):
        Y[i] = T.sigmoid(X[i])  # refused: T.sigmoid is not portable: use numerics.sigmoid

    return elementwise(statement)


def fma():
    @T.macro
    def statement(X, Y, Z, i):
        Y[i] = T.fma(X[i], X[i], X[i])  # refused: T.fma is not portable: use a * b + c
        Y[i] = T.ieee_fmaf(X[i], X[i], X[i])  # refused: T.ieee_fmaf is not portable: use a * b + c

    return elementwise(statement)


def rounding():
    @T.macro
    def statement(X, Y, Z, i):
        Y[i] = T.floor(X[i])  # refused: T.floor is not portable: use the bits of x + 12582912.0
        Y[i] = T.abs(X[i])  # refused: T.abs is not portable: use T.reinterpret

    return elementwise(statement)


def float_division():
    @T.macro
    def statement(X, Y, Z, i):
        Y[i] = X[i] / Y[i]  # refused: fp32 division is not portable: use numerics.recip

    return elementwise(statement)


def float_maximum():
    @T.macro
    def statement(X, Y, Z, i):
        Y[i] = T.max(X[i], Y[i])  # refused: fp32 T.max is not portable (NaN and -0 differ): use compare
        Y[i] = T.min(X[i], Y[i])  # refused: fp32 T.min is not portable (NaN and -0 differ): use compare

    return elementwise(statement)


def float_to_int():
    @T.macro
    def statement(X, Y, Z, i):
        Z[i] = T.cast(X[i], "int32")  # refused: cast from float32 to int32 is not portable

    return elementwise(statement)


def half_arithmetic():
    @T.macro
    def statement(X, Y, Z, i):
        Y[i] = T.cast(  # refused: arithmetic of float16 is not portable: carry uint16 bits
            T.cast(X[i], "float16"), "float32"
        )

    return elementwise(statement)


def double_arithmetic():
    @T.macro
    def statement(X, Y, Z, i):
        Y[i] = T.cast(  # refused: arithmetic of float64 is not portable
            T.cast(X[i], "float64") * T.float64(3.0), "float32"
        )

    return elementwise(statement)


def sum_minus_term():
    @T.macro
    def statement(X, Y, Z, i):
        Y[i] = (X[i] + T.float32(3.0)) - T.float32(3.0)  # refused: fp32 (x + c) - c is not portable
        Y[i] = (T.float32(3.0) + X[i]) - T.float32(3.0)  # refused: fp32 (x + c) - c is not portable
        Y[i] = (X[i] + Y[i]) - X[i]  # refused: fp32 (x + c) - c is not portable
        total = X[i] + T.float32(12582912.0)
        Y[i] = total - T.float32(12582912.0)  # refused: fp32 (x + c) - c is not portable
        Y[i] = total * T.float32(1.0) - T.float32(12582912.0)  # refused: fp32 (x + c) - c is not portable

    return elementwise(statement)


def term_minus_sum():
    @T.macro
    def statement(X, Y, Z, i):
        Y[i] = X[i] - (X[i] + T.float32(3.0))  # refused: fp32 x - (x + c) is not portable
        Y[i] = X[i] - (T.float32(3.0) + X[i])  # refused: fp32 x - (x + c) is not portable
        total = Y[i] + X[i]
        Y[i] = X[i] - total  # refused: fp32 x - (x + c) is not portable

    return elementwise(statement)


def self_difference():
    @T.macro
    def statement(X, Y, Z, i):
        Y[i] = X[i] - X[i]  # refused: fp32 x - x is not portable
        value = X[i] * Y[i]
        Y[i] = value - X[i] * Y[i]  # refused: fp32 x - x is not portable
        Y[i] = T.Select(Z[i] > 0, X[i], Y[i]) - X[i]  # refused: fp32 x - x is not portable

    return elementwise(statement)


def times_zero():
    @T.macro
    def statement(X, Y, Z, i):
        Y[i] = X[i] * 0.0  # refused: fp32 x * 0.0 is not portable
        Y[i] = T.float32(0.0) * X[i]  # refused: fp32 x * 0.0 is not portable
        zero = T.float32(0.0)
        Y[i] = X[i] * zero  # refused: fp32 x * 0.0 is not portable

    return elementwise(statement)


def plus_zero():
    @T.macro
    def statement(X, Y, Z, i):
        Y[i] = X[i] + 0.0  # refused: fp32 x + 0.0 is not portable
        Y[i] = T.float32(0) + X[i]  # refused: fp32 x + 0.0 is not portable
        zero = T.float32(0.0)
        Y[i] = zero + X[i]  # refused: fp32 x + 0.0 is not portable
        Z[i] = T.if_then_else(  # refused: fp32 x + 0.0 is
            X[i] > Y[i] and Z[i] > 0, 1, T.reinterpret("int32", X[i] + 0.0)
        )
        if X[i] + 0.0 > Y[i]:  # refused: fp32 x + 0.0 is not portable
            Y[i] = X[i]

    return elementwise(statement)


def self_comparison():
    @T.macro
    def statement(X, Y, Z, i):
        Z[i] = T.if_then_else(X[i] != X[i], 1, 0)  # refused: fp32 x == x and x != x are not portable
        value = X[i]
        Z[i] = T.if_then_else(value == X[i], 1, 0)  # refused: fp32 x == x and x != x are not portable

    return elementwise(statement)


def negated_comparison():
    @T.macro
    def statement(X, Y, Z, i):
        if not (X[i] < Y[i]):  # refused: not of an fp32 comparison is not portable
            Z[i] = 1
        if not (X[i] < Y[i] and Z[i] > 0):  # refused: not of an fp32 comparison is not portable
            Z[i] = 3

    return elementwise(statement)


def mirrored_comparison():
    @T.macro
    def statement(X, Y, Z, i):
        if X[i] < Y[i] or Y[i] <= X[i]:  # refused: an fp32 comparison or its mirror image
            Z[i] = 1
        if X[i] < Y[i] or X[i] > Y[i]:  # refused: an fp32 comparison or its mirror image
            Z[i] = 1

    return elementwise(statement)


def comparison_in_the_else_of_its_opposite():
    @T.macro
    def statement(X, Y, Z, i):
        Z[i] = T.if_then_else(  # refused: an fp32 comparison in the else
            X[i] < Y[i], 1, T.if_then_else(X[i] >= Y[i], 2, 3)
        )
        if X[i] <= Y[i]:
            Z[i] = 1
        elif Y[i] < X[i]:  # refused: an fp32 comparison in the else of its opposite
            Z[i] = 2

    return elementwise(statement)
