"""Each asc_* call against NumPy, with the layouts of the Ascend 950's memories written out independently."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))

from ascendc import CHECKED, L2, load, mixed, run, store, then, vector

from kernelforge_ascend.virtual import VirtualFault

rng = np.random.default_rng(3)


def int8(*shape: int) -> np.ndarray:
    return rng.integers(-128, 128, shape, dtype=np.int8)


def fractal(matrix: np.ndarray) -> np.ndarray:
    """NZ layout: (r, c) -> [c / C0, r / 16, r % 16, c % C0], C0 = 32 bytes; [rows, columns] in multiples of both."""
    rows, columns = matrix.shape
    c0 = 32 // matrix.itemsize
    return np.ascontiguousarray(matrix.reshape(rows // 16, 16, columns // c0, c0).transpose(2, 0, 1, 3))


def dot(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return a.astype(np.int32) @ b.astype(np.int32).T


# -- Rows between global memory and UB --------------------------------------------------------------------------------


def test_rows_to_ub_keep_their_strides():
    x = int8(6, 80)
    body = (
        f"    asc_copy_gm2ub_align((__ubuf__ uint8_t*)(ub), (__gm__ uint8_t*)(X + 3), "
        f"5, 33, 0, 0, 0, {L2}, 80, 64);\n"
        + then("MTE2", "MTE3")
        + "    asc_copy_ub2gm_align((__gm__ uint8_t*)(Y), (__ubuf__ uint8_t*)(ub), 5, 33, 0, 40, 64);\n"
    )
    y = np.full((5, 40), 9, np.int8)
    run(vector("__gm__ int8_t* X, __gm__ int8_t* Y", body), [x, y])
    np.testing.assert_array_equal(y[:, :33], x[:5, 3:36])
    assert (y[:, 33:] == 9).all()


def test_right_padding_fills_each_row():
    x = rng.integers(0, 1000, (3, 5), dtype=np.int32)
    body = (
        "    asc_set_copy_pad_val((uint32_t)77);\n"
        f"    asc_copy_gm2ub_align((__ubuf__ uint32_t*)(ub), (__gm__ uint32_t*)(X), 3, 20, 0, 3, 1, {L2}, 20, 32);\n"
        + then("MTE2", "MTE3")
        + store("Y", 96)
    )
    y = np.zeros((3, 8), np.int32)
    run(vector("__gm__ int32_t* X, __gm__ int32_t* Y", body), [x, y])
    np.testing.assert_array_equal(y, np.pad(x, ((0, 0), (0, 3)), constant_values=77))


# -- The cube's memories ----------------------------------------------------------------------------------------------

GEMM_PARAMETERS = "__gm__ int8_t* A, __gm__ int8_t* B, __gm__ int32_t* C"


def raw_operand(name: str, nbytes: int, at: int) -> str:
    """A vector core puts bytes of global memory into L1 as they are."""
    return (
        load(name, nbytes)
        + then("MTE2", "MTE3")
        + f"    asc_copy_ub2l1((__cbuf__ void*)(l1 + {at}), (__ubuf__ void*)(ub), 1, {nbytes // 32}, 0, 0);\n"
        + then("MTE3", "MTE2")
    )


def product(m: int, n: int, k: int, b_at: int, out: str = "") -> str:
    """L1 operands in fractal layout to C in global memory."""
    out = out or f"    asc_copy_l0c2gm(C, l0c, {n}, {m}, {n}, {m}, 0, 0, 0, 0, 0, 1, 0, 0);\n"
    return (
        "    asc_copy_l12l0a((__ca__ int8_t*)0, (__cbuf__ int8_t*)l1, "
        f"0, 0, {m // 16}, {k // 32}, {m // 16}, {m // 16});\n"
        f"    asc_copy_l12l0b((__cb__ int8_t*)0, (__cbuf__ int8_t*)(l1 + {b_at}), "
        f"0, 0, {n // 16}, {k // 32}, {n // 16}, {n // 16});\n"
        + then("MTE1", "M")
        + f"    asc_mmad(l0c, (__ca__ int8_t*)0, (__cb__ int8_t*)0, {m}, {k}, {n}, 0, true, false, true);\n"
        + then("M", "FIX")
        + out
    )


def test_product_of_operands_laid_out_by_numpy():
    m, n, k = 32, 48, 96
    a, b = int8(m, k), int8(n, k)
    vectors = (
        "    if (sid == 0) {\n"
        + raw_operand("A", a.size, 0)
        + raw_operand("B", b.size, 8192)
        + "    asc_sync_intra_arrive(PIPE_MTE2, 3);\n    }\n"
    )
    cube = "    asc_sync_intra_wait(PIPE_MTE1, 3);\n" + product(m, n, k, 8192)
    c = np.zeros((m, n), np.int32)
    run(mixed(GEMM_PARAMETERS, cube, vectors), [fractal(a), fractal(b), c])
    np.testing.assert_array_equal(c, dot(a, b))


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("k", [64, 40])
def test_loads_into_l1_lay_out_fractals(transposed, k):
    """A comes through the call, B laid out by NumPy: a wrong order along k would not cancel."""
    m, n, wide = 32, 16, 64
    a, b = int8(m, k), int8(n, wide)
    stored = np.ascontiguousarray(np.pad(a, ((0, 0), (0, 8)))) if not transposed else np.ascontiguousarray(a.T)
    stride, call = (k + 8, "nd2nz") if not transposed else (m, "dn2nz")
    vectors = (
        "    if (sid == 1) {\n" + raw_operand("B", b.size, 8192) + "    asc_sync_intra_arrive(PIPE_MTE2, 3);\n    }\n"
    )
    cube = (
        f"    asc_set_gm2l1_nz_para(1, 1, static_cast<uint16_t>({m}), 0);\n"
        f"    asc_copy_gm2l1_{call}((__cbuf__ int8_t*)l1, A, {stride}, {L2}, {m}, {k}, 0, 0);\n"
        + then("MTE2", "MTE1")
        + "    asc_sync_intra_wait(PIPE_MTE1, 19);\n"
        + product(m, n, wide, 8192)
    )
    c = np.zeros((m, n), np.int32)
    run(mixed(GEMM_PARAMETERS, cube, vectors), [stored, fractal(b), c])
    np.testing.assert_array_equal(c, dot(np.pad(a, ((0, 0), (0, wide - k))), b))


def test_l1_blocks_are_addressed_by_fractal():
    """Rows 16 to 47 and columns 32 to 95 of a 64 x 128 operand."""
    a, b = int8(64, 128), int8(16, 64)
    vectors = (
        "    if (sid == 0) {\n"
        + raw_operand("A", a.size, 0)
        + raw_operand("B", b.size, 8192)
        + "    asc_sync_intra_arrive(PIPE_MTE2, 3);\n    }\n"
    )
    cube = (
        "    asc_sync_intra_wait(PIPE_MTE1, 3);\n"
        "    asc_copy_l12l0a((__ca__ int8_t*)0, (__cbuf__ int8_t*)l1, 1, 1, 2, 2, 4, 2);\n"
        "    asc_copy_l12l0b((__cb__ int8_t*)0, (__cbuf__ int8_t*)(l1 + 8192), 0, 0, 1, 2, 1, 1);\n"
        + then("MTE1", "M")
        + "    asc_mmad(l0c, (__ca__ int8_t*)0, (__cb__ int8_t*)0, 32, 64, 16, 0, true, false, true);\n"
        + then("M", "FIX")
        + "    asc_copy_l0c2gm(C, l0c, 16, 32, 16, 32, 0, 0, 0, 0, 0, 1, 0, 0);\n"
    )
    c = np.zeros((32, 16), np.int32)
    run(mixed(GEMM_PARAMETERS, cube, vectors), [fractal(a), fractal(b), c])
    np.testing.assert_array_equal(c, dot(a[16:48, 32:96], b))


def cube_loads(m: int, n: int, k: int, element: str = "int8_t") -> str:
    pitch = k if element == "int8_t" else 2 * k
    return (
        f"    asc_set_gm2l1_nz_para(1, 1, static_cast<uint16_t>({m}), 0);\n"
        f"    asc_copy_gm2l1_nd2nz((__cbuf__ {element}*)l1, A, {pitch}, {L2}, {m}, {k}, 0, 0);\n"
        f"    asc_set_gm2l1_nz_para(1, 1, static_cast<uint16_t>({n}), 0);\n"
        f"    asc_copy_gm2l1_nd2nz((__cbuf__ {element}*)(l1 + 8192), B, {pitch}, {L2}, {n}, {k}, 0, 0);\n"
        + then("MTE2", "MTE1")
    )


def test_sums_accumulate_unless_cleared():
    m, n, k = 16, 32, 64
    a, b = int8(m, k), int8(n, k)
    again = "    asc_mmad(l0c, (__ca__ int8_t*)0, (__cb__ int8_t*)0, 16, 64, 32, 0, true, false, false);\n" + then(
        "M", "FIX", 1
    )
    out = again + "    asc_copy_l0c2gm(C, l0c, 32, 16, 32, 16, 0, 0, 0, 0, 0, 1, 0, 0);\n"
    c = np.zeros((m, n), np.int32)
    run(mixed(GEMM_PARAMETERS, cube_loads(m, n, k) + product(m, n, k, 8192, out), ""), [a, b, c])
    np.testing.assert_array_equal(c, 2 * dot(a, b))


def test_tilelang_s_own_gemm_template_runs_unchanged():
    """Its sub-K loop, double buffering and locks: 48 x 64 x 256 in steps of 64."""
    m, n, k = 48, 64, 128
    a, b = int8(m, k), int8(n, k)
    cube = (
        cube_loads(m, n, k) + f"    ascend_gemm_l1<{m}, {k}, {n}, 32, true, int8_t>("
        "l0c, (__cbuf__ int8_t*)l1, (__cbuf__ int8_t*)(l1 + 8192), 1);\n"
        + then("M", "FIX")
        + f"    asc_copy_l0c2gm(C, l0c, {n}, {m}, {n}, {m}, 0, 0, 0, 0, 0, 1, 0, 0);\n"
    )
    c = np.zeros((m, n), np.int32)
    run(mixed(GEMM_PARAMETERS, cube, ""), [a, b, c])
    np.testing.assert_array_equal(c, dot(a, b))


def test_sums_of_bfloat16_products_round_one_by_one_and_only_in_native_mode():
    m, n, k = 16, 32, 64
    bits = rng.standard_normal((m + n, k)).astype(np.float32).view(np.uint32) >> 16
    values = (bits << 16).view(np.float32)
    a, b = bits[:m].astype(np.uint16), bits[m:].astype(np.uint16)
    cube = (
        cube_loads(m, n, k, "bfloat16_t") + f"    ascend_gemm_l1<{m}, {k}, {n}, 32, true, bfloat16_t>("
        "(__cc__ float*)l0c, (__cbuf__ bfloat16_t*)l1, (__cbuf__ bfloat16_t*)(l1 + 8192), 1);\n"
        + then("M", "FIX")
        + f"    asc_copy_l0c2gm(C, (__cc__ float*)l0c, {n}, {m}, {n}, {m}, 0, 0, 0, 0, 0, 1, 0, 0);\n"
    )
    source = mixed("__gm__ bfloat16_t* A, __gm__ bfloat16_t* B, __gm__ float* C", cube, "")
    want = np.zeros((m, n), np.float32)
    for q in range(k):
        want += values[:m, None, q] * values[None, m:, q]
    found = np.zeros((m, n), np.float32)
    run(source, [a, b, found], rounded=True)
    np.testing.assert_array_equal(found, want)
    with pytest.raises(VirtualFault, match="native mode only"):
        run(source, [a, b, found])


@pytest.mark.parametrize(("dual", "sub_block"), [(0, 0), (0, 1), (1, 0), (2, 0)])
def test_sums_reach_the_vector_cores(dual, sub_block):
    m, n, k = 32, 64, 32
    a, b = int8(m, k), int8(n, k)
    rows, columns = (m // 2 if dual == 1 else m), (n // 2 if dual == 2 else n)
    pitch = columns + 8
    out = (
        f"    asc_copy_l0c2ub((__ubuf__ int32_t*)(ub + 64), l0c, {n}, {m}, {pitch}, {m}, "
        f"{sub_block}, {dual}, 0, 0, 0, 0, 1, 0, 0);\n"
    )
    receivers = [0, 1] if dual else [sub_block]
    for core in receivers:
        out += f"    asc_sync_intra_arrive(PIPE_FIX, {core * 16 + 5});\n"
    guard = " || ".join(f"sid == {core}" for core in receivers)
    vectors = f"""    if ({guard}) {{
    asc_sync_intra_wait(PIPE_MTE3, 5);
    asc_copy_ub2gm_align((__gm__ uint8_t*)(C + sid * {rows * columns}), (__ubuf__ uint8_t*)(ub + 64),
      {rows}, {columns * 4}, 0, {columns * 4}, {pitch * 4});
    }}
