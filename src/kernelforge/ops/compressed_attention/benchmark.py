"""Compressed attention against eager torch, as a careful user writes it, and against transformers."""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch

from ...backends import device as find_device
from ...bench import Report, Row, interleaved, measure_roofline, product_dtype, replays
from .op import csa_attention, hca_attention

H, D, WINDOW, BLOCK = 64, 512, 128, 128


@dataclass(frozen=True)
class Shape:
    """Queries at positions ``first`` .. ``first + S - 1`` of one sequence; ``topk`` 0 is HCA."""

    name: str
    S: int
    first: int
    ratio: int
    topk: int
    heads: int = H
    width: int = D

    @property
    def entries(self) -> int:
        return (self.first + self.S) // self.ratio

    @property
    def seen(self) -> float:
        """Entries a query sees on average."""
        total = 0
        for p in range(self.first, self.first + self.S):
            complete = (p + 1) // self.ratio
            total += min(p + 1, WINDOW) + (min(complete, self.topk) if self.topk else complete)
        return total / self.S


SHAPES = (
    Shape("CSA decode at 64K", 1, 65535, 4, 512),
    Shape("HCA decode at 64K", 1, 65535, 128, 0),
    Shape("CSA prefill of 1K", 1024, 0, 4, 512),
    Shape("HCA prefill of 1K", 1024, 0, 128, 0),
    Shape("CSA prefill of 4K", 4096, 0, 4, 512),
    Shape("HCA prefill of 4K", 4096, 0, 128, 0),
)
TRANSFORMERS_QUERIES = 512
"""Queries that transformers takes at once: it holds its scores of every head, query and key in memory several times
over, more than 10 GB for 4K queries. Every block of queries meets all keys, so one stands for the others."""
VIRTUAL = (Shape("CSA, one query", 1, 1023, 4, 64, 16, 64), Shape("HCA, one query", 1, 1023, 128, 0, 16, 64))


@dataclass(frozen=True)
class Operands:
    """One batch row."""

    q: torch.Tensor
    kv: torch.Tensor
    entries: torch.Tensor
    indices: torch.Tensor
    sink: torch.Tensor
    positions: torch.Tensor

    def to(self, dtype: torch.dtype) -> Operands:
        """The same with queries, keys and entries of another type."""
        return replace(self, q=self.q.to(dtype), kv=self.kv.to(dtype), entries=self.entries.to(dtype))


def operands(shape: Shape, home: str) -> Operands:
    torch.manual_seed(0)
    rows = shape.S if shape.first == 0 else WINDOW
    draw = lambda *size: torch.randn(size).to(torch.bfloat16).to(home)  # noqa: E731
    positions = torch.arange(shape.first, shape.first + shape.S)
    complete = (positions + 1) // shape.ratio
    ranks = torch.rand(shape.S, max(shape.entries, 1))
    ranks = torch.where(torch.arange(ranks.shape[1]) < complete[:, None], ranks, 2.0)
    chosen = ranks.argsort(-1)[:, : max(shape.topk, 1)].int()
    chosen = torch.where(torch.arange(chosen.shape[1]) < complete[:, None], chosen, -1)
    return Operands(
        draw(1, shape.S, shape.heads, shape.width),
        draw(1, rows, shape.width),
        draw(1, shape.entries, shape.width),
        chosen[None].to(home),
        torch.randn(shape.heads).to(home),
        positions[None].to(home),
    )


def kernelforge_call(shape: Shape, x: Operands, numerics: str, device: str) -> Callable[[], torch.Tensor]:
    """This library's call."""
    if shape.topk:
        return lambda: csa_attention(
            x.q, x.kv, x.entries, x.indices, x.sink, x.positions, WINDOW, numerics=numerics, backend=device
        )
    return lambda: hca_attention(
        x.q, x.kv, x.entries, x.sink, x.positions, WINDOW, ratio=shape.ratio, numerics=numerics, backend=device
    )


