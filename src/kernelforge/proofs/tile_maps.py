"""Tile maps of GEMMs, quantization, hyper-connections, the indexer's gradients: indices inside, outputs stored once."""

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
_INDEXER = "kernelforge.ops.lightning_indexer.kernel_backward"
_STREAMS = "kernelforge.ops.mhc.kernel"
_SINKHORN = "kernelforge.ops.sinkhorn.kernel"
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
    partial: Sequence[str] = ()

    def theorems(self) -> list[Theorem]:
        return kernel_theorems(self.spec, self.contents, self.witnesses, self.premises, self.partial)


def tile_maps() -> Iterator[TileMap]:
    """Kernels of every form; no static extent is a multiple of its tile's, dynamic ones are any."""
    yield from _gemms()
    yield from _indexer_gradients()
    yield from _hyper_connections()
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


class _Queries:
    """Contents of ``queries``: a sequence's first entry, how many entries are seen, where the gradients begin."""

    def __init__(self) -> None:
        self.premises: list[z3.BoolRef] = []

    def __call__(self, index: list[z3.ArithRef]) -> z3.ArithRef | None:
        row, column = index
        names = ("first_entry", "seen", "first_logit")
        entry, seen, logit = (z3.Function(name, z3.IntSort(), z3.IntSort())(row) for name in names)
        self.premises += [entry >= 0, seen >= 0, entry + seen <= z3.Int("entries")]
        self.premises += [logit >= 0, logit + seen <= z3.Int("cells")]
        found: z3.ArithRef = (entry, seen, logit)[column.as_long()]
        return found


def _indexer_gradients() -> Iterator[TileMap]:
    """Gradients of the indexer's logits; keys' for one sequence, whose tiles are in a row."""
    heads, block_T = 40, 64
    rows, entries = z3.Ints("rows entries")

    def tiles(index: list[z3.ArithRef]) -> z3.ArithRef:
        item, column = index
        found: z3.ArithRef = (z3.IntVal(0), item * block_T, entries, z3.IntVal(0))[column.as_long()]
        return found

    known: dict[str, Contents] = {"tiles": tiles, "order": lambda i: i[0], "starts": lambda i: i[0] * 128}
    counts = {
        "query_gradient": [z3.Int("chunks") == (entries + 127) / 128],
        "entry_gradient": [z3.Int("steps") == rows, z3.Int("items") == (entries + block_T - 1) / block_T],
    }
    parameters: dict[str, Any] = {
        "H": heads,
        "D": 96,
        "dtype": "bfloat16",
        "block_T": block_T,
        "block_D": 64,
        "threads": 128,
    }
    for qk_format in ("e2m1", "bf16"):
        for kernel, premises in counts.items():
            own: dict[str, Any] = {"block_H": 16} if kernel == "query_gradient" else {}
            spec = KernelSpec.of(f"{_INDEXER}:{kernel}", qk_format=qk_format, **parameters, **own)
            holds: dict[str, Contents] = {"queries": _Queries(), **known}
            witnesses: dict[str, Witness] = {"item": lambda element: element[0] / block_T}
            name = f"indexer {kernel} {qk_format}"
            yield TileMap(name, spec, holds, witnesses, [z3.Int("heads") == rows * heads, *premises])


class _Chunks:
    """Contents of ``bounds``: a chunk's first token and the one after its last."""

    def __init__(self) -> None:
        self.premises: list[z3.BoolRef] = []

    def __call__(self, index: list[z3.ArithRef]) -> z3.ArithRef | None:
        chunk, column = index
        first, end = (z3.Function(name, z3.IntSort(), z3.IntSort())(chunk) for name in ("first_token", "end_token"))
        self.premises += [first >= 0, end <= z3.Int("tokens")]
        found: z3.ArithRef = (first, end)[column.as_long()]
        return found


def _hyper_connections() -> Iterator[TileMap]:
    """Both ends of a block and the head, forward and backward; the matrices between them."""
    n, C = 3, 96
    flat: dict[str, Any] = {"K": n * C, "threads": 128}
    streams: dict[str, Any] = {"n": n, "C": C, "dtype": "bfloat16", "block_T": 16, "block_C": 64, "threads": 128}
    matrix: dict[str, Any] = {"iters": 2, "eps": 1e-6}
    for head in (False, True):
        rows = n if head else n * (n + 2)
        name = "mhc_head" if head else "mhc_pre"
        yield TileMap(f"{name} weights", KernelSpec.of(f"{_STREAMS}:mhc_weights", rows=rows, **flat))
        forward = KernelSpec.of(f"{_STREAMS}:mhc_pre", head=head, norm_eps=1e-6, **matrix, **streams)
        yield TileMap(f"{name} forward", forward)
        yield TileMap(
            f"{name} backward", KernelSpec.of(f"{_STREAMS}_backward:mhc_pre_backward", head=head, **matrix, **streams)
        )
        weights = KernelSpec.of(
            f"{_STREAMS}_backward:mhc_weight_gradient", N=rows, dtype="bfloat16", block_C=64, **flat
        )
        yield TileMap(f"{name} weight gradient", weights, {"bounds": _Chunks()})
        total = KernelSpec.of(f"{_STREAMS}_backward:mhc_token_sum", N=rows + (1 if head else 3), threads=128)
        yield TileMap(f"{name} token sum", total, {"bounds": _Chunks()})
    yield TileMap("mhc_post forward", KernelSpec.of(f"{_STREAMS}:mhc_post", **streams))
    yield TileMap("mhc_post backward", KernelSpec.of(f"{_STREAMS}_backward:mhc_post_backward", **streams))
    for kernel in ("sinkhorn", "sinkhorn_backward"):
        yield TileMap(kernel, KernelSpec.of(f"{_SINKHORN}:{kernel}", n=n, block_T=64, threads=64, **matrix))


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
