"""The pinned elementary functions: their accuracy, and the same bits in C++, NumPy and every generated source."""

from __future__ import annotations

import json
import pathlib
import re
import shutil
import subprocess

import lowering_harness as harness
import numerics_kernels as kernels
import numpy as np
import pytest

from kernelforge.numerics import elementary

ROOT = pathlib.Path(__file__).parents[2]
NAMES = ("exp2", "exp", "recip", "rsqrt", "sigmoid", "silu", "softplus")
FLAGS = [
    "-O3",
    "-std=c++17",
    "-march=native",
    "-ffp-contract=off",
    "-fwrapv",
    "-fno-strict-aliasing",
    "-fno-trapping-math",
]

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="the sweep is a C++ program; g++ is not installed")


def _documented() -> dict[str, dict[str, str]]:
    """Rows of the table of measurements in docs/elementary.md, by function."""
    row = re.compile(r"\| `(\w+)` \| ([\d.]+) \| `(\w+)` \| (\d+) \| `(\w+)` \|")
    text = (ROOT / "docs" / "elementary.md").read_text()
    return {
        m[1]: {"worst_ulp": m[2], "worst_input": m[3], "not_nearest": m[4], "digest": m[5]} for m in row.finditer(text)
    }


DOCUMENTED = _documented()