def _softmax_with_sink(logits: torch.Tensor, sink: torch.Tensor) -> torch.Tensor:
    """Probabilities of float32 logits [heads, ..., keys] beside a sink per head."""
    column = sink.view(-1, *[1] * (logits.dim() - 1)).expand(*logits.shape[:-1], 1)
    return torch.cat([logits, column], -1).softmax(-1)[..., :-1]


def torch_decode(shape: Shape, x: Operands) -> torch.Tensor:
    """One query: gather, one product for all heads, softmax, one product."""
    entries = x.entries[0].index_select(0, x.indices[0, 0]) if shape.topk else x.entries[0]
    keys = torch.cat([x.kv[0], entries])
    p = _softmax_with_sink((x.q[0, 0] @ keys.T).float() * shape.width**-0.5, x.sink)
    return (p.to(keys.dtype) @ keys)[None, None]


def torch_prefill(shape: Shape, x: Operands) -> torch.Tensor:
    """Blocks of 128 queries: their raw and all complete entries, multiplied once for all heads and queries, masked."""
    out = torch.empty_like(x.q)
    selected = None
    if shape.topk:
        selected = torch.zeros(shape.S, shape.entries + 1, dtype=torch.bool, device=x.q.device)
        selected.scatter_(1, torch.where(x.indices[0] < 0, shape.entries, x.indices[0]).long(), True)
    for start in range(0, shape.S, BLOCK):
        end = min(start + BLOCK, shape.S)
        first, complete = max(0, start - WINDOW + 1), end // shape.ratio
        keys = torch.cat([x.kv[0, first:end], x.entries[0, :complete]])
        position = torch.arange(start, end, device=x.q.device)[:, None]
        raw = torch.arange(first, end, device=x.q.device)
        seen = (raw <= position) & (raw > position - WINDOW)
        if selected is None:
            known = torch.arange(complete, device=x.q.device) < (position + 1) // shape.ratio
        else:
            known = selected[start:end, :complete]
        mask = torch.cat([seen, known], 1)
        q = x.q[0, start:end].transpose(0, 1)
        logits = (q.reshape(-1, shape.width) @ keys.T).float().view(shape.heads, end - start, -1) * shape.width**-0.5
        p = _softmax_with_sink(logits.masked_fill_(~mask, float("-inf")), x.sink)
        block = (p.to(keys.dtype).view(-1, len(keys)) @ keys).view(shape.heads, end - start, -1)
        out[0, start:end] = block.transpose(0, 1)
    return out


def torch_call(shape: Shape, x: Operands, dtype: torch.dtype) -> Callable[[], torch.Tensor]:
    """Eager torch."""
    wide = x.to(dtype)
    return lambda: (torch_decode if shape.S == 1 else torch_prefill)(shape, wide)


