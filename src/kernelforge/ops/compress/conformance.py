"""Conformance cases of compression, and the kernels that ``kernelforge inspect`` shows."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
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
DATA = ("normal", "wide", "special")
"""``wide`` spreads logits over hundreds and values over many binades; ``special`` puts zeros, subnormals, infinities,
NaN, and the ends of what is read among ordinary values."""
_SPECIAL = (0.0, -0.0, 2.0**-149, 2.0**-51, 2.0**-50, 1e30, -1e30, np.inf, -np.inf, np.nan)


@dataclass(frozen=True)
class Problem:
    """Sequences of one length.

    Attributes:
        ratio, overlap, D, pairs, dtype: as the kernels' parameters.
        batch, S: sequences and tokens of each.
    """

    ratio: int
    overlap: bool
    D: int
    pairs: int
    dtype: str
    batch: int
    S: int

    @property
    def width(self) -> int:
        return 2 * self.D if self.overlap else self.D

    @property
    def label(self) -> str:
        return f"{'csa' if self.overlap else 'hca'}{self.ratio}/{self.dtype}/{self.batch}x{self.S}x{self.D}"


@dataclass(frozen=True)
class Inputs:
    """Arrays in the order of the public functions' arguments; kv and gate rounded to the problem's type."""

    kv: Float32
    gate: Float32
    position_bias: Float32
    norm_weight: Float32
    cos: Float32
    sin: Float32

    def row(self, b: int) -> tuple[Float32, Float32, Float32, Float32, Float32, Float32]:
        return self.kv[b], self.gate[b], self.position_bias, self.norm_weight, self.cos, self.sin


def draw(p: Problem, data: str, random: np.random.Generator) -> Inputs:
    """Random inputs of one kind of :data:`DATA`."""
    width, shape = p.width, (p.batch, p.S, p.width)

    def normal(*extents: int) -> Float32:
        return random.standard_normal(extents).astype(np.float32)

    kv, gate = normal(*shape), normal(*shape) * np.float32(2)
    bias, weight = normal(p.ratio, width), normal(p.D)
    if data == "wide":
        kv *= np.exp2(random.integers(-45, 20, shape)).astype(np.float32)
        gate *= np.float32(60)
        bias *= np.float32(20)
    if data == "special":
        for array in (kv, gate, bias, weight):
            spots = random.integers(0, max(array.size, 1), -(-array.size // 400))
            array.reshape(-1)[spots] = random.choice(_SPECIAL, len(spots))
    if p.dtype == "bfloat16":
        kv, gate = (bf16.decode(bf16.encode(array)) for array in (kv, gate))
    angles = np.outer(np.arange(p.S + 1), 100.0 ** (-np.arange(p.pairs) / p.pairs))
    return Inputs(kv, gate, bias, weight, np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32))


def expected_entries(p: Problem, inputs: Inputs, lengths: Sequence[int] | None = None) -> NDArray[Any]:
    """The reference's entries [B, N, D] as bits, zeros where a sequence completes fewer than the longest does."""
    lengths = [p.S] * p.batch if lengths is None else lengths
    found = np.zeros((p.batch, max((length // p.ratio for length in lengths), default=0), p.D), np.float32)
    for b, length in enumerate(lengths):
        kv, gate, bias, weight, cos, sin = inputs.row(b)
        entries = reference.compress(kv[:length], gate[:length], bias, weight, cos, sin, p.ratio, p.overlap)
        found[b, : len(entries)] = entries
    return as_bits(found, p.dtype)


def as_bits(x: Float32, dtype: str) -> NDArray[Any]:
    """float32 values rounded to ``dtype``, as integers."""
    return bf16.encode(x) if dtype == "bfloat16" else np.ascontiguousarray(x).view(np.uint32)


def tensors(p: Problem, inputs: Inputs, home: str = "cpu") -> list[torch.Tensor]:
    """The public functions' tensor arguments."""
    import torch

    found = [torch.from_numpy(np.ascontiguousarray(array)) for array in vars(inputs).values()]
    dtype = getattr(torch, p.dtype)
    return [tensor.to(home, dtype if i < 2 else torch.float32) for i, tensor in enumerate(found)]


def bits_of(x: torch.Tensor) -> NDArray[Any]:
    """A tensor's bits, on the host."""
    import torch

    narrow = x.dtype == torch.bfloat16
    found: NDArray[Any] = x.detach().cpu().contiguous().view(torch.int16 if narrow else torch.int32).numpy()
    return found.view(np.uint16 if narrow else np.uint32)


def fed(p: Problem, inputs: Inputs, cuts: Sequence[int], device: str) -> NDArray[Any]:
    """Entries, as bits, of sequences that are fed in the pieces between ``cuts``."""
    import torch

    from .op import csa_compress, hca_compress

    home = "cpu" if device.endswith(":virtual") else device
    kv, gate, *rest = tensors(p, inputs, home)
    compress: Any = csa_compress if p.overlap else hca_compress
    found, state = [], None
    for start, end in zip([0, *cuts], [*cuts, p.S], strict=True):
        piece = (x[:, start:end].contiguous() for x in (kv, gate))
        entries, state = compress(*piece, *rest, ratio=p.ratio, state=state, backend=device)
        found.append(entries)
    return bits_of(torch.cat(found, 1))


def problems(size: str) -> list[Problem]:
    """``ci``: both kinds, both types, one number of channels. ``full``: odd ratios and the models' channels too."""
    found = [Problem(4, True, 64, 16, "float32", 2, 15), Problem(128, False, 64, 8, "bfloat16", 2, 258)]
    if size == "full":
        found += [
            Problem(4, True, 512, 32, "bfloat16", 1, 64),
            Problem(128, False, 512, 32, "float32", 1, 256),
            Problem(3, True, 96, 48, "float32", 3, 11),
            Problem(4, False, 32, 1, "bfloat16", 1, 9),
            Problem(40, False, 160, 8, "float32", 2, 81),
            Problem(1, True, 32, 4, "float32", 2, 5),
        ]
    return found


def expected_gradients(p: Problem, inputs: Inputs, grad: Float32) -> Arrays:
    """The reference's gradients of a batch, as bits; ``grad`` [B, N, D] is the entries'."""
    found = []
    for b in range(p.batch):
        kv, gate, bias, weight, cos, sin = inputs.row(b)
        found.append(reference.compress_backward(grad[b], kv, gate, bias, weight, cos, sin, p.ratio, p.overlap))
    bias_grad, weight_grad = reference.add_sequences(found, p.ratio, p.overlap)
    return {
        "kv": as_bits(np.stack([one.kv for one in found]), p.dtype),
        "gate": as_bits(np.stack([one.gate for one in found]), p.dtype),
        "position_bias": as_bits(bias_grad, "float32"),
        "norm_weight": as_bits(weight_grad, "float32"),
    }


def gradients(p: Problem, inputs: Inputs, grad: Float32, device: str) -> Arrays:
    """Gradients on a device, as bits."""
    import torch

    from .op import csa_compress, hca_compress

    home = "cpu" if device.endswith(":virtual") else device
    given = tensors(p, inputs, home)
    for tensor in given[:4]:
        tensor.requires_grad_()
    compress: Any = csa_compress if p.overlap else hca_compress
    entries, _ = compress(*given, ratio=p.ratio, backend=device)
    entries.backward(torch.from_numpy(grad).to(home, entries.dtype))
    names = ("kv", "gate", "position_bias", "norm_weight")
    return {name: bits_of(tensor.grad) for name, tensor in zip(names, given, strict=False) if tensor.grad is not None}


def draw_grad(p: Problem, random: np.random.Generator) -> Float32:
    """A gradient of the entries, rounded to the problem's type."""
    grad = random.standard_normal((p.batch, p.S // p.ratio, p.D)).astype(np.float32)
    return bf16.decode(bf16.encode(grad)) if p.dtype == "bfloat16" else grad


def cases(seed: int, size: str) -> Iterator[Case]:
    """Whole sequences, sequences in pieces, and gradients, on every kind of data."""
    for p in problems(size):
        for data in DATA:
            for way, cuts in (("whole", ()), ("pieces", (1, p.ratio - 1, p.ratio + 1, 2 * p.ratio))):
                at = f"entries/{p.label}/{way}/{data}"
                inside = tuple(sorted({cut for cut in cuts if 0 < cut < p.S}))
                yield Case(
                    at,
                    functools.partial(_expected, p, data, seed),
                    functools.partial(_run, p, data, seed, inside),
                )
            yield Case(
                f"gradients/{p.label}/{data}",
                functools.partial(_expected_gradients, p, data, seed),
                functools.partial(_run_gradients, p, data, seed),
            )


@functools.lru_cache(maxsize=64)
def _inputs(p: Problem, data: str, seed: int) -> Inputs:
    return draw(p, data, seeded(seed, p.label, data))


def _expected(p: Problem, data: str, seed: int) -> Arrays:
    return {"entries": expected_entries(p, _inputs(p, data, seed))}


def _run(p: Problem, data: str, seed: int, cuts: Sequence[int], device: str) -> Arrays:
    return {"entries": fed(p, _inputs(p, data, seed), cuts, device)}


def _expected_gradients(p: Problem, data: str, seed: int) -> Arrays:
    return expected_gradients(p, _inputs(p, data, seed), draw_grad(p, seeded(seed, p.label, "grad")))


def _run_gradients(p: Problem, data: str, seed: int, device: str) -> Arrays:
    return gradients(p, _inputs(p, data, seed), draw_grad(p, seeded(seed, p.label, "grad")), device)


def kernels(device: str) -> Mapping[str, KernelSpec]:
    """Both kinds at the models' shapes: entries, the state's update, gradients."""
    from .plans import kernel_spec

    found = {}
    for name, ratio, overlap in (("csa", 4, True), ("hca", 128, False)):
        given: dict[str, Any] = {"ratio": ratio, "overlap": overlap, "D": 512, "dtype": "bfloat16"}
        rope = {"pairs": 32, "eps": 1e-6}
        found[name] = kernel_spec("compress", device, **given, **rope)
        found[f"{name}_state"] = kernel_spec("compress_state", device, **given)
        found[f"{name}_entry_gradient"] = kernel_spec("entry_gradient", device, **given, **rope)
        found[f"{name}_token_gradient"] = kernel_spec("token_gradient", device, **given, chunk=reference.CHUNK)
    found["sum_of_parts"] = kernel_spec("sum_of_parts", device, D=512)
    return found
