"""Conformance cases of the grouped output projection, and the kernels that ``kernelforge inspect`` shows."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ...formats import bf16
from ..spec import Arrays, Case, seeded
from . import reference

if TYPE_CHECKING:
    import torch

    from ...runtime import KernelSpec

Float32 = NDArray[np.float32]
SHAPE = {"groups": 2, "rank": 48, "K": 160, "hidden": 40}
"""No extent is a multiple of a tile's; ranks together are longer than one chunk of 128 only where the op says so."""
DATA = ("normal", "wide", "special")
_SPECIAL = (0.0, -0.0, 2.0**-51, 2.0**-50, 3e38, np.inf, -np.inf, np.nan)


def draw(M: int, data: str, random: np.random.Generator) -> dict[str, Float32]:
    """o [M, groups * K], wa [groups, rank, K], wb [hidden, groups * rank] of BF16 values; a gradient [M, hidden]."""
    groups, rank, K, hidden = SHAPE.values()
    shapes = {"o": (M, groups * K), "wa": (groups, rank, K), "wb": (hidden, groups * rank), "grad": (M, hidden)}
    found = {}
    for name, shape in shapes.items():
        x = random.standard_normal(shape).astype(np.float32)
        if data == "wide":
            x *= np.exp2(random.integers(-20, 20, shape)).astype(np.float32)
        if data == "special" and x.size:
            x.reshape(-1)[random.integers(0, x.size, 3)] = random.choice(_SPECIAL, 3)
        found[name] = bf16.decode(bf16.encode(x))
    return found


def expected(x: Mapping[str, Float32]) -> Arrays:
    """The projection and its gradients, as bits."""
    groups, rank, K, _ = SHAPE.values()
    middle, out = reference.grouped_output_projection(x["o"], x["wa"], x["wb"])
    middle_grad = reference.sliced_gemm(x["grad"], np.ascontiguousarray(x["wb"].T), 1)
    turned = np.ascontiguousarray(np.swapaxes(x["wa"], 1, 2)).reshape(groups * K, rank)
    found = {
        "out": out,
        "o": reference.sliced_gemm(middle_grad, turned, groups),
        "wa": reference.sliced_gemm_over_tokens(middle_grad, x["o"], groups),
        "wb": reference.sliced_gemm_over_tokens(x["grad"], middle, 1),
    }
    return {name: bf16.encode(array) for name, array in found.items()}


def run(x: Mapping[str, Float32], device: str) -> Arrays:
    """The same on a device."""
    import torch

    from .op import grouped_output_projection

    home = "cpu" if device.endswith(":virtual") else device
    t = {name: torch.from_numpy(array.copy()).to(home, torch.bfloat16) for name, array in x.items()}
    for name in ("o", "wa", "wb"):
        t[name].requires_grad_()
    heads = t["o"].view(len(t["o"]), 2 * SHAPE["groups"], -1)
    out = grouped_output_projection(heads, t["wa"], t["wb"], backend=device)
    o, wa, wb = torch.autograd.grad(out, (t["o"], t["wa"], t["wb"]), t["grad"])
    found = {"out": out, "o": o, "wa": wa.view(-1, wa.shape[-1]), "wb": wb}
    return {name: _bits(tensor) for name, tensor in found.items()}


def _bits(x: torch.Tensor) -> NDArray[Any]:
    import torch

    found: NDArray[Any] = x.detach().cpu().contiguous().view(torch.int16).numpy()
    return found.view(np.uint16)


def cases(seed: int, size: str) -> Iterator[Case]:
    """Forward and backward on every kind of data; ``full`` has more tokens than a chunk."""
    for M in (5,) if size == "ci" else (1, 5, 131, 300):
        for data in DATA:
            at = f"bf16/{M}/{data}"
            yield Case(at, functools.partial(_expected, at, seed, M, data), functools.partial(_run, at, seed, M, data))


def _expected(at: str, seed: int, M: int, data: str) -> Arrays:
    return expected(draw(M, data, seeded(seed, at)))


def _run(at: str, seed: int, M: int, data: str, device: str) -> Arrays:
    return run(draw(M, data, seeded(seed, at)), device)


def kernels(device: str) -> Mapping[str, KernelSpec]:
    """Both products of DeepSeek-V4-Flash, and a gradient of weights."""
    from ...runtime import KernelSpec, schedule
    from ..sliced_gemm.op import KERNELS, NEEDS

    types = {"a_dtype": "bfloat16", "b_dtype": "bfloat16", "out_dtype": "bfloat16"}
    rows = {"turned": False, "whole": True}
    given: dict[str, tuple[str, dict[str, Any]]] = {
        "groups": ("sliced_gemm", {"groups": 8, "N": 1024, "K": 4096, **rows}),
        "hidden": ("sliced_gemm", {"groups": 1, "N": 4096, "K": 8192, **rows}),
        "groups_gradient": ("sliced_gemm_over_rows", {"groups": 8, "M": 1024, "N": 4096}),
    }
    found = {}
    for name, (kernel, extents) in given.items():
        tiles = schedule("sliced_gemm", device, kernel=kernel, tokens=1, **extents, **types)
        found[name] = KernelSpec.of(f"{KERNELS}:{kernel}", NEEDS, **extents, **types, **tiles)
    return found
