"""A mixture-of-experts layer of DeepSeek-V4-Flash against torch's loop over experts."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch

from ...backends import device as find_device
from ...bench import Report, Row, interleaved, peak_memory, product_dtype, replays, short_name
from ..mx_quantize.op import quantize_mxfp4
from ..mxfp4_gemm.benchmark import torch_dequantize
from .op import mega_moe

LIMIT = 10.0
DISTINCT = 16
"""Experts with weights of their own; the others are copies of them, each at its own address."""


@dataclass(frozen=True)
class Layer:
    """Extents of a layer."""

    experts: int
    hidden: int
    inter: int
    slots: int


FLASH = Layer(256, 4096, 2048, 6)
SLICE = Layer(4, 64, 32, 2)


class Weights(NamedTuple):
    """Packed experts, and the distinct ones dequantized to what torch multiplies in."""

    packed: tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]
    wide: list[tuple[torch.Tensor, torch.Tensor]]


def run(device: str, command: str, observe: Callable[[str], None] = lambda what: None) -> Report:
    """Measure on a device; on a virtual one a small slice is run, and torch is not compared with."""
    owner, chosen = find_device(device)
    report = Report("mega_moe", command, device)
    if chosen.virtual:
        report.notes.append(f"{device} executes on the host: these times are not the device's.")
        call = _call(SLICE, 4, _weights(SLICE, "cpu"), device)
        taken = interleaved({"kernelforge": call}, rounds=3, seconds=0)["kernelforge"]
        report.rows.append(Row("slice, T=4", {"ms (executor)": taken.median * 1e3}))
        return report
    home = owner.tensor_device
    observe("making 256 experts")
    weights = _weights(FLASH, home)
    bits = 8 * sum(tensor.nbytes for tensor in weights.packed) / (3 * FLASH.experts * FLASH.hidden * FLASH.inter)
    dtype = product_dtype(home)
    name, wide = short_name(dtype), 3 * FLASH.hidden * FLASH.inter * dtype.itemsize
    report.notes += [
        f"hidden {FLASH.hidden}, inter {FLASH.inter}, {FLASH.experts} experts, {FLASH.slots} per token, drawn evenly; "
        f"weights take {bits:.2f} bits per parameter.",
        "Interleaved rounds in one process; medians. x is torch's time over kernelforge's.",
        f"{name} loop: weights dequantized beforehand, {8 * dtype.itemsize / bits:.1f} times the memory. It goes over "
        f"{DISTINCT} distinct experts again and again ({DISTINCT * wide / 1e9:.1f} GB, beyond any cache), as all of "
        f"them ({FLASH.experts * wide / 1e9:.1f} GB) would not fit this machine.",
        f"dequantize loop: an expert's packed weights to {name} (a table of byte pairs, times the scales), then the "
        "matmuls: what weights that stay packed cost in torch; one call.",
        "extra MiB: resident memory at its highest during a call above operands, the result included; bound: what "
        "`kf.mega_moe` states.",
    ]
    for tokens in (64, 1024):
        observe(f"T={tokens}")
        report.rows.append(_row(tokens, weights, device, home))
    return report


def _weights(layer: Layer, home: str) -> Weights:
    torch.manual_seed(0)
    dtype = product_dtype(home)
    distinct = min(DISTINCT, layer.experts)
    first = torch.randn(distinct, 2 * layer.inter, layer.hidden) * layer.hidden**-0.5
    second = torch.randn(distinct, layer.hidden, layer.inter) * layer.inter**-0.5
    w1, w1_scale = quantize_mxfp4(first.to(home))
    w2, w2_scale = quantize_mxfp4(second.to(home))
    wide = [
        (torch_dequantize(w1[e], w1_scale[e], dtype), torch_dequantize(w2[e], w2_scale[e], dtype))
        for e in range(distinct)
    ]
    copies = layer.experts // distinct

    def every(tensor: torch.Tensor) -> torch.Tensor:
        return tensor.repeat(copies, 1, 1)

    return Weights((every(w1), every(w1_scale), every(w2), every(w2_scale)), wide)


def _tokens(layer: Layer, tokens: int, home: str) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    torch.manual_seed(1)
    x = torch.randn(tokens, layer.hidden).bfloat16()
    chosen = torch.rand(tokens, layer.experts).topk(layer.slots).indices.int()
    weight = torch.rand(tokens, layer.slots)
    return x.to(home), chosen.to(home), (weight / weight.sum(-1, keepdim=True)).to(home)


def _call(layer: Layer, tokens: int, weights: Weights, device: str) -> Callable[[], torch.Tensor]:
    home = weights.packed[0].device.type
    x, chosen, weight = _tokens(layer, tokens, home)
    return lambda: mega_moe(x, chosen, weight, *weights.packed, swiglu_limit=LIMIT, backend=device)


def torch_loop(
    x: torch.Tensor,
    chosen: torch.Tensor,
    weight: torch.Tensor,
    experts: Callable[[int], tuple[torch.Tensor, torch.Tensor]],
) -> torch.Tensor:
    """The customary loop: for each expert that has tokens, gather, two matmuls, scatter."""
    out = torch.zeros_like(x)
    for expert in chosen.unique().tolist():
        token, slot = torch.where(chosen == expert)
        w1, w2 = experts(expert)
        gate, up = (x[token] @ w1.T).chunk(2, -1)
        h = torch.nn.functional.silu(gate.clamp(max=LIMIT)) * up.clamp(-LIMIT, LIMIT)
        out.index_add_(0, token, (h @ w2.T) * weight[token, slot, None].to(x.dtype))
    return out


def stated_bytes(tokens: int, slots: int, hidden: int, inter: int) -> float:
    """What :func:`kernelforge.mega_moe` states that a call takes at most beside its operands."""
    return tokens * slots * (hidden * 161 / 32 + inter * 33 / 32 + 64) + 4 * tokens * hidden


def _row(tokens: int, weights: Weights, device: str, home: str) -> Row:
    given = _tokens(FLASH, tokens, home)
    dtype = product_dtype(home)
    x, name = given[0].to(dtype), f"{short_name(dtype)} loop"
    w1, w1_scale, w2, w2_scale = weights.packed
    call = _call(FLASH, tokens, weights, device)

    def dequantized(expert: int) -> tuple[torch.Tensor, torch.Tensor]:
        return torch_dequantize(w1[expert], w1_scale[expert], dtype), torch_dequantize(
            w2[expert], w2_scale[expert], dtype
        )

    taken = interleaved(
        {
            "kernelforge": call,
            name: lambda: torch_loop(x, *given[1:], lambda expert: weights.wide[expert % DISTINCT]),
        },
        rounds=3,
        seconds=0,
        home=home,
    )
    started = time.perf_counter()
    torch_loop(x, *given[1:], dequantized).sum().item()  # waits for the device
    slow = time.perf_counter() - started
    ours = taken["kernelforge"].median
    pairs = tokens * FLASH.slots
    used = len(given[1].unique())
    memory = peak_memory(call, home=home)
    bound = stated_bytes(tokens, FLASH.slots, FLASH.hidden, FLASH.inter)
    return Row(
        f"T={tokens}, {used} experts used",
        {
            "ms": ours * 1e3,
            f"{name} ms": taken[name].median * 1e3,
            f"x {name}": taken[name].median / ours,
            **replays(taken),
            "dequantize loop ms": slow * 1e3,
            "x dequantize loop": slow / ours,
            "weights read GB": used * sum(t[0].nbytes for t in weights.packed) / 1e9,
            "GOP": 6.0 * pairs * FLASH.hidden * FLASH.inter / 1e9,
            "extra MiB": None if memory is None else memory / 2**20,
            "bound MiB": bound / 2**20,
        },
    )
