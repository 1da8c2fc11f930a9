"""MXFP4 GEMM in Python integers and fractions, written from the contract alone: slow, exact, without NumPy's floats.

Numbers are ``Fraction``, or one of the strings "nan", "inf", "-inf". One fp32 operation is the exact operation and then
:func:`to_fp32`, a correct rounding of a fraction.
"""

from __future__ import annotations

from fractions import Fraction

NAN, INF, NEGATIVE_INF = "nan", "inf", "-inf"
E2M1 = [Fraction(h, 2) for h in (0, 1, 2, 3, 4, 6, 8, 12)]


def floor_log2(x: Fraction) -> int:
    """floor(log2(x)) of a positive fraction."""
    guess = x.numerator.bit_length() - x.denominator.bit_length()
    return guess if Fraction(2) ** guess <= x else guess - 1


def round_to_even(x: Fraction) -> int:
    floor = x.numerator // x.denominator
    rest = x - floor
    return floor + (rest > Fraction(1, 2) or (rest == Fraction(1, 2) and floor % 2 == 1))


def round_to_format(x: Fraction, precision: int, lowest: int, highest: int):
    """Nearest-even to ``precision`` bits; normal exponents from ``lowest`` to ``highest``; overflow to infinity."""
    if x == 0:
        return Fraction(0)
    unit = Fraction(2) ** (max(floor_log2(abs(x)), lowest) - precision + 1)
    rounded = round_to_even(x / unit) * unit
    if abs(rounded) >= Fraction(2) ** (highest + 1):
        return INF if x > 0 else NEGATIVE_INF
    return rounded


def to_fp32(x):
    if isinstance(x, str):
        return x
    rounded = round_to_format(x, 24, -126, 127)
    assert isinstance(rounded, str) or rounded == 0 or abs(rounded) >= Fraction(2) ** -126, "a subnormal appeared"
    return rounded


def negative(x) -> bool:
    return x == NEGATIVE_INF if isinstance(x, str) else x < 0


def multiply(x, y):
    if NAN in (x, y):
        return NAN
    if isinstance(x, str) or isinstance(y, str):
        if x == 0 or y == 0:
            return NAN
        return NEGATIVE_INF if negative(x) != negative(y) else INF
    return to_fp32(x * y)


def add(x, y):
    if NAN in (x, y) or {x, y} == {INF, NEGATIVE_INF}:
        return NAN
    for special in (x, y):
        if isinstance(special, str):
            return special
    return to_fp32(x + y)


def read_scale(byte: int):
    exponent = byte - 127
    if byte == 255:
        return NAN
    return Fraction(0) if exponent < -50 else INF if exponent > 63 else Fraction(2) ** exponent


def e2m1_value(code: int) -> Fraction:
    return -E2M1[code & 7] if code & 8 else E2M1[code]


def e4m3_value(code: int):
    field, mantissa = code >> 3 & 15, code & 7
    if code & 0x7F == 0x7F:
        return NAN
    value = Fraction(mantissa, 512) if field == 0 else (1 + Fraction(mantissa, 8)) * Fraction(2) ** (field - 7)
    return -value if code & 0x80 else value


def ieee_value(bits: int, exponent_bits: int, fraction_bits: int):
    """Value of an IEEE-like code (float32, bfloat16)."""
    sign, field = bits >> (exponent_bits + fraction_bits), bits >> fraction_bits & (2**exponent_bits - 1)
    fraction = Fraction(bits & (2**fraction_bits - 1), 2**fraction_bits)
    bias = 2 ** (exponent_bits - 1) - 1
    if field == 2**exponent_bits - 1:
        return NAN if fraction else (NEGATIVE_INF if sign else INF)
    value = fraction * Fraction(2) ** (1 - bias) if field == 0 else (1 + fraction) * Fraction(2) ** (field - bias)
    return -value if sign else value


def window(values: list[Fraction]) -> tuple[list[int], int]:
    """Integers and exponent: the least e with RNE(amax * 2^(15 - e)) <= 32639, found by search."""
    amax = max(abs(v) for v in values)
    if amax == 0:
        return [0] * len(values), 0
    e = floor_log2(amax) - 3
    while round_to_even(amax * Fraction(2) ** (15 - e)) > 32639:
        e += 1
    return [round_to_even(v * Fraction(2) ** (15 - e)) for v in values], e


def activation_block(codes: list[int], scale, a_format: str):
    """Integers of a block and what they are worth.

    ``codes``: one E2M1, E4M3 or bfloat16 code per element; ``scale``: E8M0 byte, float32 bits, or None.
    """
    if a_format == "e2m1":
        return [int(2 * e2m1_value(c)) for c in codes], multiply(Fraction(1, 4), read_scale(scale))
    if a_format == "bf16":
        values = [ieee_value(c, 8, 7) for c in codes]
        values = [v if isinstance(v, str) or abs(v) >= Fraction(2) ** -50 else Fraction(0) for v in values]
    else:
        values = [e4m3_value(c) for c in codes]
    if any(isinstance(v, str) for v in values):
        return [0] * len(values), NAN
    q, e = window(values)
    worth = Fraction(2) ** (e - 16)
    if a_format == "e4m3_e8m0":
        return q, multiply(worth, read_scale(scale))
    if a_format == "e4m3_f32":
        s = ieee_value(scale, 8, 23)
        if not isinstance(s, str) and abs(s) < Fraction(2) ** -50:
            s = Fraction(0)
        worth = multiply(worth, s)
        if not isinstance(worth, str) and abs(worth) < Fraction(2) ** -50:
            worth = Fraction(0)
    if not isinstance(worth, str) and abs(worth) > Fraction(2) ** 63:
        worth = NEGATIVE_INF if worth < 0 else INF
    return q, worth


def output(a: list[int], a_scale: list, a_format: str, w: list[int], w_scale: list[int]):
    """One output: codes of a row of A and of a row of W, one scale per block of 32 each."""
    acc = Fraction(0)
    for b in range(len(w) // 32):
        q, fa = activation_block(a[32 * b : 32 * b + 32], a_scale[b], a_format)
        doubled = [int(2 * e2m1_value(c)) for c in w[32 * b : 32 * b + 32]]
        integer = sum(x * y for x, y in zip(q, doubled, strict=True))
        assert abs(integer) < 2**24
        acc = add(acc, multiply(Fraction(integer), multiply(fa, read_scale(w_scale[b]))))
    return acc


def output_bits(x, dtype: str) -> int:
    """Bits of a result in float32, bfloat16 or float16."""
    exponent_bits, fraction_bits = {"float32": (8, 23), "bfloat16": (8, 7), "float16": (5, 10)}[dtype]
    bias = 2 ** (exponent_bits - 1) - 1
    if not isinstance(x, str):
        x = round_to_format(x, fraction_bits + 1, 1 - bias, bias)
    infinity = (2**exponent_bits - 1) << fraction_bits
    if x == NAN:
        return infinity | 1 << (fraction_bits - 1)
    sign = negative(x) << (exponent_bits + fraction_bits)
    if isinstance(x, str):
        return sign | infinity
    if x == 0:
        return 0
    exponent = max(floor_log2(abs(x)), 1 - bias)
    significand = abs(x) / Fraction(2) ** (exponent - fraction_bits)
    assert significand.denominator == 1
    return sign | (((exponent + bias - 1) << fraction_bits) + int(significand))