"""
    c = np.zeros((2, rows, columns), np.int32)
    run(mixed(GEMM_PARAMETERS, cube_loads(m, n, k) + product(m, n, k, 8192, out), vectors), [a, b, c])
    full = dot(a, b)
    halves = {1: [full[:rows], full[rows:]], 2: [full[:, :columns], full[:, columns:]]}
    for core in receivers:
        np.testing.assert_array_equal(c[core], halves[dual][core] if dual else full)


def test_fills_of_l1_leave_the_gaps():
    m, n, k = 16, 16, 96
    a, b = int8(m, k), int8(n, k)
    cube = (
        f"""    asc_set_gm2l1_nz_para(1, 1, static_cast<uint16_t>({m}), 0);
    asc_copy_gm2l1_nd2nz((__cbuf__ int8_t*)l1, A, {k}, {L2}, {m}, {k}, 0, 0);
    asc_set_gm2l1_nz_para(1, 1, static_cast<uint16_t>({n}), 0);
    asc_copy_gm2l1_nd2nz((__cbuf__ int8_t*)(l1 + 8192), B, {k}, {L2}, {n}, {k}, 0, 0);
    asc_sync_pipe(PIPE_MTE2);
    asc_fill_l1((__cbuf__ uint16_t*)((__cbuf__ uint8_t*)l1 + 4 * 32), (uint32_t)(0x0303),
      {{ .repeat = 2, .blk_num = 3, .dst_gap = 13}});
