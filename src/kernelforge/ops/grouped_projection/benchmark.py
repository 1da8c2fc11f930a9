"""The grouped output projection at DeepSeek-V4-Flash's shape, BF16 and MXFP4 weights, against torch."""

from __future__ import annotations

from collections.abc import Callable

import torch

from ...bench import Report, Roofline, Row, interleaved, measure_roofline, peak_memory, replays
from ..mx_quantize.op import dequantize_mxfp4, quantize_mxfp4
from ..support import home_of
from .op import grouped_output_projection

Tensor = torch.Tensor
HEADS, D, GROUPS, RANK, HIDDEN = 64, 512, 8, 1024, 4096
TOKENS = (1, 16, 512)
SLICE = (2, 32, 2, 32, 64)
"""Heads, D, groups, rank and hidden size of what a virtual device runs."""


def run(device: str, command: str, observe: Callable[[str], None] = lambda what: None) -> Report:
    """Measure on a device; on a virtual one a small slice is run, and torch is not compared with."""
    report = Report("grouped_projection", command, device)
    home = home_of(device)
    if ":" in device:
        report.notes.append(f"{device} executes on the host: these times are not the device's.")
        o, wa, wb = _operands(1, SLICE, home)
        taken = interleaved({"call": lambda: grouped_output_projection(o, wa, wb, backend=device)}, rounds=3, seconds=0)
        report.rows.append(Row("BF16 weights, 1 token", {"ms (executor)": taken["call"].median * 1e3}))
        return report
    observe("the machine's roofline")
    roof = measure_roofline(home)
    report.notes += [
        "Interleaved rounds in one process; medians. x is torch's time over kernelforge's.",
        f"{HEADS} heads of {D} in {GROUPS} groups, each to a rank of {RANK}, all ranks to {HIDDEN}.",
        f"Measured roofline: copy {roof.copy / 1e9:.1f} GB/s, {roof.name} matmul {roof.product / 1e9:.0f} GFLOP/s.",
        "% of roofline: the least time for the call's bytes, or for its products on torch's matmul, over the time "
        "taken. An exact product of BF16 by BF16 is four int8 dots, of BF16 by MXFP4 one bf16 dot.",
        f"torch: a batched matmul over groups and a matmul, both in {roof.name}, with MXFP4 weights dequantized "
        "beforehand.",
    ]
    for tokens in TOKENS:
        for kind in ("BF16", "MXFP4"):
            what = f"{kind} weights, {tokens} token{'s' if tokens > 1 else ''}"
            observe(what)
            report.rows.append(_row(what, kind, tokens, device, home, roof))
    return report


def _operands(tokens: int, shape: tuple[int, int, int, int, int], home: str) -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(0)
    heads, width, groups, rank, hidden = shape
    K = heads // groups * width
    o, wa = torch.randn(tokens, heads, width), torch.randn(groups, rank, K) * K**-0.5
    wb = torch.randn(hidden, groups * rank) * (groups * rank) ** -0.5
    return o.bfloat16().to(home), wa.bfloat16().to(home), wb.bfloat16().to(home)


def _torch(o: Tensor, wa: Tensor, wb: Tensor) -> Tensor:
    groups, rank, K = wa.shape
    ranks = torch.bmm(o.view(-1, groups, K).transpose(0, 1), wa.transpose(1, 2))
    return ranks.transpose(0, 1).reshape(-1, groups * rank) @ wb.T


def _row(what: str, kind: str, tokens: int, device: str, home: str, roof: Roofline) -> Row:
    o, wa, wb = _operands(tokens, (HEADS, D, GROUPS, RANK, HIDDEN), home)
    weights: tuple[Tensor, ...] = (wa, wb)
    if kind == "MXFP4":
        (qa, sa), (qb, sb) = quantize_mxfp4(wa), quantize_mxfp4(wb)
        weights = (qa, qb, sa, sb)
        wa, wb = dequantize_mxfp4(qa, sa, torch.bfloat16), dequantize_mxfp4(qb, sb, torch.bfloat16)

    def call() -> Tensor:
        return grouped_output_projection(o, *weights, backend=device)

    name, wide = f"torch {roof.name}", [x.to(roof.dtype) for x in (o, wa, wb)]
    taken = interleaved({"kernelforge": call, name: lambda: _torch(*wide)}, rounds=5, home=home)
    ours, theirs = taken["kernelforge"].median, taken[name].median
    nbytes = sum(w.nbytes for w in weights) + o.nbytes + 2 * tokens * (2 * GROUPS * RANK + HIDDEN)
    operations = 2.0 * tokens * (wa.numel() + wb.numel())
    memory = peak_memory(call, home=home)
    return Row(
        what,
        {
            "ms": ours * 1e3,
            f"{name} ms": theirs * 1e3,
            f"x {name}": theirs / ours,
            **replays(taken),
            "MB moved": nbytes / 1e6,
            "GOP": operations / 1e9,
            "% of roofline": 100 * roof.least_seconds(nbytes, operations, integer=False) / ours,
            "extra MiB": None if memory is None else memory / 2**20,
        },
    )
