"""Conformance cases of hyper-connections, and the kernels that ``kernelforge inspect`` shows."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ...formats import bf16
from ...runtime import KernelSpec
from ..spec import Arrays, Case, seeded
from . import reference

if TYPE_CHECKING:
    import torch

Float32 = NDArray[np.float32]
DATA = ("normal", "outliers", "special", "zeros", "huge", "tiny")
"""``outliers`` have four channels a hundred times larger; ``special`` puts infinities, NaN, subnormals among values."""
_SPECIAL = (np.nan, np.inf, -np.inf, -0.0, 2.0**-149, 2.0**-50, -(2.0**-51), 2.0**100, -(2.0**127))


@dataclass(frozen=True)
class Problem:
    """Shapes, types and data of a case."""

    n: int
    C: int
    dtype: str
    head: bool
    batch: int
    sequence: int
    data: str
    seed: int
    iters: int = 20
    eps: float = 1e-6

    @property
    def name(self) -> str:
        kind = "head" if self.head else "block"
        return f"{kind}/{self.dtype}/{self.batch}x{self.sequence}x{self.n}x{self.C}/{self.data}"

    @property
    def tokens(self) -> int:
        return self.batch * self.sequence


@dataclass(frozen=True)
class Operands:
    """Forward operands, gradients that come in, and running totals that parameters' gradients are added to."""

    x: Float32
    fn: Float32
    scale: Float32
    base: Float32
    y: Float32
    collapsed_grad: Float32
    post_grad: Float32
    comb_grad: Float32
    out_grad: Float32
    start: tuple[Float32, Float32, Float32]


def cases(seed: int, size: str) -> Iterator[Case]:
    """``ci``: one size with a tail of everything, every kind of data. ``full``: all numbers of streams, both types, the
    head, longer sequences."""
    for problem in _ci(seed) if size == "ci" else _full(seed):
        yield Case(problem.name, functools.partial(expected, problem), functools.partial(run, problem))


def _ci(seed: int) -> Iterator[Problem]:
    for data in DATA:
        yield Problem(4, 160, "bfloat16", False, 2, 19, data, seed)
    for batch, sequence in ((0, 3), (1, 1), (1, 150)):
        yield Problem(4, 160, "bfloat16", False, batch, sequence, "normal", seed)


def _full(seed: int) -> Iterator[Problem]:
    yield from _ci(seed)
    for n, C, dtype in ((2, 32, "float32"), (3, 32, "float32"), (4, 160, "float32"), (4, 128, "bfloat16")):
        for head in (False, True):
            for data in DATA:
                yield Problem(n, C, dtype, head, 2, 19, data, seed)
    for n in (5, 6, 7, 8):
        yield Problem(n, 32, "bfloat16", False, 1, 37, "normal", seed)


def kernels(device: str) -> Mapping[str, KernelSpec]:
    """DeepSeek-V4-Flash's: four streams of 4096 channels in bfloat16."""
    from . import plans

    found: dict[str, KernelSpec] = {}
    for problem in (plans.Problem.example(device, head=False), plans.Problem.example(device, head=True)):
        for name, spec in plans.specs(problem, plans.DEFAULTS).items():
            found[f"head-{name}" if problem.head else name] = spec
    return found


def stored(x: NDArray[Any], dtype: str) -> Float32:
    """Values as the streams' type holds them."""
    x = x.astype(np.float32)
    return bf16.decode(bf16.encode(x)) if dtype == "bfloat16" else x