"""
        + then("MTE2", "MTE1")
        + product(m, n, k, 8192)
    )
    filled = a.copy()
    filled[4:7, :64] = 3  # rows 4 to 6 of the first two column groups
    c = np.zeros((m, n), np.int32)
    run(mixed(GEMM_PARAMETERS, cube, ""), [a, b, c])
    np.testing.assert_array_equal(c, dot(filled, b))


# -- Vector functions -------------------------------------------------------------------------------------------------


def threads(body: str, count: int = 128) -> tuple[str, str]:
    """A vector function over x (int32 in UB at 0) and its call."""
    function = (
        "__simt_vf__ __launch_bounds__(128) inline void work(__ubuf__ uint8_t* ub) {\n"
        "  __ubuf__ int32_t* x = (__ubuf__ int32_t*)ub;\n  int32_t t = (int32_t)threadIdx.x;\n" + body + "}\n"
    )
    return function, f"    asc_vf_call<work>(cce::dim3({count}), ub);\n"


def apply(body: str, x: np.ndarray) -> np.ndarray:
    function, call = threads(body, x.size)
    program = load("X", x.nbytes) + then("MTE2", "V") + call + then("V", "MTE3") + store("Y", x.nbytes)
    y = np.zeros_like(x)
    run(vector("__gm__ int32_t* X, __gm__ int32_t* Y", program, function), [x, y])
    return y


def test_threads_meet_at_barriers():
    x = rng.integers(-1000, 1000, 128, dtype=np.int32)
    y = apply("  int32_t v = x[127 - t];\n  asc_syncthreads();\n  x[t] = v;\n", x)
    np.testing.assert_array_equal(y, x[::-1])


def test_threads_meet_in_every_round_of_a_loop():
    x = rng.integers(-1000, 1000, 64, dtype=np.int32)
    body = """  for (int32_t step = 32; step > 0; step = step / 2) {
    if (t < step) x[t] = x[t] + x[t + step];
    asc_syncthreads();
  }
