"""What ``kernelforge bench`` measures of modules, beside the rows of the op they are made of."""

from __future__ import annotations

from collections.abc import Callable

import torch

from ..bench import Row, interleaved, peak_memory
from .hyper_connection import HyperConnection

C, N = 4096, 4
Tensor = torch.Tensor
Observe = Callable[[str], None]


def hyper_connections(device: str, observe: Observe) -> list[Row]:
    """Time and memory of :class:`HyperConnection`, forward and backward around a cheap block, on the CPU: ``recompute``
    off, and on but for every fourth."""
    if device != "cpu":
        return []
    layers, run, tokens = 12, 4, 512
    calls = {}
    for recompute in (False, True):
        torch.manual_seed(0)
        modules = [HyperConnection(C, N, recompute=recompute and i % run > 0, backend=device) for i in range(layers)]
        start = torch.randn(1, tokens, N, C).to(torch.bfloat16)

        def call(modules: list[HyperConnection] = modules, start: Tensor = start) -> None:
            x = start.requires_grad_()
            for module in modules:
                x = module(x, torch.nn.functional.silu)
            x.backward(torch.ones_like(x))

        kept = f"streams kept every {run}" if recompute else "all streams kept"
        calls[f"{layers} HyperConnection, {tokens} tokens, forward and backward, {kept}"] = call
    observe("modules")
    taken = interleaved(calls, rounds=3)
    rows = []
    for name, call in calls.items():
        memory = peak_memory(call)
        values = {"ms": taken[name].median * 1e3, "extra MiB": None if memory is None else memory / 2**20}
        rows.append(Row(name, values))
    return rows


MODULES: dict[str, Callable[[str, Observe], list[Row]]] = {"mhc": hyper_connections}
"""Rows of modules on a device, by the op's name."""
