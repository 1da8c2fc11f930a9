"""Conformance cases of compressed attention's backward pass."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...formats import bf16
from ...runtime import KernelSpec
from ..spec import Arrays, seeded
from . import reference_backward
from .conformance_data import Problem, operands, tensor


def output_gradient(problem: Problem) -> NDArray[np.uint16]:
    """bfloat16 bits like the output, of the kind that the problem's data is, where a gradient can be."""
    p = problem
    draw = seeded(p.seed, p.name, "gradient")
    shape = (p.B, p.S, p.H, p.D)
    if p.data == "bits":
        return draw.integers(0, 1 << 16, shape).astype(np.uint16)
    x = draw.standard_t(3, shape) if p.data == "student" else draw.standard_normal(shape)
    x = x * {"subnormal": 2.0**-130, "huge": 2.0**62, "tiny": 2.0**-48}.get(p.data, 1.0)
    if p.data == "zeros":
        x[:, :, 0] = 0
    bits = bf16.encode(x.astype(np.float32))
    if p.data == "nan_query":
        bits.reshape(-1)[3 :: 31 * p.D + 1] = 0x7F80
    return bits


def expected(problem: Problem) -> Arrays:
    """The reference's gradients."""
    x, p = operands(problem), problem
    found = reference_backward.gradients(
        output_gradient(p), x.q, x.kv, x.entries, x.indices, x.sink, x.positions, p.window, x.scale, p.ratio,
        x.kv_start, x.cos, x.sin,
    )  # fmt: skip
    return found._asdict()


def run(problem: Problem, device: str) -> Arrays:
    """The op's gradients on a device."""
    from ..support import home_of
    from .gradient import backward

    x, p, home = operands(problem), problem, home_of(device)
    first = (output_gradient(p), x.q, x.kv, x.entries, x.indices, x.sink, x.positions)
    last = (x.kv_start, x.cos, x.sin)
    found = backward(
        *(tensor(array, home) for array in first),
        p.window,
        x.scale,
        p.ratio,
        *(tensor(array, home) for array in last),
        device,
    )
    return {name: as_arrays(grad) for name, grad in zip(("q", "kv", "entries", "sink"), found, strict=True)}


def as_arrays(grad: Any) -> NDArray[Any]:
    """A tensor as NumPy holds it, bfloat16 as its bits."""
    import torch

    grad = grad.detach().cpu()
    array: NDArray[Any] = (grad.view(torch.uint16) if grad.dtype == torch.bfloat16 else grad).numpy()
    return array


def kernels(device: str) -> Mapping[str, KernelSpec]:
    """The kernels at V4-Flash's head count and width."""
    from .gradient import kernel_spec
    from .problem import bits_of, factor_bits

    scale = 512**-0.5
    return {
        "cut": kernel_spec("cut_matrix", device, 512),
        "rotate": kernel_spec("rotate_gradient", device, 512, H=64, rope=64),
        "products": kernel_spec("attention_products", device, 512, H=64, factor_bits=factor_bits(scale)),
        "windows": kernel_spec("attention_windows", device, 0, H=64, scale_bits=bits_of(scale)),
        "query_gradient": kernel_spec("query_gradient", device, 512, H=64),
        "entry_gradient": kernel_spec("entry_gradient", device, 512, H=64),
        "sink_gradient": kernel_spec("sink_gradient", device, 0, H=64),
    }