def transformers_seconds(shape: Shape, x: Operands, dtype: torch.dtype) -> float | None:
    """Seconds of transformers' eager attention over the keys and the mask that its DeepSeek-V4 layer builds.

    One block of queries is timed, and multiplied by their number. None if it is not installed.
    """
    if importlib.util.find_spec("transformers") is None:
        return None
    from transformers.models.deepseek_v4 import modeling_deepseek_v4 as model

    class Layer(torch.nn.Module):
        num_key_value_groups = shape.heads
        sinks = x.sink.to(dtype)
        training = False

    layer, x = Layer(), x.to(dtype)
    block = min(shape.S, TRANSFORMERS_QUERIES)

    def call() -> torch.Tensor:
        raw, count = x.kv, shape.entries
        position = x.positions[0, -block:, None]
        start = int(x.positions.max()) + 1 - raw.shape[1]
        at = torch.arange(start, start + raw.shape[1], device=raw.device)
        mask = (at <= position) & (at > position - WINDOW)
        if shape.topk:
            known = torch.zeros(block, count + 1, dtype=torch.bool, device=raw.device)
            known.scatter_(1, torch.where(x.indices[0, -block:] < 0, count, x.indices[0, -block:]).long(), True)
            known = known[:, :count]
        else:
            known = torch.arange(count, device=raw.device) < (position + 1) // shape.ratio
        keys = torch.cat([raw, x.entries], 1)[:, None]
        bias = torch.zeros(block, keys.shape[2], dtype=dtype, device=raw.device)
        bias.masked_fill_(~torch.cat([mask, known], 1), float("-inf"))
        query = x.q[:, -block:].transpose(1, 2)
        out, _ = model.eager_attention_forward(
            layer, query, keys, keys, bias[None, None], shape.width**-0.5, dropout=0.0
        )
        return out

    taken = []
    for _ in range(2):
        before = time.perf_counter()
        call().sum().item()  # waits for the device
        taken.append(time.perf_counter() - before)
    return min(taken) * -(-shape.S // block)


def run(device: str, command: str, observe: Callable[[str], None] = lambda what: None) -> Report:
    """Measure on a device.

    Args:
        device: a kernelforge device; on a virtual one a small slice is run, and torch is not compared with.
        command: for the report.
        observe: told what is being measured.
    """
    owner, chosen = find_device(device)
    report = Report("compressed_attention", command, device)
    home = "cpu" if chosen.virtual else owner.tensor_device
    if chosen.virtual:
        report.notes.append(f"{device} executes on the host: these times are not the device's.")
        for shape in VIRTUAL:
            observe(f"{shape.name} on {device}")
            call = kernelforge_call(shape, operands(shape, home), "exact", device)
            taken = interleaved({"kernelforge": call}, rounds=3, seconds=0)["kernelforge"]
            report.rows.append(Row(shape.name, {"ms (executor)": taken.median * 1e3}))
        return report
    observe("the machine's roofline")
    roof = measure_roofline(home)
    report.notes += [
        "Interleaved rounds in one process; medians (prefill: one round). x is the other's time over kernelforge's.",
        f"Measured roofline: {roof.name} matmul {roof.product / 1e9:.0f} GFLOP/s, "
        f"int8 matmul {roof.int8 / 1e9:.0f} GOP/s.",
        f"{H} heads x {D}, window {WINDOW}, one sequence. GFLOP: both products over what a query sees.",
        f"torch: eager {roof.name}, entries multiplied once for all heads; prefill in blocks of 128 queries, "
        "which take all complete entries and mask.",
        "transformers: the eager attention function of its DeepSeek-V4 model on the keys and mask its layer builds "
        "(all complete entries, also for CSA); "
        f"prefill: one block of {TRANSFORMERS_QUERIES} queries, times their number.",
    ]
    if roof.dtype == torch.float32:
        report.notes.append(
            "bf16: both in the model's own type, which torch multiplies in plain loops here; decode only."
        )
    for shape in SHAPES:
        observe(shape.name)
        report.rows.append(_row(shape, device, home))
    return report


def _row(shape: Shape, device: str, home: str) -> Row:
    x = operands(shape, home)
    calls = {mode: kernelforge_call(shape, x, mode, device) for mode in ("exact", "native")}
    rivals = {"": product_dtype(home)}
    if rivals[""] == torch.float32 and shape.S == 1:
        rivals[" bf16"] = torch.bfloat16
    calls |= {f"torch{suffix}": torch_call(shape, x, dtype) for suffix, dtype in rivals.items()}
    long = shape.S > 1 and home == "cpu"
    timings = interleaved(calls, rounds=1 if long else 9, seconds=0 if long else 0.05, home=home)
    taken = {name: timing.median for name, timing in timings.items()}
    for suffix, dtype in rivals.items():
        other = transformers_seconds(shape, x, dtype)
        if other is not None:
            taken[f"transformers{suffix}"] = other
    values: dict[str, Any] = {f"{name} ms": seconds * 1e3 for name, seconds in taken.items()}
    for mode in ("exact", "native"):
        values |= {
            f"{mode} x {rival}": taken[rival] / taken[mode] for rival in taken if rival not in ("exact", "native")
        }
    values |= replays({name: timings[name] for name in ("exact", "torch")}, "exact")
    values["GFLOP"] = 4.0 * shape.S * shape.seen * shape.heads * shape.width / 1e9
    return Row(shape.name, values)
