"""Every call the host headers offer has a test, and generated code uses no other."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))

from ascendc import L2, load, mixed, run, store, then, vector

from kernelforge.lowering import lower, trace
from kernelforge.ops.spec import specs
from kernelforge_ascend.backend import VIRTUAL, VIRTUAL_ARCH, AscendBackend
from kernelforge_ascend.virtual import VirtualFault, source_directory

XY = "__gm__ int32_t* X, __gm__ int32_t* Y"
rng = np.random.default_rng(29)


def offered() -> set[str]:
    """Names of the calls that the headers define."""
    include = source_directory() / "include"
    text = (include / "c_api" / "asc_simd.h").read_text() + (include / "kf_virtual" / "simt.h").read_text()
    functions = re.findall(r"\binline (?:void|T|int|uint32_t) (asc_\w+)\(", text)
    return {*functions, *re.findall(r"KF_ATOMIC\((asc_\w+)", text)}


def test_every_call_has_a_test():
    tests = "".join(path.read_text() for path in Path(__file__).parent.glob("*.py"))
    calls = offered()
    assert len(calls) > 40
    assert [call for call in sorted(calls) if not re.search(rf"\b{call}\b", tests)] == []


@pytest.mark.slow
@pytest.mark.parametrize("op", sorted(specs()))
def test_generated_sources_use_only_these_calls(op):
    """No SIMD vector function among them: kernels become SIMT vector functions (``passes/vector_regions.py``)."""
    backend = AscendBackend()
    for variant, spec in specs()[op].kernel_specs(VIRTUAL).items():
        source = lower(trace(spec.builder, dict(spec.parameters)), backend, VIRTUAL_ARCH).source
        assert set(re.findall(r"\b(asc_\w+)\s*[<(]", source)) - {"asc_vf_call"} <= offered() | TYPES, variant
        assert "__simt_vf__" in source
        assert "__simd_vf__" not in source
        assert "simd_inst.h" not in source


TYPES = {f"asc_{name}" for name in ("load_l2_cache_mode", "store_l2_cache_mode", "dual_dst_mode", "unit_flag_mode")}
TYPES |= {"asc_quant_mode", "asc_relu_pre_mode", "asc_fill_l1_config"}


def applied(body: str, x: np.ndarray, nbytes: int) -> np.ndarray:
    """What 64 threads leave of ``x`` in UB."""
    function = (
        "__simt_vf__ inline void work(__ubuf__ uint8_t* ub) {\n"
        f"  __ubuf__ int32_t* x = (__ubuf__ int32_t*)ub;\n  int32_t t = (int32_t)threadIdx.x;\n{body}}}\n"
    )
    program = (
        load("X", nbytes)
        + then("MTE2", "V")
        + "    asc_vf_call<work>(cce::dim3(64), ub);\n"
        + then("V", "MTE3")
        + store("Y", nbytes)
    )
    y = np.zeros_like(x)
    run(vector(XY, program, function), [x, y])
    return y


@pytest.mark.parametrize(
    ("call", "reduce"),
    [
        ("asc_atomic_max", np.max),
        ("asc_atomic_min", np.min),
        ("asc_atomic_or", np.bitwise_or.reduce),
        ("asc_atomic_and", np.bitwise_and.reduce),
        ("asc_atomic_xor", np.bitwise_xor.reduce),
    ],
)
def test_atomics_combine_every_thread_s_value(call, reduce):
    x = rng.integers(-(2**31), 2**31, 72).astype(np.int32)
    body = f"  int32_t v = x[8 + t];\n  asc_threadfence();\n  asc_syncthreads();\n  {call}(x, v);\n"
    assert applied(body, x, x.nbytes)[0] == reduce(np.append(x[8:], x[0]))


def test_the_scalar_program_passes_the_data_cache():
    """Loads and stores of every width, by TileLang's own templates too; ``asc_sync`` waits for every pipe."""
    body = (
        load("X", 64)
        + "    asc_sync();\n"
        + "    int32_t sum = ((__ubuf__ int32_t*)ub)[1] + asc_load_dev(X + 2);\n"
        + "    asc_store_dev(Y, sum);\n"
        + "    tl::write_gm_bypass_dcache((__gm__ uint8_t*)(Y + 1), (uint8_t)200);\n"
        + "    tl::write_gm_bypass_dcache((__gm__ uint16_t*)(Y + 2), (uint16_t)60000);\n"
        + "    tl::write_gm_bypass_dcache((__gm__ int64_t*)(Y + 4), tl::read_gm_bypass_dcache((__gm__ int64_t*)X));\n"
    )
    x, y = rng.integers(-1000, 1000, 16, dtype=np.int32), np.zeros(8, np.int32)
    source = vector(XY, body).replace("gemm.h>\n", "gemm.h>\n#include <tl_templates/ascend/dcache_bypass.h>\n", 1)
    run(source, [x, y])
    assert y.tolist() == [x[1] + x[2], 200, 60000, 0, x[0], x[1], 0, 0]


