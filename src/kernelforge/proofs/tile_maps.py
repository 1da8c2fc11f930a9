"""The tile maps of the MXFP4 GEMM and of the quantization ops: every index inside, every output element stored once."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import z3

from ..numerics.block_accumulate import A_FORMATS
from ..runtime import KernelSpec
from . import Theorem, prove_all
from .index_bounds import Ascending, Witness
from .index_bounds import theorems as kernel_theorems
from .kernel_accesses import Contents

_GEMM = "kernelforge.ops.mxfp4_gemm.kernel:mxfp4_gemm"
_QUANTIZE = "kernelforge.ops.mx_quantize.kernel"
_FP8 = "kernelforge.ops.fp4_to_fp8.kernel:fp4_to_fp8"
EXPERTS = 3
BLOCK_M = 16


@dataclass(frozen=True)
class TileMap:
    """A kernel, and what :func:`kernelforge.proofs.index_bounds.theorems` has to know about it."""

    name: str
    spec: KernelSpec
    contents: Mapping[str, Contents] = field(default_factory=dict)
    witnesses: Mapping[str, Witness] = field(default_factory=dict)
    premises: Sequence[z3.BoolRef] = ()

    def theorems(self) -> list[Theorem]:
        return kernel_theorems(self.spec, self.contents, self.witnesses, self.premises)


def tile_maps() -> Iterator[TileMap]:
    """Kernels of every form; no static extent is a multiple of its tile's, dynamic ones are any."""
    yield from _gemms()
    quantizer: dict[str, Any] = {"K": 160, "dtype": "bfloat16", "block_M": BLOCK_M, "block_K": 128, "threads": 128}
    for element in ("e2m1", "e4m3"):
        spec = KernelSpec.of(f"{_QUANTIZE}:mx_quantize", element=element, scale_rule="ceil", **quantizer)
        yield TileMap(f"mx_quantize {element}", spec)
    yield TileMap("mxfp4_dequantize", KernelSpec.of(f"{_QUANTIZE}:mxfp4_dequantize", **quantizer))
    for group_rows in (1, 128):
        spec = KernelSpec.of(_FP8, K=160, group_rows=group_rows, block_M=BLOCK_M, threads=128)
        groups = z3.Int("G") == (z3.Int("M") + group_rows - 1) / group_rows
        yield TileMap(f"fp4_to_fp8 {group_rows}", spec, premises=[groups])


def _gemms() -> Iterator[TileMap]:
    for a_format in A_FORMATS:
        for experts in (0, EXPERTS):
            spec = KernelSpec.of(
                _GEMM,
                N=70,
                K=160,
                experts=experts,
                a_format=a_format,
                out_dtype="bfloat16",
                block_M=BLOCK_M,
                block_N=32,
                block_K=128,
                threads=128,
                num_stages=2,
            )
            if experts:
                offsets = Ascending(experts + 1, "M")
                known = ({"offsets": offsets}, {"index": _row_tile(offsets)})
                yield TileMap(f"grouped_mxfp4_gemm {a_format}", spec, *known)
            else:
                yield TileMap(f"mxfp4_gemm {a_format}", spec)


def _row_tile(offsets: Ascending) -> Witness:
    """The row tile of a group that holds a row; tiles are counted group by group, each group from a tile of its own."""

    def tile(element: list[z3.ArithRef]) -> z3.ArithRef:
        row, first = element[0], z3.IntVal(0)
        found: z3.ArithRef = first
        for start, end in pairwise(offsets.values):
            found = z3.If(z3.And(row >= start, row < end), first + (row - start) / BLOCK_M, found)
            first = first + (end - start + BLOCK_M - 1) / BLOCK_M
        return found

    return tile


def theorems() -> list[Theorem]:
    """Everything that is proved."""
    return [theorem for one in tile_maps() for theorem in one.theorems()]


if __name__ == "__main__":
    prove_all(theorems())
