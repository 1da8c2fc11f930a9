"""Conformance cases of the MXFP4 GEMM, and the kernels that ``kernelforge inspect`` shows."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ...formats import bf16
from ...formats.mx import BLOCK
from ...numerics.block_accumulate import A_FORMATS, SCALE_GROUP
from ...runtime import KernelSpec, schedule
from ..spec import Arrays, Case, seeded
from . import reference

if TYPE_CHECKING:
    import torch

OUT_DTYPES = ("bfloat16", "float16", "float32")
DATA = ("normal", "codes", "zeros", "subnormal", "nan", "infinity", "scale_zero", "scale_nan", "huge", "tiny")
"""``normal`` is random values of ordinary size, ``codes`` uniformly random bytes; the others set one thing on top."""

_E4M3_NAN, _E4M3_SUBNORMALS = 0x7F, 0x07
_BF16_NAN, _BF16_INFINITY = 0x7FC1, 0x7F80


@dataclass(frozen=True)
class Problem:
    """Shapes, types and data of a case; ``experts`` 0 is the dense GEMM."""

    a_format: str
    out_dtype: str
    M: int
    N: int
    K: int
    experts: int
    data: str
    seed: int

    @property
    def name(self) -> str:
        kind = f"grouped{self.experts}" if self.experts else "dense"
        return f"{kind}/{self.a_format}/{self.out_dtype}/{self.M}x{self.N}x{self.K}/{self.data}"


@dataclass(frozen=True)
class Operands:
    """The reference's operands."""

    a: NDArray[Any]
    a_scale: NDArray[Any] | None
    w: NDArray[np.uint8]
    w_scale: NDArray[np.uint8]
    offsets: NDArray[np.int32] | None


def cases(seed: int, size: str) -> Iterator[Case]:
    """``ci``: few distinct kernels, every format, both forms, every output type, every kind of data. ``full``: all
    combinations of format, form, output type and shape."""
    for problem in _ci(seed) if size == "ci" else _full(seed):
        yield Case(problem.name, functools.partial(_expected, problem), functools.partial(_run, problem))


def _ci(seed: int) -> Iterator[Problem]:
    for i, a_format in enumerate(A_FORMATS):
        # Tails of every kind: no extent is a multiple of a tile's.
        main = OUT_DTYPES[i % len(OUT_DTYPES)]
        for data in DATA:
            yield Problem(a_format, main, 7, 70, 160, 0, data, seed)
        for M in (0, 1):
            yield Problem(a_format, main, M, 70, 160, 0, "normal", seed)
    # Tiles of many rows and groups are compared in one format here, in all of them in ``full``.
    for data in ("normal", "codes"):
        yield Problem("e2m1", "bfloat16", 33, 70, 160, 3, data, seed)
    yield Problem("e2m1", "bfloat16", 33, 70, 160, 0, "normal", seed)
    yield Problem("e2m1", "float32", 1, 1, BLOCK, 0, "normal", seed)


def _full(seed: int) -> Iterator[Problem]:
    for a_format in A_FORMATS:
        for out_dtype in OUT_DTYPES:
            for experts in (0, 1, 5):
                for N, K in ((1, 32), (70, 96), (130, 160), (256, 512)):
                    for M in (0, 1, 7, 33, 129):
                        for data in DATA if M == 7 else ("normal", "codes"):
                            yield Problem(a_format, out_dtype, M, N, K, experts, data, seed)


def kernels(device: str) -> Mapping[str, KernelSpec]:
    """One kernel per activation format and form, at a decoder's width."""
    from .op import BUILDER, NEEDS

    found = {}
    for experts in (0, 8):
        for a_format in A_FORMATS:
            problem = {"M": 512, "N": 4096, "K": 4096, "experts": experts, "a_format": a_format}
            tiles = schedule("mxfp4_gemm", device, **problem)
            static = {name: value for name, value in problem.items() if name != "M"}
            name = f"grouped-{a_format}" if experts else a_format
            found[name] = KernelSpec.of(BUILDER, NEEDS, out_dtype="bfloat16", **static, **tiles)
    return found


@functools.lru_cache(maxsize=128)
def operands(problem: Problem) -> Operands:
    """Operands drawn from the problem's name and seed alone."""
    draw = seeded(problem.seed, problem.name)
    experts, N, K = max(problem.experts, 1), problem.N, problem.K
    w, w_scale = _packed(draw, (experts, N), K, problem.data)
    a, a_scale = _activations(draw, problem)
    offsets = None
    if problem.experts:
        cuts = np.sort(draw.integers(0, problem.M + 1, problem.experts - 1))
        cuts[1:2] = cuts[:1]  # an expert without tokens, where there are three or more
        offsets = np.array([0, *cuts, problem.M], np.int32)
    else:
        w, w_scale = w[0], w_scale[0]
    return Operands(a, a_scale, w, w_scale, offsets)