def test_locks_order_the_pipes_that_share_a_buffer():
    body = ""
    for turn in range(3):
        body += "    asc_lock(PIPE_MTE2, 4);\n" + load(f"X + {turn * 16}", 64) + "    asc_unlock(PIPE_MTE2, 4);\n"
        body += "    asc_lock(PIPE_MTE3, 4);\n" + store(f"Y + {turn * 16}", 64) + "    asc_unlock(PIPE_MTE3, 4);\n"
    x, y = rng.integers(0, 99, 48, dtype=np.int32), np.zeros(48, np.int32)
    run(vector(XY, body), [x, y])
    np.testing.assert_array_equal(y, x)


SUMS = "l0c, 16, 16, 16, 16, 0"
OPERANDS = "(__cc__ float*)0, (__ca__ half*)0, (__cb__ half*)0, 16, 64, 16, 0, true, false, true"
REFUSED = {
    "asc_copy_l12l0b_transpose": "asc_copy_l12l0b_transpose((__cb__ int8_t*)0, (__cbuf__ int8_t*)l1, 0, 0, 1, 1, 1, 1)",
    "asc_copy_l12l0a_mx": "asc_copy_l12l0a_mx(0, (__cbuf__ fp8_e8m0_t*)l1, 0, 0, 1, 1, 1, 1)",
    "asc_copy_l12l0b_mx": "asc_copy_l12l0b_mx(0, (__cbuf__ fp8_e8m0_t*)l1, 0, 0, 1, 1, 1, 1)",
    "asc_mmad_mx": f"asc_mmad_mx({OPERANDS})",
    "asc_mmad of anything but int8": f"asc_mmad({OPERANDS})",
    "asc_set_l0c_copy_nz_para of several": "asc_set_l0c_copy_nz_para(2, 0, 0)",
    "asc_set_gm2l1_nz_para of several": "asc_set_gm2l1_nz_para(2, 1, static_cast<uint16_t>(16), 0)",
    "asc_copy_l0c2ub other than": f"asc_copy_l0c2ub((__ubuf__ int32_t*)ub, {SUMS}, 0, 0, 1, 0, 0, 1, 0, 0)",
    "asc_copy_l0c2gm other than": f"asc_copy_l0c2gm(X, {SUMS}, 0, 1, 0, 0, 1, 0, 0)",
    "asc_lock(ASC_LOCK_NON_BLOCK)": "asc_lock(PIPE_M, 0, ASC_LOCK_NON_BLOCK)",
}


@pytest.mark.parametrize("name", REFUSED)
def test_engines_without_exact_sums_and_unused_modes_are_refused_with_their_line(name):
    source = mixed(XY, f"    asc_set_l0c_copy_nz_para(1, 0, 0);\n    {REFUSED[name]};\n", "")
    line = next(i for i, text in enumerate(source.split("\n"), 1) if REFUSED[name] in text)
    with pytest.raises(VirtualFault, match=rf":{line}\b") as refused:
        run(source, [np.zeros(64, np.int32), np.zeros(64, np.int32)])
    assert name in str(refused.value)


def test_loads_of_columns_into_l1_are_for_the_cube_core():
    call = f"    asc_copy_gm2l1_dn2nz((__cbuf__ int32_t*)0, X, 16, {L2}, 16, 16, 0, 0);\n"
    with pytest.raises(VirtualFault, match="issued on a vector core"):
        run(vector(XY, call), [np.zeros(256, np.int32), np.zeros(64, np.int32)])
