"""Checks of hyper-connections' arguments, and their kernels."""

from __future__ import annotations

import functools
from typing import NamedTuple

import torch

from ...backends import Executable
from ...backends.capabilities import EXACT_DOT_INT8, FP32_IEEE, INT32
from ...numerics.window import chunk_length
from ...runtime import KernelSpec, executable, schedule
from ..sinkhorn.op import check_eps, check_iterations, check_streams
from ..support import Meta, choose_device, expect
from .reference import SLICES, TOKEN_CHUNK

DTYPES = (torch.bfloat16, torch.float32)
FORWARD = "kernelforge.ops.mhc.kernel"
BACKWARD = "kernelforge.ops.mhc.kernel_backward"
NEEDS = frozenset({EXACT_DOT_INT8, FP32_IEEE, INT32})
LANES = 32


class Problem(NamedTuple):
    """A checked call.

    Attributes:
        leading: the axes before the streams.
        tokens: their product.
        sequence: tokens along the last of them.
        n, C: streams and channels.
        dtype: of the streams, as kernels call it.
        head: the final collapse.
        device: a kernelforge device.
    """

    leading: torch.Size
    tokens: int
    sequence: int
    n: int
    C: int
    dtype: str
    head: bool
    device: str

    @property
    def outputs(self) -> int:
        """Rows of the projection."""
        return self.n if self.head else self.n * (self.n + 2)

    @property
    def scales(self) -> int:
        return 1 if self.head else 3

    @property
    def weight_tile(self) -> tuple[int, int]:
        """(chunks, elements in a chunk) of the projection's slices."""
        K = self.n * self.C
        length = chunk_length(K, SLICES, SLICES)  # a multiple of 32, as C is
        return -(-K // length), length

    @classmethod
    def example(cls, device: str, head: bool) -> Problem:
        """DeepSeek-V4-Flash's, 4096 tokens."""
        return cls(torch.Size((1, 4096)), 4096, 4096, 4, 4096, "bfloat16", head, device)


class Parameters(NamedTuple):
    """Numbers that kernels are compiled with."""

    iters: int = 20
    eps: float = 1e-6
    norm_eps: float = 1e-6


def _streams(x: Meta, backend: str | None, head: bool) -> Problem:
    if len(x.shape) < 3:
        raise ValueError(f"x: given {x}, wanted bfloat16 or float32 [..., tokens, n, C]")
    *_, n, C = x.shape
    expect("x", x, DTYPES, tuple(x.shape), x.device)
    check_streams("x", x, n)
    if C == 0 or C % LANES:
        raise ValueError(f"x: given {x}, so C = {C}; C must be a positive multiple of {LANES}")
    leading = x.shape[:-2]
    name = str(x.dtype).removeprefix("torch.")
    device = choose_device(backend, x.device)
    return Problem(leading, leading.numel(), leading[-1], n, C, name, head, device)


@functools.lru_cache(maxsize=1024)
def pre_problem(
    x: Meta, fn: Meta, scale: Meta, base: Meta, iters: int, eps: float, norm_eps: float, backend: str | None, head: bool
) -> Problem:
    """Check the arguments of ``mhc_pre`` (``mhc_head``)."""
    problem = _streams(x, backend, head)
    float32 = (torch.float32,)
    expect("fn", fn, float32, (problem.outputs, problem.n * problem.C), x.device)
    expect("scale", scale, float32, (problem.scales,), x.device)
    expect("base", base, float32, (problem.outputs,), x.device)
    check_iterations(iters, eps)
    check_eps("norm_eps", norm_eps)
    return problem


@functools.lru_cache(maxsize=1024)
def post_problem(y: Meta, x: Meta, post: Meta, comb: Meta, backend: str | None) -> Problem:
    """Check the arguments of ``mhc_post``."""
    problem = _streams(x, backend, False)
    n, leading = problem.n, problem.leading
    expect("y", y, (x.dtype,), (*leading, problem.C), x.device)
    expect("post", post, (torch.float32,), (*leading, n), x.device)
    expect("comb", comb, (torch.float32,), (*leading, n, n), x.device)
    return problem


DEFAULTS = Parameters()
"""DeepSeek-V4's; for kernels that need none of them, as good as any."""


def specs(p: Problem, parameters: Parameters) -> dict[str, KernelSpec]:
    """Every kernel of a problem by name: its builder is ``mhc_<name>``."""
    iters, eps, norm_eps = parameters
    shape = {"n": p.n, "C": p.C, "dtype": p.dtype}
    given: dict[str, dict[str, object]] = {
        "weights": dict(K=p.n * p.C, rows=p.outputs),
        "pre": dict(**shape, head=p.head, iters=iters, eps=eps, norm_eps=norm_eps),
        "pre_backward": dict(**shape, head=p.head, iters=iters, eps=eps),
        "weight_gradient": dict(N=p.outputs, K=p.n * p.C, dtype=p.dtype),
        "token_sum": dict(N=p.outputs + p.scales),
    }
    if not p.head:
        given |= {"post": shape, "post_backward": shape}
    words, found = iters * p.n**2, {}
    for name, static in given.items():
        tiles = schedule("mhc", p.device, kernel=name, tokens=p.tokens, n=p.n, C=p.C, rows=p.outputs, words=words)
        module = FORWARD if name in ("weights", "pre", "post") else BACKWARD
        found[name] = KernelSpec.of(f"{module}:mhc_{name}", NEEDS, **static, **tiles)
    return found


@functools.lru_cache(maxsize=1024)
def kernel(p: Problem, name: str, parameters: Parameters = DEFAULTS) -> Executable:
    """One of :func:`specs`, compiled."""
    return executable(specs(p, parameters)[name], p.device)


@functools.lru_cache(maxsize=64)
def token_chunks(tokens: int, sequence: int, device: torch.device) -> torch.Tensor:
    """int32 [chunks, 2]: first token and end of every chunk of 128; chunks start anew with each sequence."""
    bounds = [
        (begin, min(begin + TOKEN_CHUNK, first + sequence))
        for first in range(0, tokens, max(sequence, 1))
        for begin in range(first, first + sequence, TOKEN_CHUNK)
    ]
    return torch.tensor(bounds, dtype=torch.int32, device=device).view(-1, 2)
