"""Integer, bit and predicate instructions against NumPy, one value per lane."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from ptx_snippet import lanes, one, words

RNG = np.random.default_rng(12)
TYPES: dict[str, Any] = {
    "u16": np.uint16,
    "s16": np.int16,
    "u32": np.uint32,
    "s32": np.int32,
    "u64": np.uint64,
    "s64": np.int64,
}


def big(values: np.ndarray) -> np.ndarray:
    return values.astype(object)


def wrap(values: Any, dtype: Any) -> np.ndarray:
    bits = np.iinfo(dtype).bits
    unsigned = np.array([int(v) & ((1 << bits) - 1) for v in values], dtype=np.uint64)
    return unsigned.astype(np.dtype(f"u{bits // 8}")).view(dtype)


@pytest.mark.parametrize("name", TYPES)
@pytest.mark.parametrize(
    ("opcode", "formula"),
    [
        ("add", lambda a, b: a + b),
        ("sub", lambda a, b: a - b),
        ("mul.lo", lambda a, b: a * b),
        ("min", lambda a, b: np.minimum(a, b)),
        ("max", lambda a, b: np.maximum(a, b)),
    ],
)
def test_arithmetic_wraps_at_its_width(opcode: str, formula: Any, name: str) -> None:
    a, b = words(RNG, TYPES[name]), words(RNG, TYPES[name])[::-1].copy()
    result = one(f"{opcode}.{name} %z, %x0, %x1;", TYPES[name], a, b)
    np.testing.assert_array_equal(result, wrap(formula(big(a), big(b)), TYPES[name]))


@pytest.mark.parametrize("name", TYPES)
def test_high_half_of_a_product(name: str) -> None:
    a, b = words(RNG, TYPES[name]), words(RNG, TYPES[name])[::-1].copy()
    bits = np.iinfo(TYPES[name]).bits
    result = one(f"mul.hi.{name} %z, %x0, %x1;", TYPES[name], a, b)
    np.testing.assert_array_equal(
        result, wrap([int(x) * int(y) >> bits for x, y in zip(a, b, strict=True)], TYPES[name])
    )


@pytest.mark.parametrize(
    ("name", "wide"), [("u16", np.uint32), ("s16", np.int32), ("u32", np.uint64), ("s32", np.int64)]
)
def test_wide_multiply_add(name: str, wide: Any) -> None:
    a, b, c = words(RNG, TYPES[name]), words(RNG, TYPES[name])[::-1].copy(), words(RNG, wide)
    result = one(f"mad.wide.{name} %z, %x0, %x1, %x2;", wide, a, b, c)
    np.testing.assert_array_equal(result, wrap(big(a) * big(b) + big(c), wide))


@pytest.mark.parametrize("name", ["u32", "s32", "u64", "s64"])
def test_division_truncates(name: str) -> None:
    a, b = words(RNG, TYPES[name]), words(RNG, TYPES[name])[::-1].copy()
    b[b == 0] = 3
    quotient = [abs(int(x)) // abs(int(y)) * (1 if (x < 0) == (y < 0) else -1) for x, y in zip(a, b, strict=True)]
    np.testing.assert_array_equal(one(f"div.{name} %z, %x0, %x1;", TYPES[name], a, b), wrap(quotient, TYPES[name]))
    remainder = [int(x) - q * int(y) for x, y, q in zip(a, b, quotient, strict=True)]
    np.testing.assert_array_equal(one(f"rem.{name} %z, %x0, %x1;", TYPES[name], a, b), wrap(remainder, TYPES[name]))


@pytest.mark.parametrize("name", ["b32", "u32", "s32", "b64", "s64", "b16", "s16"])
def test_shifts_clamp_their_amount(name: str) -> None:
    dtype = {"b32": np.uint32, "b64": np.uint64, "b16": np.uint16}.get(name) or TYPES[name]
    bits = np.iinfo(dtype).bits
    a, n = words(RNG, dtype), RNG.integers(0, 80, 32).astype(np.uint32)
    n[:4] = [0, bits - 1, bits, 2**31]
    if name[0] != "u":
        left = [int(x) << int(k) if k < bits else 0 for x, k in zip(a, n, strict=True)]
        np.testing.assert_array_equal(one(f"shl.b{bits} %z, %x0, %x1;", dtype, a, n), wrap(left, dtype))
    right = [int(x) >> min(int(k), 200) for x, k in zip(a, n, strict=True)]
    np.testing.assert_array_equal(one(f"shr.{name} %z, %x0, %x1;", dtype, a, n), wrap(right, dtype))


def test_carry_chain_adds_128_bits() -> None:
    parts = [words(RNG, np.uint64) for _ in range(4)]
    out = lanes(
        "add.cc.u64 %lo, %a_lo, %b_lo; addc.u64 %hi, %a_hi, %b_hi;",
        dict(zip(("%a_lo", "%a_hi", "%b_lo", "%b_hi"), parts, strict=True)),
        {"%lo": np.uint64, "%hi": np.uint64},
    )
    total = big(parts[0]) + big(parts[1]) * 2**64 + big(parts[2]) + big(parts[3]) * 2**64
    np.testing.assert_array_equal(out["%lo"], wrap(total, np.uint64))
    np.testing.assert_array_equal(out["%hi"], wrap([int(t) >> 64 for t in total], np.uint64))


@pytest.mark.parametrize("table", [0x00, 0x80, 0xFE, 0x96, 0xE8, 0x3C, 0xC5, 0xFF])
def test_lop3_is_its_table(table: int) -> None:
    a, b, c = words(RNG), words(RNG)[::-1].copy(), np.roll(words(RNG), 5)
    expected = np.zeros(32, np.uint32)
    for bit in range(32):
        index = ((a >> bit & 1) << 2 | (b >> bit & 1) << 1 | (c >> bit & 1)).astype(np.uint32)
        expected |= (np.uint32(table) >> index & 1) << np.uint32(bit)
    np.testing.assert_array_equal(one(f"lop3.b32 %z, %x0, %x1, %x2, {table};", np.uint32, a, b, c), expected)


def test_prmt_picks_bytes_and_repeats_signs() -> None:
    a, b, c = words(RNG), words(RNG)[::-1].copy(), words(RNG)
    expected = []
    for x, y, s in zip(a, b, c, strict=True):
        pool = [int(x) >> 8 * k & 255 for k in range(4)] + [int(y) >> 8 * k & 255 for k in range(4)]
        value = 0
        for k in range(4):
            selector = int(s) >> 4 * k & 15
            byte = pool[selector & 7]
            value |= ((0xFF if byte & 0x80 else 0) if selector & 8 else byte) << 8 * k
        expected.append(value)
    np.testing.assert_array_equal(one("prmt.b32 %z, %x0, %x1, %x2;", np.uint32, a, b, c), np.array(expected, np.uint32))


@pytest.mark.parametrize(
    ("mode", "row"),
    [
        ("f4e", "3210 4321 5432 6543"),
        ("b4e", "5670 6701 7012 0123"),
        ("rc8", "0000 1111 2222 3333"),
        ("ecl", "3210 3211 3222 3333"),
        ("ecr", "0000 1110 2210 3210"),
        ("rc16", "1010 3232 1010 3232"),
    ],
)
def test_prmt_modes_follow_the_isa_table(mode: str, row: str) -> None:
    a, b = np.full(32, 0x33221100, np.uint32), np.full(32, 0x77665544, np.uint32)
    c = np.arange(32, dtype=np.uint32) % 4
    expected = [int("".join(f"{int(d) * 17:02x}" for d in row.split()[k % 4]), 16) for k in range(32)]
    np.testing.assert_array_equal(
        one(f"prmt.b32.{mode} %z, %x0, %x1, %x2;", np.uint32, a, b, c), np.array(expected, np.uint32)
    )


@pytest.mark.parametrize("name", ["u32", "s32", "u64", "s64"])
def test_bit_fields(name: str) -> None:
    dtype, bits = TYPES[name], np.iinfo(TYPES[name]).bits
    a, into = words(RNG, dtype), words(RNG, dtype)[::-1].copy()
    position, length = RNG.integers(0, bits, 32).astype(np.uint32), RNG.integers(0, bits + 8, 32).astype(np.uint32)
    length[:2] = [0, bits]
    extracted, inserted = [], []
    for x, y, p, n in zip(a, into, position, length, strict=True):
        p, n = int(p), int(n)
        value = (int(x) & ((1 << bits) - 1)) >> p & ((1 << n) - 1)
        if name[0] == "s" and n:
            top = min(p + n - 1, bits - 1)
            if int(x) >> top & 1:
                value |= ~((1 << min(n, bits - p)) - 1)
        extracted.append(value)
        mask = ((1 << n) - 1) << p & ((1 << bits) - 1)
        inserted.append((int(y) & ~mask) | (int(x) << p & mask))
    np.testing.assert_array_equal(
        one(f"bfe.{name} %z, %x0, %x1, %x2;", dtype, a, position, length), wrap(extracted, dtype)
    )
    result = one(f"bfi.b{bits} %z, %x0, %x1, %x2, %x3;", dtype, a, into, position, length)
    np.testing.assert_array_equal(result, wrap(inserted, dtype))


def test_counting_instructions() -> None:
    a = words(RNG)
    np.testing.assert_array_equal(one("popc.b32 %z, %x0;", np.uint32, a), [bin(v).count("1") for v in a])
    np.testing.assert_array_equal(one("clz.b32 %z, %x0;", np.uint32, a), [32 - int(v).bit_length() for v in a])
    np.testing.assert_array_equal(
        one("brev.b32 %z, %x0;", np.uint32, a), np.array([int(f"{v:032b}"[::-1], 2) for v in a], np.uint32)
    )
    np.testing.assert_array_equal(
        one("bfind.u32 %z, %x0;", np.uint32, a), np.array([(int(v).bit_length() - 1) % 2**32 for v in a], np.uint32)
    )
    signed = words(RNG, np.int32)
    expected = [(int(v if v >= 0 else ~v).bit_length() - 1) % 2**32 for v in signed]
    np.testing.assert_array_equal(one("bfind.s32 %z, %x0;", np.uint32, signed), np.array(expected, np.uint32))


def test_funnel_shifts() -> None:
    a, b, n = words(RNG), words(RNG)[::-1].copy(), RNG.integers(0, 70, 32).astype(np.uint32)
    both = [int(y) << 32 | int(x) for x, y in zip(a, b, strict=True)]
    for mode, amount in (("wrap", n & 31), ("clamp", np.minimum(n, 32))):
        left = [(v << int(k) >> 32) % 2**32 for v, k in zip(both, amount, strict=True)]
        right = [(v >> int(k)) % 2**32 for v, k in zip(both, amount, strict=True)]
        np.testing.assert_array_equal(
            one(f"shf.l.{mode}.b32 %z, %x0, %x1, %x2;", np.uint32, a, b, n), np.array(left, np.uint32)
        )
        np.testing.assert_array_equal(
            one(f"shf.r.{mode}.b32 %z, %x0, %x1, %x2;", np.uint32, a, b, n), np.array(right, np.uint32)
        )


@pytest.mark.parametrize(("x", "y"), [("s32", "s32"), ("u32", "u32"), ("s32", "u32"), ("u32", "s32")])
def test_dp4a(x: str, y: str) -> None:
    a, b, c = words(RNG), words(RNG)[::-1].copy(), words(RNG)
    view = {"s32": np.int8, "u32": np.uint8}
    dot = (a.view(view[x]).reshape(32, 4).astype(np.int64) * b.view(view[y]).reshape(32, 4).astype(np.int64)).sum(1)
    np.testing.assert_array_equal(
        one(f"dp4a.{x}.{y} %z, %x0, %x1, %x2;", np.uint32, a, b, c), (c.astype(np.int64) + dot).astype(np.uint32)
    )


@pytest.mark.parametrize(
    ("compare", "ufunc"),
    [
        ("eq", np.equal),
        ("ne", np.not_equal),
        ("lt", np.less),
        ("le", np.less_equal),
        ("gt", np.greater),
        ("ge", np.greater_equal),
    ],
)
@pytest.mark.parametrize("name", ["u32", "s32", "u64", "s64", "s16"])
def test_setp_and_selp(compare: str, ufunc: Any, name: str) -> None:
    a, b = words(RNG, TYPES[name]), words(RNG, TYPES[name])[::-1].copy()
    b[10:14] = a[10:14]
    body = f"setp.{compare}.{name} %p1, %x0, %x1; selp.u32 %z, 7, 9, %p1;"
    np.testing.assert_array_equal(one(body, np.uint32, a, b), np.where(ufunc(a, b), 7, 9))


def test_setp_combines_with_a_predicate_and_gives_the_complement() -> None:
    a, b, c = words(RNG), words(RNG)[::-1].copy(), words(RNG) & 1
    out = lanes(
        "setp.ne.u32 %p3, %c, 0; setp.lt.and.u32 %p1|%p2, %a, %b, !%p3; selp.u32 %y, 1, 0, %p1; "
        "selp.u32 %n, 1, 0, %p2;",
        {"%a": a, "%b": b, "%c": c},
        {"%y": np.uint32, "%n": np.uint32},
    )
    np.testing.assert_array_equal(out["%y"], (a < b) & (c == 0))
    np.testing.assert_array_equal(out["%n"], (a >= b) & (c == 0))


def test_packing_and_unpacking() -> None:
    a, b = words(RNG), words(RNG)[::-1].copy()
    out = lanes(
        "mov.b64 %w, {%a, %b}; mov.b64 {%hi, %lo}, %w; mov.b32 {%h1, %h2}, %a; mov.b32 %q, {%h2, %h1};",
        {"%a": a, "%b": b},
        {"%w": np.uint64, "%hi": np.uint32, "%lo": np.uint32, "%q": np.uint32},
    )
    np.testing.assert_array_equal(out["%w"], a.astype(np.uint64) | b.astype(np.uint64) << np.uint64(32))
    np.testing.assert_array_equal(out["%hi"], a)
    np.testing.assert_array_equal(out["%lo"], b)
    np.testing.assert_array_equal(out["%q"], a >> 16 | a << 16)


@pytest.mark.parametrize("name", ["u8", "s8", "u16", "s16", "u32", "s32", "u64", "s64"])
@pytest.mark.parametrize("to", ["u8", "s8", "u16", "s16", "u32", "s32", "u64", "s64"])
def test_integer_conversions_truncate_extend_and_saturate(name: str, to: str) -> None:
    width = {"8": np.uint16, "16": np.uint16, "32": np.uint32, "64": np.uint64}
    raw = words(RNG, width[name[1:]])
    source = raw.astype(np.dtype(f"u{int(name[1:]) // 8}")).view(
        np.dtype(f"{'i' if name[0] == 's' else 'u'}{int(name[1:]) // 8}")
    )
    kind = np.dtype(f"{'i' if to[0] == 's' else 'u'}{int(to[1:]) // 8}")
    register = np.dtype(np.uint16) if to[1:] == "8" else np.dtype(f"u{int(to[1:]) // 8}")
    result = one(f"cvt.{to}.{name} %z, %x0;", register, raw)
    np.testing.assert_array_equal(result.astype(f"u{kind.itemsize}").view(kind), wrap(big(source), kind))
    info = np.iinfo(kind)
    clamped = np.array([min(max(int(v), info.min), info.max) for v in source], dtype=kind)
    result = one(f"cvt.sat.{to}.{name} %z, %x0;", register, raw)
    np.testing.assert_array_equal(result.astype(f"u{kind.itemsize}").view(kind), clamped)


def test_slct_follows_the_sign() -> None:
    a, b, c = words(RNG), words(RNG)[::-1].copy(), words(RNG, np.int32)
    np.testing.assert_array_equal(one("slct.u32.s32 %z, %x0, %x1, %x2;", np.uint32, a, b, c), np.where(c >= 0, a, b))
