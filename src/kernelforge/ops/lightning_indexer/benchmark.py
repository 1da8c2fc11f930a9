"""Lightning indexer against torch, as a careful user writes it, and transformers; what FP4 keeps."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass

import torch

from ...backends import device as find_device
from ...bench import Report, Roofline, Row, interleaved, measure_roofline, peak_memory, product_dtype, replays
from ..mx_quantize.op import dequantize_mxfp4, quantize_mxfp4
from . import recall
from .op import lightning_indexer
from .recall import DEPTH, HEADS, TOPK

QUERY_BLOCK = 128
"""Queries that torch takes at a time in prefill: the scores of all heads of a block are written out."""

TRANSFORMERS_QUERIES = 256
"""Queries that transformers takes at once: it holds the float32 scores of every head, query and key several times over.
Every block of queries meets all keys, so one stands for the others."""


@dataclass(frozen=True)
class Shape:
    """S queries over T entries; ``causal``: query s sees (s + 1) // 4 entries."""

    phase: str
    S: int
    T: int
    causal: bool = False


SHAPES = (
    Shape("decode, 64K tokens", 1, 1 << 14),
    Shape("decode, 256K tokens", 1, 1 << 16),
    Shape("decode, 1M tokens", 1, 1 << 18),
    Shape("decode, 4M tokens", 1, 1 << 20),
    Shape("prefill, 4K tokens", 4096, 1024, True),
)
VIRTUAL = Shape("slice", 2, 64)


@dataclass(frozen=True)
class Operands:
    """A call's operands, and for torch the same values in the type that it multiplies in."""

    q: torch.Tensor
    q_scale: torch.Tensor
    k: torch.Tensor
    k_scale: torch.Tensor
    weights: torch.Tensor
    kv_len: torch.Tensor
    q_wide: torch.Tensor
    k_wide: torch.Tensor

    @classmethod
    def draw(cls, shape: Shape, home: str) -> Operands:
        torch.manual_seed(0)
        q, q_scale = quantize_mxfp4(torch.randn(shape.S, HEADS, DEPTH).to(home))
        k, k_scale = quantize_mxfp4(torch.randn(shape.T, DEPTH).to(home))
        weights = torch.randn(shape.S, HEADS) * (HEADS * DEPTH) ** -0.5
        seen = (torch.arange(shape.S) + 1) // 4 if shape.causal else torch.full((shape.S,), shape.T)
        wide = (dequantize_mxfp4(x, s, torch.bfloat16).to(product_dtype(home)) for x, s in ((q, q_scale), (k, k_scale)))
        tensors = (q, q_scale, k, k_scale, weights, seen.to(torch.int32), *wide)
        return cls(*(tensor.to(home) for tensor in tensors))

    def call(self, device: str, topk: int = TOPK) -> torch.Tensor:
        return lightning_indexer(
            self.q, self.q_scale, self.k, self.k_scale, self.weights, topk, self.kv_len, backend=device
        )


def torch_indexer(given: Operands, in_place: bool) -> list[torch.Tensor]:
    """Chosen entries by torch: keys times all heads in one product, queries in blocks.

    ``in_place`` also writes relu over the products and leaves out entries that none of a block's queries sees.
    """
    weights, chosen = given.weights.to(given.q_wide.dtype), []
    for first in range(0, given.q_wide.shape[0], QUERY_BLOCK):
        block = slice(first, first + QUERY_BLOCK)
        seen = given.kv_len[block]
        entries = max(int(seen.max()), 1) if in_place else given.k_wide.shape[0]
        products = given.q_wide[block].flatten(0, 1) @ given.k_wide[:entries].T
        positive = products.relu_() if in_place else products.relu()
        scores = (weights[block, None] @ positive.view(-1, HEADS, entries)).squeeze(1)
        if int(seen.min()) < entries:
            scores.masked_fill_(torch.arange(entries, device=scores.device) >= seen[:, None], float("-inf"))
        chosen.append(scores.topk(min(TOPK, entries)).indices)
    return chosen


def transformers_seconds(given: Operands) -> float | None:
    """Seconds of transformers' DeepSeek-V4 scores and a top-k; None if it is not installed.

    One block of queries is timed, and multiplied by their number.
    """
    if importlib.util.find_spec("transformers") is None:
        return None
    from transformers.models.deepseek_v4 import configuration_deepseek_v4 as configuration
    from transformers.models.deepseek_v4 import modeling_deepseek_v4 as model

    shape = configuration.DeepseekV4Config(index_n_heads=HEADS, index_head_dim=DEPTH, hidden_size=HEADS)
    scorer = model.DeepseekV4IndexerScorer(shape)
    scorer.add_module("weights_proj", torch.nn.Identity())  # the hidden states given are the weights
    scorer.to(given.q_wide.device)
    queries, entries = given.q_wide.shape[0], given.k_wide.shape[0]
    block = min(queries, TRANSFORMERS_QUERIES)
    q, weights, seen = given.q_wide[None, -block:], given.weights[None, -block:], given.kv_len[-block:]

    def call() -> torch.Tensor:
        with torch.no_grad():
            scores = scorer(q, given.k_wide[None], weights)
        future = torch.arange(entries, device=scores.device) >= seen[:, None]
        indices: torch.Tensor = scores.masked_fill_(future, float("-inf")).topk(min(TOPK, entries)).indices
        return indices

    return interleaved({"transformers": call}, rounds=3, seconds=0.02)["transformers"].median * queries / block


