"""Hyper-connections of DeepSeek-V4-Flash's width against torch, eager and compiled."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from ...bench import Report, Row, interleaved, measure_roofline
from ...bench.competing import against_torch
from ...runtime import host_memory
from ..support import home_of
from . import eager
from .op import mhc_post, mhc_pre

TOKENS, N, C = 4096, 4, 4096
Tensor = torch.Tensor


def run(device: str, command: str, observe: Callable[[str], None] = lambda what: None) -> Report:
    """Measure on a device; on a virtual one a small slice is run, and torch is not compared with."""
    report = Report("mhc", command, device)
    home = home_of(device)
    virtual = ":" in device
    pre, post = _operands(*((8, 64) if virtual else (TOKENS, C)), home)
    if virtual:
        report.notes.append(f"{device} executes on the host: these times are not the device's.")
        taken = interleaved(
            {
                "mhc_pre": lambda: mhc_pre(*pre, backend=device),
                "mhc_post": lambda: mhc_post(*post, backend=device),
            },
            rounds=3,
            seconds=0,
        )
        report.rows += [Row(f"{name}, 8 tokens", {"ms (executor)": t.median * 1e3}) for name, t in taken.items()]
        return report
    observe("the machine's roofline")
    roof = measure_roofline(home)
    report.notes += [
        "Interleaved rounds in one process; medians. x is torch's time over kernelforge's.",
        f"Measured copy bandwidth {roof.copy / 1e9:.1f} GB/s, read and written, int8 {roof.int8 / 1e9:.0f} GOP/s",
        "mhc_pre's projection is six int8 dots of 16384 elements for 24 outputs: 19.3 GOP.",
        "Backward: the gradients alone, the forward pass done before (torch.autograd.grad, retain_graph).",
        "extra MiB: resident memory at its highest during a call, above operands; the results are part of it.",
        "The copy is into memory that is there; results of 8 MiB and more lie in blocks that earlier results left, "
        "torch's in fresh memory. In fresh memory: the same without that pool (KERNELFORGE_HOST_CACHE_MIB=0).",
    ]
    size = f"{TOKENS} tokens, n = {N}, C = {C}, bfloat16"
    for name, ours, theirs, given in (
        ("mhc_pre", mhc_pre, eager.mhc_pre, pre),
        ("mhc_post", mhc_post, eager.mhc_post, post),
    ):
        observe(f"{name} forward")
        report.rows.append(_forward(f"{name}, {size}, forward", ours, theirs, given, device, roof.copy))
        if home == "cpu":
            report.rows.append(_in_fresh_memory(report.rows[-1], ours, given, device))
        observe(f"{name} backward")
        report.rows.append(_backward(f"{name}, {size}, backward", ours, theirs, given, device, roof.copy))
    return report


def _in_fresh_memory(row: Row, ours: Any, given: tuple[Tensor, ...], device: str) -> Row:
    """A forward row's call where no result finds memory of an earlier one."""
    kept = host_memory.shared.limit
    host_memory.shared.limit = 0
    try:
        taken = interleaved({"call": lambda: ours(*given, backend=device)}, rounds=5)["call"].median * 1e3
    finally:
        host_memory.shared.limit = kept
    values: dict[str, Any] = {"ms": taken}
    for other in ("torch eager", "torch.compile"):
        theirs = row.values[f"{other} ms"]
        assert isinstance(theirs, float)
        values[f"x {other}"] = theirs / taken
    return Row(f"{row.name}, in fresh memory", values)


def _operands(tokens: int, channels: int, home: str) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    torch.manual_seed(0)
    x = torch.randn(1, tokens, N, channels, device=home).to(torch.bfloat16)
    outputs = N * (N + 2)
    weights = torch.randn(outputs, N * channels, device=home) * 0.02
    pre = (x, weights, torch.full((3,), 0.1, device=home), torch.zeros(outputs, device=home))
    y = torch.randn(1, tokens, channels, device=home).to(torch.bfloat16)
    gates = torch.rand(1, tokens, N, device=home) * 2
    comb = torch.full((1, tokens, N, N), 1 / N, device=home)
    return pre, (y, x, gates, comb)


def _nbytes(tensors: Sequence[Tensor]) -> int:
    return sum(tensor.nbytes for tensor in tensors)


def _results(found: Any) -> tuple[Tensor, ...]:
    return found if isinstance(found, tuple) else (found,)


def _forward(name: str, ours: Any, theirs: Any, given: tuple[Tensor, ...], device: str, copy: float) -> Row:
    compiled = torch.compile(theirs)
    moved = _nbytes(given) + _nbytes(_results(ours(*given, backend=device)))
    return against_torch(
        name,
        lambda: ours(*given, backend=device),
        lambda: theirs(*given),
        lambda: compiled(*given),
        moved,
        copy,
        home=given[0].device.type,
    )


def _backward(name: str, ours: Any, theirs: Any, given: tuple[Tensor, ...], device: str, copy: float) -> Row:
    leaves = [tensor.clone().requires_grad_() for tensor in given]
    results, others = _results(ours(*leaves, backend=device)), _results(theirs(*leaves))
    grads = [torch.randn_like(result) for result in results]
    return against_torch(
        name,
        lambda: torch.autograd.grad(results, leaves, grads, retain_graph=True),
        lambda: torch.autograd.grad(others, leaves, grads, retain_graph=True),
        None,
        _nbytes(grads) + 2 * _nbytes(leaves),
        copy,
        rounds=3,
        home=given[0].device.type,
    )
