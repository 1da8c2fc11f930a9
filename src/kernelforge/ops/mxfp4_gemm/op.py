"""MXFP4 GEMM: public functions, checks, torch registration."""

from __future__ import annotations

import functools
from typing import NamedTuple

import torch

from ...backends import Executable
from ...backends.capabilities import EXACT_DOT_INT8, FP32_IEEE, INT32
from ...runtime import KernelSpec, executable, schedule
from ..support import Meta, bytes_of, choose_device, define, expect, meta, require_numerics, require_tensor

BLOCK = 32
GROUP = 128
OUT_DTYPES = (torch.bfloat16, torch.float16, torch.float32)
NEEDS = frozenset({EXACT_DOT_INT8, FP32_IEEE, INT32})
BUILDER = "kernelforge.ops.mxfp4_gemm.kernel:mxfp4_gemm"


class Problem(NamedTuple):
    """A checked call."""

    M: int
    N: int
    K: int
    experts: int
    a_format: str


def mxfp4_gemm(
    a: torch.Tensor,
    a_scale: torch.Tensor | None,
    w: torch.Tensor,
    w_scale: torch.Tensor,
    out_dtype: torch.dtype = torch.bfloat16,
    *,
    numerics: str = "exact",
    backend: str | None = None,
) -> torch.Tensor:
    """out[..., N] = A[..., K] W[N, K]^T with MXFP4 weights; the same bits on every device.

    Args:
        a: activations [..., K], K a multiple of 32, contiguous: packed FP4 (uint8 or ``float4_e2m1fn_x2``, [..., K/2],
            even index in the low nibble), ``float8_e4m3fn``, or ``bfloat16``.
        a_scale: for packed FP4, E8M0 bytes [..., K/32] (uint8 or ``float8_e8m0fnu``); for FP8, the same, or float32
            [..., ceil(K/128)]; None for bfloat16.
        w: packed FP4 weights [N, K/2].
        w_scale: E8M0 bytes [N, K/32].
        out_dtype: ``bfloat16``, ``float16`` or ``float32``.
        numerics: ``"exact"``, the contract of ``docs/numerics.md`` (C1 to C4, C8).
        backend: None for the tensors' own device, or a device name such as ``"cpu"``, ``"cuda:virtual"``.

    Returns:
        [..., N] of ``out_dtype`` on the device of ``a``.

    Raises:
        TypeError, ValueError: an argument is wrong; the message names it, what was given and what is wanted.
        DeviceUnavailable: the device cannot run here.
    """
    require_numerics("mxfp4_gemm", numerics)
    for name, value in (("a", a), ("w", w), ("w_scale", w_scale)):
        require_tensor(name, value)
    return _dense(bytes_of(a), bytes_of(a_scale), bytes_of(w), bytes_of(w_scale), out_dtype, backend)


def grouped_mxfp4_gemm(
    a: torch.Tensor,
    a_scale: torch.Tensor | None,
    w: torch.Tensor,
    w_scale: torch.Tensor,
    group_offsets: torch.Tensor,
    out_dtype: torch.dtype = torch.bfloat16,
    *,
    numerics: str = "exact",
    backend: str | None = None,
) -> torch.Tensor:
    """Rows of A sorted by expert, each group times its expert's weights; the bits of one :func:`mxfp4_gemm` per group.

    Args:
        a, a_scale: as in :func:`mxfp4_gemm`, two-dimensional: M rows.
        w: packed FP4 weights [E, N, K/2].
        w_scale: E8M0 bytes [E, N, K/32].
        group_offsets: int32 [E + 1], ascending from 0 to M; group e is rows ``[offsets[e], offsets[e + 1])`` and may be
            empty. Checked on the CPU; on another device the caller answers for its content.
        out_dtype, numerics, backend: as in :func:`mxfp4_gemm`.

    Returns:
        [M, N] of ``out_dtype``.

    Raises:
        TypeError, ValueError, DeviceUnavailable: as in :func:`mxfp4_gemm`.
    """
    require_numerics("grouped_mxfp4_gemm", numerics)
    for name, value in (("a", a), ("w", w), ("w_scale", w_scale), ("group_offsets", group_offsets)):
        require_tensor(name, value)
    return _grouped(bytes_of(a), bytes_of(a_scale), bytes_of(w), bytes_of(w_scale), group_offsets, out_dtype, backend)