def _scales(draw: np.random.Generator, shape: tuple[int, ...], data: str) -> NDArray[np.uint8]:
    low, high = {"codes": (0, 256), "huge": (180, 201), "tiny": (70, 90)}.get(data, (120, 134))
    scale = draw.integers(low, high, shape).astype(np.uint8)
    if data == "scale_zero":
        scale.flat[::3] = 0
    if data == "scale_nan":
        scale.flat[::7] = 0xFF
    if data == "infinity":
        scale.flat[::5] = 0xFE  # reads as infinite
    return scale


def _packed(
    draw: np.random.Generator, rows: tuple[int, ...], K: int, data: str
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    packed = draw.integers(0, 256, (*rows, K // 2)).astype(np.uint8)
    if data == "zeros":
        packed = packed & np.uint8(0x88)  # both zeros
    if data == "subnormal":
        packed = packed & np.uint8(0x99)  # +-0 and +-0.5, the subnormal of E2M1
    return packed, _scales(draw, (*rows, K // BLOCK), data)


def _activations(draw: np.random.Generator, problem: Problem) -> tuple[NDArray[Any], NDArray[Any] | None]:
    M, K, data = problem.M, problem.K, problem.data
    if problem.a_format == "e2m1":
        return _packed(draw, (M,), K, data)
    if problem.a_format == "bf16":
        return _bf16(draw, M, K, data), None
    codes = draw.integers(0, 256, (M, K)).astype(np.uint8)
    if data != "codes":
        codes = np.where((codes & 0x7F) == _E4M3_NAN, np.uint8(0x38), codes)
    if data == "zeros":
        codes = codes & np.uint8(0x80)
    if data == "subnormal":
        codes = codes & np.uint8(0x80 | _E4M3_SUBNORMALS)
    if data == "nan":
        codes.reshape(-1)[::37] = _E4M3_NAN
    if problem.a_format == "e4m3_e8m0":
        return codes, _scales(draw, (M, K // BLOCK), data)
    return codes, _float_scales(draw, (M, -(-K // SCALE_GROUP)), data)


def _bf16(draw: np.random.Generator, M: int, K: int, data: str) -> NDArray[np.uint16]:
    if data == "codes":
        return draw.integers(0, 1 << 16, (M, K)).astype(np.uint16)
    size = {"huge": 2.0**60, "tiny": 2.0**-48, "zeros": 0.0, "subnormal": 2.0**-130}.get(data, 1.0)
    bits = bf16.encode((draw.standard_normal((M, K)) * size).astype(np.float32))
    if data in ("nan", "infinity"):
        bits.reshape(-1)[::37] = _BF16_NAN if data == "nan" else _BF16_INFINITY
    return bits


def _float_scales(draw: np.random.Generator, shape: tuple[int, int], data: str) -> NDArray[np.float32]:
    if data == "codes":
        return draw.integers(0, 1 << 32, shape, dtype=np.uint32).view(np.float32)
    size = {"huge": 2.0**55, "tiny": 2.0**-46, "subnormal": 2.0**-130}.get(data, 1.0)
    scale = (draw.uniform(0.5, 2.0, shape) * size).astype(np.float32)
    special = {"scale_zero": 0.0, "scale_nan": np.nan, "infinity": np.inf}.get(data)
    if special is not None:
        scale.reshape(-1)[::3] = special
    return scale


def _expected(problem: Problem) -> Arrays:
    given = operands(problem)
    if given.offsets is None:
        out = reference.mxfp4_gemm(given.a, given.a_scale, given.w, given.w_scale, problem.a_format, problem.out_dtype)
    else:
        out = reference.grouped_mxfp4_gemm(
            given.a, given.a_scale, given.w, given.w_scale, given.offsets, problem.a_format, problem.out_dtype
        )
    return {"out": out}


def _run(problem: Problem, device: str) -> Arrays:
    import torch

    from ... import backends
    from .op import grouped_mxfp4_gemm, mxfp4_gemm

    owner, chosen = backends.device(device)
    home = "cpu" if chosen.virtual else owner.tensor_device
    given = operands(problem)
    a = _tensor(given.a, home)
    assert a is not None
    if problem.a_format == "bf16":
        a = a.view(torch.bfloat16)
    elif problem.a_format != "e2m1":
        a = a.view(torch.float8_e4m3fn)
    scale, w, w_scale = (_tensor(x, home) for x in (given.a_scale, given.w, given.w_scale))
    assert w is not None
    assert w_scale is not None
    out_dtype = getattr(torch, problem.out_dtype)
    offsets = _tensor(given.offsets, home)
    if offsets is None:
        out = mxfp4_gemm(a, scale, w, w_scale, out_dtype, backend=device)
    else:
        out = grouped_mxfp4_gemm(a, scale, w, w_scale, offsets, out_dtype, backend=device)
    out = out.cpu()
    return {"out": out.view(torch.uint16).numpy() if out_dtype == torch.bfloat16 else out.numpy()}


def _tensor(array: NDArray[Any] | None, device: str) -> torch.Tensor | None:
    import torch

    return None if array is None else torch.from_numpy(np.ascontiguousarray(array)).to(device)