@pytest.fixture(scope="session")
def sweep(tmp_path_factory):
    program = tmp_path_factory.mktemp("sweep") / "elementary_sweep"
    source = ROOT / "csrc" / "tests" / "elementary_sweep.cpp"
    command = ["g++", *FLAGS, "-Wall", "-Wextra", "-Werror", "-pthread", str(source), "-o", str(program), "-lquadmath"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr

    def run(*arguments: str) -> dict:
        done = subprocess.run([str(program), *arguments], capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        return json.loads(done.stdout)

    def evaluate(name: str, bits: np.ndarray) -> np.ndarray:
        done = subprocess.run([str(program), "--evaluate", name], input=bits.tobytes(), capture_output=True, check=True)
        return np.frombuffer(done.stdout, np.uint32)

    run.evaluate = evaluate
    return run


def _inputs(count: int, seed: int = 0) -> np.ndarray:
    """Bit patterns: thresholds and their neighbours, NaNs, subnormals; of the rest half random, half in [-128, 128)."""
    edges = [0, 1, 0x007FFFFF, 0x00800000, 0x7F7FFFFF, 0x7F800000, 0x7F800001, 0x7FC00000, 0x7FFFFFFF, 0x3F800000]
    edges += [elementary.TINY, elementary.RECIP_MAX, elementary.EXP2_LOWEST, elementary.EXP2_OVERFLOW]
    edges += [elementary.EXP_LOWEST, elementary.EXP_HIGHEST, elementary.LOG1P_TINY, elementary.ROUND]
    halves = (np.arange(-300, 301, dtype=np.float32) / 2).view(np.uint32)
    powers = np.arange(256, dtype=np.uint32) << 23
    near = np.concatenate([np.array(edges, np.uint32), halves, powers])
    near = np.concatenate([near - np.uint32(1), near, near + np.uint32(1), near + np.uint32(2)])
    near = np.concatenate([near, near ^ np.uint32(0x80000000)])
    generator = np.random.default_rng(seed)
    rest = count - len(near)
    random = generator.integers(0, 2**32, rest // 2, dtype=np.uint64).astype(np.uint32)
    middle = generator.uniform(-128, 128, rest - rest // 2).astype(np.float32).view(np.uint32)
    return np.concatenate([near, random, middle])


def _numpy(name: str, bits: np.ndarray) -> np.ndarray:
    return getattr(elementary, name)(bits.view(np.float32)).view(np.uint32)


def _equal(got: np.ndarray, want: np.ndarray, bits: np.ndarray) -> None:
    wrong = np.flatnonzero(got.reshape(-1) != want.reshape(-1))
    shown = [f"{bits.flat[i]:08x}: {got.flat[i]:08x}, not {want.flat[i]:08x}" for i in wrong[:5]]
    assert wrong.size == 0, f"{wrong.size} of {bits.size} differ; {shown}"


@pytest.mark.parametrize("name", NAMES)
def test_a_dense_sample_is_accurate_without_subnormals_and_blind_to_flushing(sweep, name):
    report = sweep("--function", name, "--stride", "523", "--offset", str(NAMES.index(name)))
    assert report["inputs"] > 8_000_000
    assert report["real_valued"] > 1_000_000
    assert report["worst_ulp"] <= float(DOCUMENTED[name]["worst_ulp"])
    for fault in ("special_wrong", "subnormal", "flush_differs", "unresolved"):
        assert report[fault] == 0, fault


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_every_float32_is_as_documented(sweep, name):
    report = sweep("--function", name, "--threads", "2")
    assert report["inputs"] == 2**32
    assert {key: str(report[key]) for key in ("worst_input", "not_nearest", "digest")} == {
        key: value for key, value in DOCUMENTED[name].items() if key != "worst_ulp"
    }
    assert f"{report['worst_ulp']:.4f}" == DOCUMENTED[name]["worst_ulp"]


def test_the_documented_accuracy_is_within_the_contract():
    assert set(DOCUMENTED) == set(NAMES)
    worst = {name: float(row["worst_ulp"]) for name, row in DOCUMENTED.items()}
    assert max(worst["exp2"], worst["exp"]) <= 1
    assert max(worst["recip"], worst["rsqrt"]) <= 2


@pytest.mark.parametrize("name", NAMES)
def test_numpy_and_cpp_have_the_same_bits(sweep, name):
    bits = _inputs(4_000_000)
    _equal(_numpy(name, bits), sweep.evaluate(name, bits), bits)


@pytest.mark.parametrize(
    ("name", "x", "want"),
    [
        (
            "exp2",
            [0, -0.0, 1, -100, 127, 128, np.inf, -100.00001, -np.inf],
            [1, 1, 2, 2.0**-100, 2.0**127, np.inf, np.inf, 0, 0],
        ),
        ("exp", [0, -0.0, 88.72284, np.inf, -69.31472, -np.inf], [1, 1, np.inf, np.inf, 0, 0]),
        (
            "recip",
            [0, -0.0, -1e-20, np.inf, -np.inf, 2.0**100, -(2.0**101)],
            [np.inf, np.inf, np.inf, 0, 0, 2.0**-100, 0],
        ),
        ("rsqrt", [0, -0.0, -1e-20, 1e-20, np.inf, 4, -1, -np.inf], [np.inf] * 4 + [0, 0.5, np.nan, np.nan]),
        ("sigmoid", [0, -0.0, 100, np.inf, -69.31472, -np.inf], [0.5, 0.5, 1, 1, 0, 0]),
        ("silu", [0, -0.0, 100, np.inf, 1e-20, -69.31472, -np.inf], [0, 0, 100, np.inf, 0, 0, 0]),
        ("softplus", [0, -0.0, 100, np.inf, -69.31472, -np.inf], [np.log(2), np.log(2), 100, np.inf, 0, 0]),
    ],
)
def test_special_values_have_the_documented_bits(name, x, want):
    want_bits = np.where(np.isnan(want), np.uint32(0x7FC00000), np.array(want, np.float32).view(np.uint32))
    _equal(_numpy(name, np.array(x, np.float32).view(np.uint32)), want_bits, np.array(x, np.float32).view(np.uint32))


@pytest.mark.parametrize("name", NAMES)
def test_every_nan_becomes_the_canonical_one(name):
    payload = np.random.default_rng(1).integers(1, 2**23, 10_000).astype(np.uint32) | np.uint32(0x7F800000)
    bits = np.concatenate([payload, payload | np.uint32(0x80000000)])
    assert (_numpy(name, bits) == 0x7FC00000).all()


def test_powers_of_two_are_exact():
    k = np.arange(-50, 101)
    power = np.ldexp(np.float32(1), k).astype(np.float32)
    inverse = np.ldexp(np.float32(1), -k).astype(np.float32)
    np.testing.assert_array_equal(elementary.recip(power), inverse)
    np.testing.assert_array_equal(elementary.recip(-power), -inverse)
    n = np.arange(-100, 128)
    np.testing.assert_array_equal(elementary.exp2(n.astype(np.float32)), np.ldexp(np.float32(1), n).astype(np.float32))
    four = np.ldexp(np.float32(1), 2 * np.arange(-25, 64)).astype(np.float32)
    np.testing.assert_array_equal(
        elementary.rsqrt(four), np.ldexp(np.float32(1), -np.arange(-25, 64)).astype(np.float32)
    )


def test_recip_positive_has_the_bits_of_recip_in_its_domain():
    bits = np.random.default_rng(2).integers(elementary.TINY, elementary.RECIP_MAX + 1, 2_000_000).astype(np.uint32)
    _equal(_numpy("recip_positive", bits), _numpy("recip", bits), bits)


def test_shapes_are_kept_and_other_dtypes_are_refused():
    x = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    assert elementary.exp(x.transpose(2, 0, 1)).shape == (4, 2, 3)
    assert elementary.exp(x[..., ::2]).tobytes() == elementary.exp(x)[..., ::2].tobytes()
    assert elementary.silu(np.array(2, np.float32)).shape == ()
    assert elementary.exp2(np.zeros((0, 3), np.float32)).shape == (0, 3)
    with pytest.raises(TypeError, match="exp: x is float64; it must be a float32 array"):
        elementary.exp(x.astype(np.float64))


ROWS = 4096
FEW_ROWS = 256


@pytest.mark.parametrize("name", NAMES)
def test_the_macro_has_numpys_bits_in_c(tmp_path, name):
    bits = _inputs(ROWS * kernels.COLUMNS, 3).reshape(ROWS, -1)
    y = np.empty_like(bits)
    harness.run_c(kernels.elementwise(name, ROWS), tmp_path, x=bits, y=y)
    _equal(y, _numpy(name, bits), bits)


@pytest.mark.parametrize("name", NAMES)
def test_the_macro_has_numpys_bits_in_cuda_source(tmp_path, name):
    bits = _inputs(FEW_ROWS * kernels.COLUMNS, 4).reshape(FEW_ROWS, -1)
    y = np.empty_like(bits)
    harness.run_cuda_source(kernels.elementwise_global(name, FEW_ROWS), tmp_path, FEW_ROWS, 128, x=bits, y=y)
    _equal(y, _numpy(name, bits), bits)


@pytest.mark.parametrize("name", NAMES)
def test_the_macro_has_numpys_bits_in_ascend_source(tmp_path, name):
    bits = _inputs(FEW_ROWS * kernels.COLUMNS, 5).reshape(FEW_ROWS, -1)
    y = np.empty_like(bits)
    harness.run_ascend_source(kernels.elementwise(name, FEW_ROWS), tmp_path, FEW_ROWS // 16, 128, x=bits, y=y)
    _equal(y, _numpy(name, bits), bits)


@pytest.mark.skipif(not harness.HAS_NVCC, reason="nvcc is not installed")
@pytest.mark.parametrize("name", NAMES)
def test_ptx_has_only_plain_fp32_arithmetic(tmp_path, name):
    ptx = harness.cuda_ptx(kernels.elementwise(name, 16), tmp_path)
    used = set(re.findall(r"^\s+(?:@!?%p\d+ )?(\w+(?:\.\w+)*\.f32\S*)", ptx, re.M))
    arithmetic = {op for op in used if not op.startswith(("mov", "ld", "st", "setp", "selp"))}
    assert arithmetic <= {
        "add.rn.f32",
        "sub.rn.f32",
        "mul.rn.f32",
        "add.f32",
        "sub.f32",
        "mul.f32",
        "cvt.rn.f32.s32",
    }, used
    assert "mul.rn.f32" in arithmetic
    assert "fma" not in ptx


def test_calls_nest_and_repeat_in_one_expression(tmp_path):
    bits = _inputs(FEW_ROWS * kernels.COLUMNS, 6).reshape(FEW_ROWS, -1)
    y = np.empty_like(bits)
    harness.run_c(kernels.softmax_like(FEW_ROWS), tmp_path, x=bits, y=y)
    x = bits.view(np.float32)
    with np.errstate(all="ignore"):
        want = elementary.exp2(x - np.float32(0.75)) * elementary.recip(np.float32(1) + elementary.exp2(x))
    ordered = ~np.isnan(want)  # the product of the kernel itself is not canonical
    _equal(y[ordered], want.view(np.uint32)[ordered], bits[ordered])
    assert np.isnan(y.view(np.float32)[~ordered]).all()