def _check(
    a: Meta, a_scale: Meta | None, w: Meta, w_scale: Meta, offsets: Meta | None, out_dtype: torch.dtype
) -> Problem:
    device = a.device
    if out_dtype not in OUT_DTYPES:
        raise TypeError(f"out_dtype: given {out_dtype}, wanted one of {', '.join(map(str, OUT_DTYPES))}")
    experts = () if offsets is None else ("E",)
    w = expect("w", w, (torch.uint8,), (*experts, "N", "K/2"), device)
    N, K = w.shape[-2], 2 * w.shape[-1]
    if K == 0 or K % BLOCK:
        raise ValueError(f"w: given {w}, so K = {K}; K must be a positive multiple of {BLOCK}")
    expect("w_scale", w_scale, (torch.uint8,), (*w.shape[:-1], K // BLOCK), device)
    if not a.shape or (offsets is not None and len(a.shape) != 2):
        raise ValueError(f"a: given {a}, wanted {'[M, K]' if offsets is not None else '[..., K]'}")
    rows = a.shape[:-1]
    a_format = _a_format(a, a_scale)
    stored_K = K // 2 if a_format == "e2m1" else K
    expect("a", a, (a.dtype,), (*rows, stored_K), device)
    if a_format == "bf16":
        if a_scale is not None:
            raise ValueError(f"a_scale: given {a_scale}, but bfloat16 activations carry no scale; pass None")
    elif a_format == "e4m3_f32":
        expect("a_scale", a_scale, (torch.float32,), (*rows, -(-K // GROUP)), device)
    else:
        expect("a_scale", a_scale, (torch.uint8,), (*rows, K // BLOCK), device)
    if offsets is not None:
        expect("group_offsets", offsets, (torch.int32,), (w.shape[0] + 1,), device)
        if w.shape[0] == 0:
            raise ValueError(f"w: given {w}; at least one expert is wanted")
    return Problem(rows.numel(), N, K, w.shape[0] if offsets is not None else 0, a_format)


def _a_format(a: Meta, a_scale: Meta | None) -> str:
    if a.dtype == torch.uint8:
        return "e2m1"
    if a.dtype == torch.bfloat16:
        return "bf16"
    if a.dtype == torch.float8_e4m3fn:
        return "e4m3_f32" if a_scale is not None and a_scale.dtype == torch.float32 else "e4m3_e8m0"
    raise TypeError(f"a: given {a}, wanted packed FP4 (uint8), float8_e4m3fn or bfloat16")


@functools.lru_cache(maxsize=4096)
def _plan(
    a: Meta,
    a_scale: Meta | None,
    w: Meta,
    w_scale: Meta,
    offsets: Meta | None,
    out_dtype: torch.dtype,
    backend: str | None,
) -> tuple[Executable | None, torch.Size]:
    """Checks and kernel look-up for one combination of types and shapes; None where there is nothing to compute."""
    problem = _check(a, a_scale, w, w_scale, offsets, out_dtype)
    shape = torch.Size((*a.shape[:-1], problem.N))
    device = choose_device(backend, a.device)
    if problem.M == 0 or problem.N == 0:
        return None, shape
    tiles = schedule("mxfp4_gemm", device, **problem._asdict())
    spec = KernelSpec.of(
        BUILDER,
        NEEDS,
        N=problem.N,
        K=problem.K,
        experts=problem.experts,
        a_format=problem.a_format,
        out_dtype=str(out_dtype).removeprefix("torch."),
        **tiles,
    )
    return executable(spec, device), shape


def _run(
    a: torch.Tensor,
    a_scale: torch.Tensor | None,
    w: torch.Tensor,
    w_scale: torch.Tensor,
    offsets: torch.Tensor | None,
    out_dtype: torch.dtype,
    backend: str | None,
) -> torch.Tensor:
    run, shape = _plan(meta(a), meta(a_scale), meta(w), meta(w_scale), meta(offsets), out_dtype, backend)
    out = torch.empty(shape, dtype=out_dtype, device=a.device)
    if run is None:
        return out
    scale = _no_scale(a.device) if a_scale is None else a_scale
    if offsets is not None:
        run(a, scale, w.flatten(0, 1), w_scale.flatten(0, 1), offsets, out)
    elif len(shape) == 2:
        run(a, scale, w, w_scale, out)
    else:
        run(_rows(a), scale if a_scale is None else _rows(scale), w, w_scale, _rows(out))
    return out


def _rows(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor as a matrix: its leading axes in one."""
    return tensor.view(-1, tensor.shape[-1])


@functools.cache
def _no_scale(device: torch.device) -> torch.Tensor:
    """The unread scale operand of bfloat16 activations."""
    return torch.zeros((1, 1), dtype=torch.uint8, device=device)


def _dense_impl(
    a: torch.Tensor,
    a_scale: torch.Tensor | None,
    w: torch.Tensor,
    w_scale: torch.Tensor,
    out_dtype: torch.dtype,
    backend: str | None,
) -> torch.Tensor:
    return _run(a, a_scale, w, w_scale, None, out_dtype, backend)


def _grouped_impl(
    a: torch.Tensor,
    a_scale: torch.Tensor | None,
    w: torch.Tensor,
    w_scale: torch.Tensor,
    group_offsets: torch.Tensor,
    out_dtype: torch.dtype,
    backend: str | None,
) -> torch.Tensor:
    if group_offsets.device.type == "cpu" and group_offsets.dtype == torch.int32 and group_offsets.dim() == 1:
        _check_offsets(group_offsets, a.shape[0])
    return _run(a, a_scale, w, w_scale, group_offsets, out_dtype, backend)


def _check_offsets(offsets: torch.Tensor, rows: int) -> None:
    given = offsets.tolist()
    ascending = given == sorted(given)
    if not given or given[0] != 0 or given[-1] != rows or not ascending:
        raise ValueError(f"group_offsets: given {given[:8]}...{given[-1:]}, wanted ascending from 0 to M = {rows}")


def _dense_fake(
    a: torch.Tensor,
    a_scale: torch.Tensor | None,
    w: torch.Tensor,
    w_scale: torch.Tensor,
    out_dtype: torch.dtype,
    backend: str | None,
) -> torch.Tensor:
    return a.new_empty((*a.shape[:-1], w.shape[-2]), dtype=out_dtype)


def _grouped_fake(
    a: torch.Tensor,
    a_scale: torch.Tensor | None,
    w: torch.Tensor,
    w_scale: torch.Tensor,
    group_offsets: torch.Tensor,
    out_dtype: torch.dtype,
    backend: str | None,
) -> torch.Tensor:
    return a.new_empty((a.shape[0], w.shape[-2]), dtype=out_dtype)


_dense = define(
    "mxfp4_gemm(Tensor a, Tensor? a_scale, Tensor w, Tensor w_scale, ScalarType out_dtype, str? backend) -> Tensor",
    _dense_impl,
    _dense_fake,
)
_grouped = define(
    "grouped_mxfp4_gemm(Tensor a, Tensor? a_scale, Tensor w, Tensor w_scale, Tensor group_offsets, "
    "ScalarType out_dtype, str? backend) -> Tensor",
    _grouped_impl,
    _grouped_fake,
)