def run(device: str, command: str, observe: Callable[[str], None] = lambda what: None) -> Report:
    """Measure on a device.

    Args:
        device: a kernelforge device; on a virtual one a small slice is run, and torch is not compared with.
        command: for the report.
        observe: told what is being measured.
    """
    owner, chosen = find_device(device)
    report = Report("lightning_indexer", command, device)
    if chosen.virtual:
        report.notes.append(f"{device} executes on the host: these times are not the device's.")
        given = Operands.draw(VIRTUAL, "cpu")
        taken = interleaved({"kernelforge": lambda: given.call(device, 8)}, rounds=3)["kernelforge"].median
        report.rows.append(Row(f"{VIRTUAL.phase}, S={VIRTUAL.S}, T={VIRTUAL.T}", {"ms": taken * 1e3}))
        return report
    home = owner.tensor_device
    observe("the machine's roofline")
    roof = measure_roofline(home)
    report.notes += [
        f"{HEADS} heads x {DEPTH}, top {TOPK} (DeepSeek-V4-Flash); one entry for four tokens.",
        "Interleaved rounds in one process; medians. x is torch's time over kernelforge's.",
        f"torch {roof.name}: keys times all heads in one product, relu, weighted sum as a batched product, topk; "
        f"prefill in blocks of {QUERY_BLOCK} queries, masked. Operands dequantized beforehand.",
        "transformers: DeepseekV4IndexerScorer (float32 scores of all heads, as it computes them) and topk; prefill: "
        f"one block of {TRANSFORMERS_QUERIES} queries, times their number.",
        "in place: relu overwrites the products, and a block leaves out entries that none of its queries sees.",
        f"Measured roofline: copy {roof.copy / 1e9:.1f} GB/s, {roof.name} matmul {roof.product / 1e9:.0f} GFLOP/s, "
        f"int8 matmul {roof.int8 / 1e9:.0f} GOP/s (0: torch has none but a loop here).",
        "% of roofline: the least time for the call's bytes and dots over the time taken.",
        "extra MiB: resident memory at its highest during a call, above operands; the output is part of it.",
    ]
    for shape in SHAPES:
        observe(shape.phase)
        report.rows.append(_row(shape, device, home, roof))
    observe("selection")
    report.rows.append(_selection_row(home))
    observe("recall")
    report.notes.append(
        "recall: of the 512 of 16K entries that float32 scores choose, the share that the call chooses; of its own FP4 "
        "operands' scores (rounding to bfloat16 alone), and of the scores of the operands before quantization. "
        "Structured data under noise, see ops/lightning_indexer/recall.py. score kept: the chosen entries' scores "
        "before quantization, over the most that 512 have. cut / error: how far those scores fall from 32 ranks above "
        "the cut to 32 below, over the error that quantization brings."
    )
    for noise in (0.5, 1.0, 2.0):
        found = recall.measure(noise, device)
        values = {
            "recall, bf16 scores %": 100 * found.rounded,
            "recall, FP4 and bf16 scores %": 100 * found.quantized,
            "score kept %": 100 * found.score,
            "cut / error": found.slope,
        }
        report.rows.append(Row(f"recall, noise {noise}", values))
    return report


def _row(shape: Shape, device: str, home: str, roof: Roofline) -> Row:
    given, name = Operands.draw(shape, home), f"torch {roof.name}"
    taken = interleaved(
        {
            "kernelforge": lambda: given.call(device),
            name: lambda: torch_indexer(given, False),
            "in place": lambda: torch_indexer(given, True),
        },
        rounds=5 if shape.causal else 7,
        seconds=0.02,
        home=home,
    )
    ours = taken["kernelforge"].median
    theirs = transformers_seconds(given)
    seen = int(given.kv_len.sum())
    nbytes = sum(x.nbytes for x in (given.q, given.q_scale, given.k, given.k_scale, given.weights)) + 4 * TOPK * shape.S
    operations = 2.0 * seen * HEADS * DEPTH
    memory = peak_memory(lambda: given.call(device), home=home)
    return Row(
        f"{shape.phase}: S={shape.S}, T={shape.T}{', causal' if shape.causal else ''}",
        {
            "ms": ours * 1e3,
            f"{name} ms": taken[name].median * 1e3,
            f"x {name}": taken[name].median / ours,
            "in place ms": taken["in place"].median * 1e3,
            "x in place": taken["in place"].median / ours,
            **replays(taken),
            "transformers ms": None if theirs is None else theirs * 1e3,
            "x transformers": None if theirs is None else theirs / ours,
            "ns per score": ours * 1e9 / seen,
            "GOP": operations / 1e9,
            "% of roofline": 100 * roof.least_seconds(nbytes, operations, True) / ours,
            "extra MiB": None if memory is None else memory / 2**20,
        },
    )


def _selection_row(home: str) -> Row:
    """What a selection gains from scores of 16 bits, in torch."""
    scores = torch.randn(1, 1 << 18, device=home)
    rounded = scores.to(torch.bfloat16)
    taken = interleaved({"float32": lambda: scores.topk(TOPK), "bfloat16": lambda: rounded.topk(TOPK)}, rounds=5)
    return Row(
        "torch.topk alone, 512 of 256K",
        {
            "ms": taken["bfloat16"].median * 1e3,
            "float32 ms": taken["float32"].median * 1e3,
            "x float32": taken["float32"].median / taken["bfloat16"].median,
        },
    )