"""
    assert apply(body, x)[0] == x.sum()


@pytest.mark.parametrize(
    ("call", "partner"),
    [
        ("asc_shfl(v, 5)", lambda lane: 5),
        ("asc_shfl_xor(v, 3)", lambda lane: lane ^ 3),
        ("asc_shfl_up(v, 4)", lambda lane: lane - 4 if lane >= 4 else lane),
        ("asc_shfl_down(v, 4)", lambda lane: lane + 4 if lane < 28 else lane),
    ],
)
def test_lanes_exchange_within_their_warp(call, partner):
    x = rng.integers(-1000, 1000, 96, dtype=np.int32)
    y = apply(f"  int32_t v = x[t];\n  x[t] = {call};\n", x)
    want = [x[t // 32 * 32 + partner(t % 32)] for t in range(96)]
    np.testing.assert_array_equal(y, want)


def test_ballot_collects_one_bit_per_lane():
    x = rng.integers(0, 2, 64, dtype=np.int32)
    y = apply("  x[t] = (int32_t)asc_ballot(x[t] != 0);\n", x)
    for warp in range(2):
        mask = sum(int(bit) << lane for lane, bit in enumerate(x[warp * 32 : warp * 32 + 32]))
        assert (y[warp * 32 : warp * 32 + 32].view(np.uint32) == mask).all()


def test_atomics_lose_no_addition():
    x = np.ones(128, np.int32)
    body = "  int32_t v = x[t];\n  asc_syncthreads();\n  if (t > 0) asc_atomic_add(x, v);\n"
    assert apply(body, x)[0] == 128


def test_atomics_of_different_blocks_on_global_memory():
    function = "__simt_vf__ inline void work(__gm__ int32_t* y) { asc_atomic_add(y + threadIdx.x % 2, 1); }\n"
    y = np.zeros(2, np.int32)
    for schedule in CHECKED:
        y[:] = 0
        run(vector("__gm__ int32_t* Y", "    asc_vf_call<work>(cce::dim3(64), Y);\n", function), [y], 16, [schedule])
        assert y.tolist() == [512, 512]


def test_scalar_program_reads_ub_and_global_memory():
    body = (
        load("X", 32)
        + then("MTE2", "S")
        + """    int32_t offset = ((__ubuf__ int32_t*)ub)[2] + X[3];
    asc_sync_notify(PIPE_S, PIPE_MTE3, static_cast<event_t>(0));
    asc_sync_wait(PIPE_S, PIPE_MTE3, static_cast<event_t>(0));
"""
        + store("Y + offset", 32)
    )
    x, y = np.arange(8, dtype=np.int32), np.zeros(16, np.int32)
    run(vector("__gm__ int32_t* X, __gm__ int32_t* Y", body), [x, y])
    np.testing.assert_array_equal(y[5:13], x)
