"""Windows, slices and sliced dots (contract C4) in NumPy."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kernelforge.formats import bf16, mx
from kernelforge.numerics import window


@pytest.mark.parametrize("slices", [2, 3])
@settings(deadline=None)
@given(amax=st.floats(2.0**-50, 2.0**100, width=32))
def test_the_exponent_is_the_least_whose_window_fits(slices, amax):
    e = int(window.exponent_of(np.array([amax], np.float32), slices)[0])
    places = 8 * slices - 1

    def rounded(exponent: int) -> int:
        return round(Fraction(amax) * Fraction(2) ** (places - exponent))

    assert rounded(e) <= window.LIMIT[slices] < rounded(e - 1)


@pytest.mark.parametrize("slices", [2, 3])
def test_windows_at_the_edge_of_the_limit(slices):
    limit = window.LIMIT[slices]
    places = 8 * slices - 1
    for q, expected in ((limit, 0), (limit + 0.25, 0), (limit + 0.5, 1), (limit + 1, 1)):
        x = np.array([np.ldexp(np.float64(q), -places), 0.0])
        assert window.window(x, slices).exponent == expected
    zero = window.window(np.zeros((2, 5), np.float32), slices)
    assert not zero.q.any()
    assert not zero.exponent.any()


@pytest.mark.parametrize("slices", [2, 3])
def test_slices_rebuild_every_window_and_fit_int8(slices):
    limit = window.LIMIT[slices]
    q = (
        np.arange(-limit, limit + 1)
        if slices == 2
        else np.r_[-limit, limit, np.random.default_rng(0).integers(-limit, limit, 10**6)]
    )
    parts = window.split(q, slices)
    assert [p.dtype for p in parts] == [np.int8] * slices
    rebuilt = sum(p.astype(np.int64) * 256 ** (slices - 1 - i) for i, p in enumerate(parts))
    np.testing.assert_array_equal(rebuilt, q)
    assert parts[0].min() >= -127


def test_windows_of_bfloat16_are_bfloat16_numbers():
    rng = np.random.default_rng(1)
    x = bf16.decode(rng.integers(100 << 7, 140 << 7, (500, 32)).astype(np.uint16))
    q = window.window(x).q.astype(np.float32)
    np.testing.assert_array_equal(bf16.decode(bf16.encode(q)), q)


@pytest.mark.parametrize("slices", [(2, 2), (2, 3), (3, 3)])
def test_sliced_dots_of_whole_chunks_are_exact_sums_rounded_a_few_times(slices):
    rng = np.random.default_rng(2)
    length = window.chunk_length(10_000, *slices)
    a, b = (window.window(rng.standard_normal((6, length)).astype(np.float32), s) for s in slices)
    exact = np.ldexp(
        (a.q.astype(object) @ b.q.T.astype(object)).astype(np.float64),
        a.exponent[:, None] + b.exponent[None] - 8 * sum(slices) + 2,
    )
    # Four additions at most, each within half an ulp of a partial sum not much larger than the operands' norms.
    bound = (
        np.linalg.norm(window_values(a), axis=1)[:, None] * np.linalg.norm(window_values(b), axis=1)[None] * 2.0**-21
    )
    assert (np.abs(window.sliced_dot(a, b) - exact) <= bound).all()


def window_values(w: window.Window) -> np.ndarray:
    return np.ldexp(w.q.astype(np.float64), w.exponent[:, None] - 8 * w.slices + 1)


def test_two_slices_follow_the_written_formula():
    rng = np.random.default_rng(3)
    a, b = (window.window(rng.standard_normal((5, 512)).astype(np.float32)) for _ in range(2))
    ah, al = (s.astype(np.int64) for s in window.split(a.q))
    bh, bl = (s.astype(np.int64) for s in window.split(b.q))
    hh, hl, ll = ah @ bh.T, ah @ bl.T + al @ bh.T, al @ bl.T
    f = np.float32
    value = (hh.astype(f) * f(65536) + hl.astype(f) * f(256)) + ll.astype(f)
    expected = np.ldexp(value, a.exponent[:, None] + b.exponent[None] - 30)
    np.testing.assert_array_equal(window.sliced_dot(a, b), expected)


@pytest.mark.parametrize(("slices", "tolerance"), [((2, 2), 1e-4), ((2, 3), 7e-5), ((3, 3), 1e-6)])
@pytest.mark.parametrize("length", [96, 512, 1000])
def test_dots_of_rows_are_accurate(slices, tolerance, length):
    rng = np.random.default_rng(4)
    a, b = (
        rng.standard_normal((8, length)).astype(np.float32),
        rng.standard_normal((9, length)).astype(np.float32),
    )
    exact = a.astype(np.float64) @ b.astype(np.float64).T
    out = window.dot(a, b, *slices)
    assert np.linalg.norm(out - exact) / np.linalg.norm(exact) < tolerance


def test_chunks_too_long_to_be_exact_are_refused():
    long = window.window(np.ones((1, 517), np.float32))
    with pytest.raises(ValueError, match="do not fit 24 bits"):
        window.sliced_dot(long, long)
    worst = window.Window(np.full((1, 512), 127 * 256 - 128, np.int32), np.zeros(1, np.int32), 2)
    assert np.isfinite(window.sliced_dot(worst, worst)).all()


def test_tiny_results_are_zero_and_never_subnormal():
    a = np.full((1, 32), 2.0**-50, np.float32)
    b = np.full((2, 32), 2.0**-50, np.float32)
    b[1] = 2.0**-55
    out = window.dot(mx.flush(a), b)
    assert out[0, 0] == 2.0**-95
    assert out[0, 1] == 2.0**-100
    assert window.dot(a, b / 2)[0, 1] == 0
