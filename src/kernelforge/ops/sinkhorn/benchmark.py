"""Sinkhorn normalization against torch, eager and compiled."""

from __future__ import annotations

from collections.abc import Callable

import torch

from ...bench import Report, Row, interleaved, measure_roofline
from ...bench.competing import against_torch
from ..support import home_of
from . import eager
from .op import sinkhorn

TOKENS, N = 4096, 4


def run(device: str, command: str, observe: Callable[[str], None] = lambda what: None) -> Report:
    """Measure on a device; on a virtual one a small slice is run, and torch is not compared with."""
    report = Report("sinkhorn", command, device)
    home = home_of(device)
    if ":" in device:
        logits = torch.randn(64, N, N)
        taken = interleaved({"call": lambda: sinkhorn(logits, backend=device)}, rounds=3, seconds=0)
        report.notes.append(f"{device} executes on the host: these times are not the device's.")
        report.rows.append(Row("64 matrices, forward", {"ms (executor)": taken["call"].median * 1e3}))
        return report
    observe("the machine's roofline")
    copy = measure_roofline(home).copy
    report.notes += [
        "Interleaved rounds in one process; medians. x is torch's time over kernelforge's.",
        f"Measured copy bandwidth {copy / 1e9:.1f} GB/s, read and written.",
        "Backward: the gradients alone, the forward pass done before (torch.autograd.grad, retain_graph).",
    ]
    torch.manual_seed(0)
    logits, grad = (torch.randn(TOKENS, N, N, device=home) for _ in range(2))
    name = f"{TOKENS} matrices {N} x {N}, 20 iterations"
    observe("forward")
    report.rows.append(
        against_torch(
            f"{name}, forward",
            lambda: sinkhorn(logits, backend=device),
            lambda: eager.sinkhorn(logits),
            _compiled(logits),
            2 * logits.nbytes,
            copy,
            home=home,
        )
    )
    observe("backward")
    leaf = logits.clone().requires_grad_()
    ours, theirs = sinkhorn(leaf, backend=device), eager.sinkhorn(leaf)
    report.rows.append(
        against_torch(
            f"{name}, backward",
            lambda: torch.autograd.grad(ours, leaf, grad, retain_graph=True),
            lambda: torch.autograd.grad(theirs, leaf, grad, retain_graph=True),
            None,
            3 * logits.nbytes,
            copy,
            home=home,
        )
    )
    return report


def _compiled(logits: torch.Tensor) -> Callable[[], torch.Tensor]:
    compiled = torch.compile(eager.sinkhorn)
    return lambda: compiled(logits)
