"""Compression of 4096 tokens at DeepSeek-V4's width against torch, eager and compiled."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch

from ...bench import Report, Row, interleaved, measure_roofline
from ...bench.competing import against_torch
from ..support import home_of
from . import eager
from .op import csa_compress, hca_compress

TOKENS, D, PAIRS = 4096, 512, 32
KINDS: tuple[tuple[str, Any, int, int], ...] = (("CSA", csa_compress, 4, 2), ("HCA", hca_compress, 128, 1))
"""Name, function, ratio, series of channels."""
Tensor = torch.Tensor


def run(device: str, command: str, observe: Callable[[str], None] = lambda what: None) -> Report:
    """Measure on a device; on a virtual one a small slice is run, and torch is not compared with."""
    report = Report("compress", command, device)
    given: Any
    home = home_of(device)
    if ":" in device:
        report.notes.append(f"{device} executes on the host: these times are not the device's.")
        for name, ours, ratio, series in KINDS:
            given = _operands(ratio, ratio, series, torch.float32, home)
            taken = interleaved({name: functools.partial(ours, *given, ratio, backend=device)}, rounds=3, seconds=0)
            report.rows.append(Row(f"{name}, {ratio} tokens", {"ms (executor)": taken[name].median * 1e3}))
        return report
    observe("the machine's roofline")
    roof = measure_roofline(home)
    report.notes += [
        "Interleaved rounds in one process; medians. x is torch's time over kernelforge's.",
        f"Measured copy bandwidth {roof.copy / 1e9:.1f} GB/s, read and written. Operands that fit the last level of "
        "cache are read from there and can exceed it.",
        "Every element of kv takes one exponential, about 28 vector operations in all; they are the limit where the "
        "operands are in a cache.",
        "with gradients: entries, then from a gradient of theirs those of tokens, bias and weight.",
        "extra MiB: resident memory at its highest during a call, above operands; the results are part of it.",
    ]
    for name, ours, ratio, series in KINDS:
        for dtype in (torch.float32, torch.bfloat16):
            what = f"{name}, {TOKENS} tokens, D = {D}, ratio {ratio}, {str(dtype).removeprefix('torch.')}"
            observe(what)
            given = _operands(TOKENS, ratio, series, dtype, home)
            report.rows.append(_row(what, ours, given, ratio, device, roof.copy))
            observe(f"{what}, with gradients")
            report.rows.append(_row(f"{what}, with gradients", ours, given, ratio, device, roof.copy, train=True))
    return report


def _operands(tokens: int, ratio: int, series: int, dtype: torch.dtype, home: str) -> tuple[Tensor, ...]:
    torch.manual_seed(0)
    shape = (1, tokens, series * D)
    kv, gate = (torch.randn(shape, device=home).to(dtype) for _ in range(2))
    angles = torch.outer(torch.arange(float(tokens)), 10000.0 ** (-torch.arange(PAIRS) / PAIRS)).to(home)
    bias, weight = torch.randn(ratio, series * D, device=home), torch.ones(D, device=home)
    return kv, gate, bias, weight, angles.cos(), angles.sin()


def _row(what: str, ours: Any, given: Any, ratio: int, device: str, copy: float, train: bool = False) -> Row:
    """Entries, or with ``train`` entries and the gradients of tokens and weights from a gradient of the entries."""
    theirs: Any = eager.compress
    compiled: Any = torch.compile(theirs)
    entries = ours(*given, ratio, backend=device)[0]
    nbytes = sum(tensor.nbytes for tensor in given[:4]) + entries.nbytes
    if train:
        trained = [tensor.clone().requires_grad_() for tensor in given[:4]]
        given, grad = (*trained, *given[4:]), torch.randn_like(entries)
        # Tokens are read again and their gradients written, and the entries' read.
        nbytes += 2 * sum(tensor.nbytes for tensor in trained) + entries.nbytes

    def finish(found: Tensor) -> Any:
        return torch.autograd.grad(found, trained, grad) if train else found

    return against_torch(
        what,
        lambda: finish(ours(*given, ratio, backend=device)[0]),
        lambda: finish(theirs(*given, ratio)),
        lambda: finish(compiled(*given, ratio)),
        nbytes,
        copy,
        rounds=7,
        home=given[0].device.type,
    )
