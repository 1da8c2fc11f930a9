"""Measures what the demo shows; prints nothing."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

import kernelforge as kf

from ..backends import backend as find_backend
from ..bench import interleaved, product_dtype, short_name
from ..conformance import Chosen, choose
from ..ops.mxfp4_gemm import reference
from ..ops.mxfp4_gemm.benchmark import torch_dequantize
from .model import MiniLM, Tokens, feed_forward_names
from .quantized import MODES, Mode, QuantizedFeedForward, Weight, quantize_weights
from .sentences import SENTENCES

LAYER = 0
SLICE = 32
"""Tokens that every device multiplies; virtual devices run no more."""


@dataclass(frozen=True)
class DeviceResult:
    """One mode's up projection of the slice on one device.

    Attributes:
        device: which; ``virtual``: executed on the host.
        shape: M, N, K.
        digest: SHA-256 of the output's bits, or the error's text in ``error``.
        equal: whether they are the reference's.
    """

    device: str
    virtual: bool
    mode: str
    shape: tuple[int, int, int]
    digest: str
    equal: bool
    error: str = ""


@dataclass(frozen=True)
class Times:
    """Milliseconds of a feed-forward layer's two products on the CPU, medians of one run.

    Attributes:
        batch: what was multiplied, for people; ``tokens`` of it.
        kernelforge: by mode: MXFP4 weights, activations quantized beforehand.
        dequantize: what torch does with the same weights: dequantize them, then matmul.
        torch: matmuls on weights that were dequantized beforehand.
    """

    batch: str
    tokens: int
    kernelforge: Mapping[str, float]
    dequantize: float
    torch: float


@dataclass(frozen=True)
class ModeResult:
    """One mode on the CPU.

    Attributes:
        mode: W4A4, W4A8 or W4A16.
        layer_error: relative error (Frobenius norm) of the feed-forward layer against float32.
        mean_cosine, least_cosine: of the sentence embeddings before and after, over the sentences.
        same_neighbour: sentences whose nearest other sentence stays the same.
    """

    mode: str
    layer_error: float
    mean_cosine: float
    least_cosine: float
    same_neighbour: int


@dataclass(frozen=True)
class Outcome:
    """Everything the demo shows.

    Attributes:
        float_bytes, packed_bytes: all feed-forward weights in float32 and in MXFP4.
        layer_bytes: the MXFP4 weights of the layer that is timed.
        torch_dtype: what torch multiplies in, bf16 or fp32, whichever is faster here; ``kept_bytes``: all
            feed-forward weights in it.
        times: of one sentence, and of all.
    """

    model: str
    sentences: int
    tokens: int
    shape: tuple[int, int, int]
    float_bytes: int
    packed_bytes: int
    layer_bytes: int
    torch_dtype: str
    kept_bytes: int
    chosen: Chosen
    devices: list[DeviceResult]
    modes: list[ModeResult]
    times: tuple[Times, ...]

    @property
    def all_equal(self) -> bool:
        return all(result.equal for result in self.devices)

    @property
    def against_dequantize(self) -> list[float]:
        """Torch's time with the same weights over kernelforge's, for every batch and mode."""
        return [times.dequantize / taken for times in self.times for taken in times.kernelforge.values()]

    def against_torch(self, mode: str) -> list[float]:
        """Torch's time on weights dequantized beforehand over kernelforge's, for every batch."""
        return [times.torch / times.kernelforge[mode] for times in self.times]


def run(backends: list[str] | None, observe: Callable[[str], None]) -> Outcome:
    """Embed the sentences with the model's own layers and with MXFP4 ones.

    Args:
        backends: as for ``kernelforge conform``; None for all. The CPU is always among them.
        observe: told what is being done.
    """
    observe("loading the model")
    model = MiniLM()
    tokens = model.tokenize(SENTENCES)
    observe("float32 embeddings")
    captured: dict[int, torch.Tensor] = {}

    def capture(layer: int, x: torch.Tensor) -> torch.Tensor:
        captured[layer] = x
        return model.feed_forward(layer, x)

    before = model.embed(tokens, capture)
    # Padding is computed like any token and left out of everything that is shown.
    x = captured[LAYER][tokens.mask.reshape(-1).bool()].contiguous()
    observe("quantizing the weights")
    weights = quantize_weights(model)
    up = weights[LAYER][0]
    chosen = choose(backends)
    owners = {device.partition(":")[0] for device in chosen.devices}
    virtual = {device.name for owner in owners for device in find_backend(owner).devices() if device.virtual}

    devices = sorted(chosen.devices, key=lambda device: device in virtual)

    results: list[DeviceResult] = []
    modes = []
    for mode in MODES:
        observe(f"{mode.name}: compiling for and running on {', '.join(devices)}")
        a, a_scale = mode.quantize(x[:SLICE])
        with ThreadPoolExecutor() as pool:  # compilers run side by side
            results += pool.map(lambda d: _on_device(mode, up, a, a_scale, d, d in virtual), devices)  # noqa: B023
        observe(f"{mode.name}: embeddings")
        modes.append(_on_cpu(mode, model, tokens, weights, x, before))
    batches = {"one sentence": x[: int(tokens.mask[0].sum())], f"{len(SENTENCES)} sentences": x}
    times = []
    for name, batch in batches.items():
        observe(f"times: {name}")
        times.append(_times(model, weights, name, batch))
    layers = [w for pair in weights for w in pair]
    return Outcome(
        model="all-MiniLM-L6-v2",
        sentences=len(SENTENCES),
        tokens=x.shape[0],
        shape=(x.shape[0], up.packed.shape[0], x.shape[1]),
        float_bytes=sum(4 * 2 * w.packed.numel() for w in layers),
        packed_bytes=sum(w.nbytes for w in layers),
        layer_bytes=sum(w.nbytes for w in weights[LAYER]),
        torch_dtype=short_name(product_dtype()),
        kept_bytes=sum(product_dtype().itemsize * 2 * w.packed.numel() for w in layers),
        chosen=chosen,
        devices=results,
        modes=modes,
        times=tuple(times),
    )


def _on_device(
    mode: Mode, weight: Weight, a: torch.Tensor, a_scale: torch.Tensor | None, device: str, virtual: bool
) -> DeviceResult:
    home = "cpu" if virtual else find_backend(device.partition(":")[0]).tensor_device
    shape = (a.shape[0], weight.packed.shape[0], 2 * weight.packed.shape[1])
    wanted = _reference(mode, weight, a, a_scale)
    try:
        given = kf.mxfp4_gemm(
            a.to(home),
            None if a_scale is None else a_scale.to(home),
            weight.packed.to(home),
            weight.scale.to(home),
            torch.bfloat16,
            backend=device,
        )
        bits = given.cpu().view(torch.uint16).numpy()
    except Exception as error:  # shown in the table; the other devices go on
        return DeviceResult(device, virtual, mode.name, shape, "", False, f"{type(error).__name__}: {error}")
    digest = hashlib.sha256(np.ascontiguousarray(bits).tobytes()).hexdigest()
    return DeviceResult(device, virtual, mode.name, shape, digest, bool(np.array_equal(bits, wanted)))


def _reference(mode: Mode, weight: Weight, a: torch.Tensor, a_scale: torch.Tensor | None) -> NDArray[np.uint16]:
    codes = a.view(torch.uint16 if a.dtype == torch.bfloat16 else torch.uint8).numpy()
    scale = None if a_scale is None else a_scale.numpy()
    out: NDArray[np.uint16] = reference.mxfp4_gemm(
        codes, scale, weight.packed.numpy(), weight.scale.numpy(), mode.a_format, "bfloat16"
    )
    return out


def _on_cpu(
    mode: Mode,
    model: MiniLM,
    tokens: Tokens,
    weights: list[tuple[Weight, Weight]],
    x: torch.Tensor,
    before: torch.Tensor,
) -> ModeResult:
    feed_forward = QuantizedFeedForward(weights, mode)
    after = model.embed(tokens, feed_forward)
    wanted, given = model.feed_forward(LAYER, x), feed_forward(LAYER, x)
    cosine = F.cosine_similarity(before, after)
    return ModeResult(
        mode=mode.name,
        layer_error=float((given - wanted).norm() / wanted.norm()),
        mean_cosine=float(cosine.mean()),
        least_cosine=float(cosine.min()),
        same_neighbour=int((_nearest(before) == _nearest(after)).sum()),
    )


def _times(model: MiniLM, weights: list[tuple[Weight, Weight]], name: str, x: torch.Tensor) -> Times:
    """The up projection of ``x`` and the down projection of what the model makes of it, one after the other."""
    layer = weights[LAYER]
    inputs = (x.contiguous(), F.gelu(F.linear(x, *model.linear(feed_forward_names(LAYER)[0]))))
    dtype = product_dtype()
    narrow = [value.to(dtype) for value in inputs]
    wide = [torch_dequantize(weight.packed, weight.scale, dtype) for weight in layer]

    def products(mode: Mode) -> Callable[[], object]:
        quantized = [(*mode.quantize(value), weight) for value, weight in zip(inputs, layer, strict=True)]
        return lambda: [kf.mxfp4_gemm(a, scale, w.packed, w.scale) for a, scale, w in quantized]

    taken = interleaved(
        {mode.name: products(mode) for mode in MODES}
        | {
            "dequantize": lambda: [
                a @ torch_dequantize(w.packed, w.scale, dtype).T for a, w in zip(narrow, layer, strict=True)
            ],
            "torch": lambda: [a @ w.T for a, w in zip(narrow, wide, strict=True)],
        },
        rounds=25,
        seconds=0.02,
    )
    milliseconds = {what: 1e3 * timing.median for what, timing in taken.items()}
    ours = {mode.name: milliseconds[mode.name] for mode in MODES}
    return Times(name, x.shape[0], ours, milliseconds["dequantize"], milliseconds["torch"])


def _nearest(embeddings: torch.Tensor) -> torch.Tensor:
    similarity = embeddings @ embeddings.T
    similarity.fill_diagonal_(-2)
    return similarity.argmax(-1)
