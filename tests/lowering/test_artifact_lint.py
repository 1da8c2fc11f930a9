"""What exact mode forbids is found in generated code, and nothing else is."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

import forbidden_kernels

from kernelforge import backends
from kernelforge.lowering import ForbiddenArithmetic, lower, trace
from kernelforge.lowering import lower as lower_module
from kernelforge.lowering.artifact_lint import forbidden_in_source

GEMM = "kernelforge.ops.mxfp4_gemm.kernel:mxfp4_gemm"


@pytest.mark.parametrize(
    "call",
    ["expf(x)", "__expf(x)", "exp2f(x)", "sqrtf(x)", "rsqrt(x)", "fmaf(a, b, c)", "__frcp_rn(x)", "tanhf (x)"]
    + ["hexp2(x)", "asc_exp(y, x)", "asc_div(z, x, y)", "asc_sqrt(y, x)", "fmaxf(a, b)", "std::pow(a, b)"],
)
def test_forbidden_calls_are_found_with_their_line(call: str) -> None:
    (finding,) = forbidden_in_source(f"int f() {{\n  y = {call};\n}}")
    assert finding.startswith("source line 2: ")


@pytest.mark.parametrize(
    "line",
    ["kf_exp2_done(x);", "// expf(x)", "/* sqrtf(x) */", "y = max(a, b);", "k_exp = (e);", "asc_copy_gm2ub_align(a);"],
)
def test_other_code_passes(line: str) -> None:
    assert forbidden_in_source(line) == []


def test_every_backend_lints_what_it_lowers(monkeypatch: pytest.MonkeyPatch) -> None:
    # A pass that slips a division and an exp in, as a compiler's rewrite would: the verifier has run before it.
    module = sys.modules[lower_module.__module__]
    monkeypatch.setattr(module, "verify", lambda function: None)
    owner = backends.backend("cpu")
    for kernel in (forbidden_kernels.division(), forbidden_kernels.exponential()):
        with pytest.raises(ForbiddenArithmetic):
            lower(kernel, owner, owner.default_arch("cpu"))


@pytest.mark.parametrize("name", sorted(backends.backends()))
def test_the_gemm_passes_on_every_backend(name: str) -> None:
    owner = backends.backend(name)
    shape = {"N": 64, "K": 128, "experts": 2, "a_format": "e4m3_f32", "out_dtype": "float16"}
    tiles = {"block_M": 32, "block_N": 64, "block_K": 128, "threads": 128, "num_stages": 2}
    lowered = lower(trace(GEMM, {**shape, **tiles}), owner, owner.archs()[0])
    assert forbidden_in_source(lowered.source) == []