@functools.lru_cache(maxsize=64)
def operands(p: Problem) -> Operands:
    """Operands drawn from the problem's name and seed alone."""
    draw = seeded(p.seed, p.name)
    outputs = p.n if p.head else p.n * (p.n + 2)
    gates = 0 if p.head else p.n

    def normal(*shape: int) -> Float32:
        return draw.standard_normal(shape).astype(np.float32)

    def values(*shape: int) -> Float32:
        x = normal(*shape) * np.float32({"zeros": 0.0, "huge": 2.0**60, "tiny": 2.0**-49}.get(p.data, 1.0))
        if p.data == "outliers":
            x[..., :: max(shape[-1] // 4, 1)] *= 100
        if p.data == "special":
            flat = x.reshape(shape[0], -1)
            for i, value in enumerate(_SPECIAL):
                flat[(3 * i) % shape[0], (7 * i) % flat.shape[1]] = value
        return stored(x, p.dtype)

    fn, scale, base = normal(outputs, p.n * p.C) * np.float32(0.05), normal(1 if p.head else 3), normal(outputs)
    start = (normal(*fn.shape), normal(*scale.shape), normal(*base.shape))
    if p.data == "special":
        fn[1, 3], fn[0, 5] = np.float32(2.0**-149), np.float32(-(2.0**60))
    tokens = p.tokens
    return Operands(
        values(tokens, p.n, p.C),
        fn,
        scale,
        base,
        values(tokens, p.C),
        values(tokens, p.C),
        normal(tokens, gates),
        normal(tokens, gates, p.n),
        values(tokens, p.n, p.C),
        start,
    )


def expected(p: Problem) -> Arrays:
    """The reference's results of every function, forward and backward."""
    o = operands(p)
    pre = reference.mhc_pre(o.x, o.fn, o.scale, o.base, p.dtype, p.iters, p.eps, head=p.head)
    grads = reference.mhc_pre_backward(
        *(o.collapsed_grad, o.post_grad, o.comb_grad, o.x, o.fn, o.scale, o.base, pre.raw, pre.inverse_rms),
        *(p.dtype, max(p.sequence, 1), o.start, p.iters, p.eps, p.head),
    )
    found = {"collapsed": pre.collapsed, "raw": pre.raw, "inverse_rms": pre.inverse_rms}
    found |= {f"pre_{name}_grad": value for name, value in grads._asdict().items()}
    if not p.head:
        post = reference.mhc_post(o.y, o.x, pre.post, pre.comb, p.dtype)
        back = reference.mhc_post_backward(o.out_grad, o.y, o.x, pre.post, pre.comb, p.dtype)
        found |= {"post": pre.post, "comb": pre.comb, "out": post}
        found |= {f"post_{name}_grad": value for name, value in back._asdict().items()}
    return found


def run(p: Problem, device: str) -> Arrays:
    """The same from a device."""
    import torch

    from ..support import home_of
    from . import torch_ops

    o, home = operands(p), home_of(device)
    leading = (p.batch, p.sequence)

    def plain(x: Float32) -> torch.Tensor:
        return torch.from_numpy(np.ascontiguousarray(x)).to(home)

    def gate(x: Float32) -> torch.Tensor:
        return plain(x).view(*leading, *x.shape[1:])

    def stream(x: Float32) -> torch.Tensor:
        return gate(x).to(getattr(torch, p.dtype))

    x, weights = stream(o.x), (plain(o.fn), plain(o.scale), plain(o.base))
    start = [plain(total) for total in o.start]
    if p.head:
        collapsed, raw, inverse_rms = torch_ops.head(x, *weights, p.eps, 1e-6, device)
        grads = torch_ops.head_backward(stream(o.collapsed_grad), x, *weights, raw, inverse_rms, *start, p.eps, device)
    else:
        collapsed, post, comb, raw, inverse_rms = torch_ops.pre(x, *weights, p.iters, p.eps, 1e-6, device)
        incoming = (stream(o.collapsed_grad), gate(o.post_grad), gate(o.comb_grad))
        grads = torch_ops.pre_backward(*incoming, x, *weights, raw, inverse_rms, *start, p.iters, p.eps, device)
    found = {"collapsed": collapsed, "raw": raw, "inverse_rms": inverse_rms}
    found |= dict(zip((f"pre_{name}_grad" for name in reference.PreGradients._fields), grads, strict=True))
    if not p.head:
        y = stream(o.y)
        found |= {"post": post, "comb": comb, "out": torch_ops.post(y, x, post, comb, device)}
        back = torch_ops.post_backward(stream(o.out_grad), y, x, post, comb, device)
        found |= dict(zip((f"post_{name}_grad" for name in reference.PostGradients._fields), back, strict=True))
    wanted = {"collapsed": (p.tokens, p.C), "inverse_rms": (p.tokens,)}
    return {name: _array(value, wanted.get(name), p) for name, value in found.items()}


def _array(value: torch.Tensor, shape: tuple[int, ...] | None, p: Problem) -> NDArray[Any]:
    array: NDArray[Any] = value.detach().float().cpu().numpy()
    if shape is None and array.shape[:2] == (p.batch, p.sequence):
        shape = (p.tokens, *array.shape[2:])
    return array if shape is None else array.reshape(shape)
