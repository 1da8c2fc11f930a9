"""MXFP4 GEMM against torch: a matmul of weights that were dequantized before, and dequantize-then-matmul."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass

import torch

from ...backends import device as find_device
from ...bench import (
    Report,
    Roofline,
    Row,
    interleaved,
    measure_roofline,
    peak_memory,
    product_dtype,
    replays,
    short_name,
)
from ...formats import e2m1
from ...numerics.block_accumulate import SCALE_GROUP
from ..mx_quantize.op import quantize_mxfp4, quantize_mxfp8
from .op import mxfp4_gemm

MODES = ("W4A4", "W4A8", "W4A8 fp32 scales", "W4A16")


@dataclass(frozen=True)
class Shape:
    """One product [M, K] x [N, K]^T."""

    phase: str
    M: int
    N: int
    K: int


DECODE = Shape("decode", 1, 4096, 4096)
PREFILL = Shape("prefill", 512, 4096, 4096)
E4M3_LARGEST = torch.finfo(torch.float8_e4m3fn).max
VIRTUAL = Shape("slice", 16, 64, 128)


def run(device: str, command: str, observe: Callable[[str], None] = lambda what: None) -> Report:
    """Measure on a device.

    Args:
        device: a kernelforge device; on a virtual one a small slice is run, and torch is not compared with.
        command: for the report.
        observe: told what is being measured.
    """
    owner, chosen = find_device(device)
    report = Report("mxfp4_gemm", command, device)
    if chosen.virtual:
        report.notes.append(f"{device} executes on the host: these times are not the device's.")
        for mode in MODES:
            observe(f"{mode} on {device}")
            report.rows.append(_virtual_row(mode, device))
        return report
    home = owner.tensor_device
    observe("the machine's roofline")
    roof = measure_roofline(home)
    report.notes += [
        "Interleaved rounds in one process; medians. x is torch's time over kernelforge's.",
        f"Measured roofline: copy {roof.copy / 1e9:.1f} GB/s, {roof.name} matmul {roof.product / 1e9:.0f} GFLOP/s, "
        f"int8 matmul {roof.int8 / 1e9:.0f} GOP/s (0: torch has none but a loop here).",
        "% of roofline: the least time for the call's bytes and operations over the time taken.",
        f"torch {roof.name}: a @ w.T with weights dequantized beforehand. dequantize + matmul: packed weights to "
        f"{roof.name} by a table of byte pairs, times the scales, then the matmul, in torch.",
        "extra MiB: resident memory at its highest during a call, above operands; the output is part of it.",
    ]
    for shape in (DECODE, PREFILL):
        for mode in MODES:
            observe(f"{shape.phase} M={shape.M} {mode}")
            report.rows.append(_row(shape, mode, device, home, roof))
    observe("call overhead")
    report.rows.append(_overhead_row(device, home))
    return report


def _activations(x: torch.Tensor, mode: str) -> tuple[torch.Tensor, torch.Tensor | None]:
    if mode == "W4A4":
        return quantize_mxfp4(x)
    if mode == "W4A8":
        return quantize_mxfp8(x)
    if mode == "W4A16":
        return x.to(torch.bfloat16), None
    groups = x.view(x.shape[0], -1, min(SCALE_GROUP, x.shape[1]))
    scale = groups.abs().amax(-1) / E4M3_LARGEST
    return (groups / scale[..., None]).view(x.shape).to(torch.float8_e4m3fn), scale


def _operands(
    shape: Shape, mode: str, home: str
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None, torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    x = torch.randn(shape.M, shape.K).to(home)
    w = torch.randn(shape.N, shape.K).to(home) * shape.K**-0.5
    return x.to(product_dtype(home)), *_activations(x, mode), *quantize_mxfp4(w)


def torch_dequantize(packed: torch.Tensor, scale: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """MXFP4 weights to ``dtype`` [N, K] as a careful torch user does: a table of byte pairs, then the scales."""
    pairs = _byte_pairs(dtype, packed.device)
    factor = torch.exp2(scale.float() - 127).to(dtype)
    blocks = pairs[packed.int()].view(*scale.shape, 32)
    return (blocks * factor[..., None]).view(packed.shape[0], -1)


@functools.cache
def _byte_pairs(dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    values = torch.tensor([e2m1.VALUES[c & 7] * (-1 if c >= 8 else 1) for c in range(16)], dtype=dtype)
    byte = torch.arange(256)
    return torch.stack([values[byte & 15], values[byte >> 4]], -1).to(device)


def _row(shape: Shape, mode: str, device: str, home: str, roof: Roofline) -> Row:
    x, a, a_scale, w, w_scale = _operands(shape, mode, home)
    wide, name = torch_dequantize(w, w_scale, x.dtype), f"torch {short_name(x.dtype)}"

    def call() -> torch.Tensor:
        return mxfp4_gemm(a, a_scale, w, w_scale, backend=device)

    taken = interleaved(
        {
            "kernelforge": call,
            name: lambda: x @ wide.T,
            "dequantize + matmul": lambda: x @ torch_dequantize(w, w_scale, x.dtype).T,
        },
        home=home,
    )
    ours = taken["kernelforge"].median
    operands = sum(t.nbytes for t in (a, a_scale, w, w_scale) if t is not None)
    nbytes = operands + 2 * shape.M * shape.N
    operations = 2.0 * shape.M * shape.N * shape.K
    memory = peak_memory(call, home=home)
    return Row(
        f"{shape.phase} {mode}, M={shape.M}, N={shape.N}, K={shape.K}",
        {
            "ms": ours * 1e3,
            f"{name} ms": taken[name].median * 1e3,
            f"x {name}": taken[name].median / ours,
            "dequantize + matmul ms": taken["dequantize + matmul"].median * 1e3,
            "x dequantize + matmul": taken["dequantize + matmul"].median / ours,
            **replays(taken),
            "MB moved": nbytes / 1e6,
            "GOP": operations / 1e9,
            "% of roofline": 100 * roof.least_seconds(nbytes, operations, mode == "W4A4") / ours,
            "extra MiB": None if memory is None else memory / 2**20,
        },
    )


def _overhead_row(device: str, home: str) -> Row:
    shape = Shape("call", 1, 32, 32)
    x, a, a_scale, w, w_scale = _operands(shape, "W4A8", home)
    wide, name = torch_dequantize(w, w_scale, x.dtype), f"torch {short_name(x.dtype)}"
    taken = interleaved(
        {"kernelforge": lambda: mxfp4_gemm(a, a_scale, w, w_scale, backend=device), name: lambda: x @ wide.T},
        home=home,
    )
    ours = taken["kernelforge"].median
    return Row(
        "call overhead W4A8, M=1, N=32, K=32",
        {
            "ms": ours * 1e3,
            f"{name} ms": taken[name].median * 1e3,
            f"x {name}": taken[name].median / ours,
            **replays(taken),
        },
    )


def _virtual_row(mode: str, device: str) -> Row:
    shape = VIRTUAL
    _, a, a_scale, w, w_scale = _operands(shape, mode, "cpu")
    taken = interleaved(
        {"kernelforge": lambda: mxfp4_gemm(a, a_scale, w, w_scale, backend=device)}, rounds=3, seconds=0
    )
    return Row(f"{mode}, M={shape.M}, N={shape.N}, K={shape.K}", {"ms (executor)": taken["kernelforge"].median * 1e3})
