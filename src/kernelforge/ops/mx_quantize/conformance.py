"""Conformance cases of MX quantization, and the kernels that ``kernelforge inspect`` shows."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ...formats import bf16
from ...runtime import KernelSpec, schedule
from ..spec import Arrays, Case, seeded
from . import reference

if TYPE_CHECKING:
    import torch

DTYPES = ("float32", "bfloat16", "float16")
DATA = ("normal", "bits", "special")
"""``bits`` are uniformly random bit patterns; ``special`` are blocks of zeros, subnormals, infinities, NaN, and the
largest and the smallest magnitudes that are read, among ordinary ones."""
_SPECIAL = (0.0, -0.0, 2.0**-149, 2.0**-51, 2.0**-50, 2.0**15, np.inf, -np.inf, np.nan, 6.0, 6.000001, 448.0)


def cases(seed: int, size: str) -> Iterator[Case]:
    """``ci``: both elements, both rules and all types, not every combination. ``full``: all of them and more shapes."""
    ci = size == "ci"
    for i, dtype in enumerate(DTYPES):
        for j, element in enumerate(("e2m1", "e4m3")):
            for rule in ("ceil", "floor") if not ci else (("ceil", "floor")[(i + j) % 2],):
                for M, K in ((5, 96),) if ci else ((0, 32), (1, 32), (5, 96), (33, 4128)):
                    for data in DATA:
                        at = f"quantize/{element}/{rule}/{dtype}/{M}x{K}/{data}"
                        yield Case(
                            at,
                            functools.partial(_expected, at, seed, element, rule, dtype, M, K, data),
                            functools.partial(_run, at, seed, element, rule, dtype, M, K, data),
                        )
        for M, K in ((5, 96),) if ci else ((1, 32), (5, 96), (33, 4128)):
            at = f"dequantize/{dtype}/{M}x{K}"
            yield Case(
                at,
                functools.partial(_expected_values, at, seed, dtype, M, K),
                functools.partial(_run_values, at, seed, dtype, M, K),
            )


def kernels(device: str) -> Mapping[str, KernelSpec]:
    """Quantizers of a decoder's activations, and the dequantizer."""
    from .op import KERNELS, NEEDS

    found = {}
    for element in ("e2m1", "e4m3"):
        given = {"K": 4096, "dtype": "bfloat16", "element": element, "scale_rule": "ceil"}
        tiles = schedule("mx_quantize", device, kernel="mx_quantize", M=512, **given)
        found[element] = KernelSpec.of(f"{KERNELS}:mx_quantize", NEEDS, **given, **tiles)
    given = {"K": 4096, "dtype": "bfloat16"}
    tiles = schedule("mx_quantize", device, kernel="mxfp4_dequantize", M=512, **given)
    found["dequantize"] = KernelSpec.of(f"{KERNELS}:mxfp4_dequantize", NEEDS, **given, **tiles)
    return found


@functools.lru_cache(maxsize=128)
def _values(at: str, seed: int, dtype: str, M: int, K: int, data: str) -> NDArray[Any]:
    """Values as NumPy holds them: float32, float16, or bfloat16 as uint16 bits."""
    draw = seeded(seed, at)
    if data == "bits":
        bits = draw.integers(0, 1 << (32 if dtype == "float32" else 16), (M, K), dtype=np.uint64)
        if dtype == "bfloat16":
            return bits.astype(np.uint16)
        return bits.astype(np.uint32 if dtype == "float32" else np.uint16).view(dtype)
    x = (draw.standard_normal((M, K)) * np.exp2(draw.integers(-12, 12, (M, 1)))).astype(np.float32)
    if data == "special":
        blocks = x.reshape(-1, 32)
        for i in range(len(blocks)):
            blocks[i, i % 32] = _SPECIAL[i % len(_SPECIAL)]
        blocks[::5] = 0
    if dtype == "bfloat16":
        return bf16.encode(x)
    with np.errstate(over="ignore"):
        return x.astype(dtype)


def _floats(x: NDArray[Any]) -> NDArray[np.float32]:
    return bf16.decode(x) if x.dtype == np.uint16 else x.astype(np.float32)


def _expected(at: str, seed: int, element: str, rule: str, dtype: str, M: int, K: int, data: str) -> Arrays:
    quantize: Any = reference.quantize_mxfp4 if element == "e2m1" else reference.quantize_mxfp8
    codes, scale = quantize(_floats(_values(at, seed, dtype, M, K, data)), rule)
    return {"codes": codes, "scale": scale}


def _run(at: str, seed: int, element: str, rule: str, dtype: str, M: int, K: int, data: str, device: str) -> Arrays:
    import torch

    from .op import quantize_mxfp4, quantize_mxfp8

    x = torch.from_numpy(_values(at, seed, dtype, M, K, data)).to(_home(device))
    quantize = quantize_mxfp4 if element == "e2m1" else quantize_mxfp8
    codes, scale = quantize(x.view(getattr(torch, dtype)), rule, backend=device)
    return {"codes": codes.view(torch.uint8).cpu().numpy(), "scale": scale.cpu().numpy()}


@functools.lru_cache(maxsize=32)
def _packed(at: str, seed: int, M: int, K: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    draw = seeded(seed, at)
    return draw.integers(0, 256, (M, K // 2)).astype(np.uint8), draw.integers(0, 256, (M, K // 32)).astype(np.uint8)


def _expected_values(at: str, seed: int, dtype: str, M: int, K: int) -> Arrays:
    values = reference.dequantize_mxfp4(*_packed(at, seed, M, K))
    return {"values": reference.round_output(values, dtype)}


def _run_values(at: str, seed: int, dtype: str, M: int, K: int, device: str) -> Arrays:
    import torch

    from .op import dequantize_mxfp4

    home = _home(device)
    packed, scale = (torch.from_numpy(x).to(home) for x in _packed(at, seed, M, K))
    values = dequantize_mxfp4(packed, scale, getattr(torch, dtype), backend=device).cpu()
    return {"values": values.view(torch.uint16).numpy() if dtype == "bfloat16" else values.numpy()}


def _home(device: str) -> torch.device:
    import torch

    from ... import backends

    owner, chosen = backends.device(device)
    return torch.device("cpu" if chosen.virtual else owner.tensor_device)
