"""Tile maps of compression, each way, and of the grouped output projection's products: inside, and stored once."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import z3

from ..runtime import KernelSpec
from . import Theorem, prove_all
from .kernel_accesses import Contents
from .tile_maps import TileMap

_FORWARD = "kernelforge.ops.compress.kernel"
_BACKWARD = "kernelforge.ops.compress.kernel_backward"
_SLICED = "kernelforge.ops.sliced_gemm.kernel"
BATCH = 2
D, PAIRS, CHUNK = 96, 8, 32


class _PerSequence:
    """An array that holds, for each sequence, an integer of at least 0 and at most ``most``."""

    def __init__(self, name: str, most: z3.ArithRef | None = None) -> None:
        self.values = z3.Function(name, z3.IntSort(), z3.IntSort())
        self.most = most
        self.premises: list[z3.BoolRef] = []

    def __call__(self, index: list[z3.ArithRef]) -> z3.ArithRef:
        value: z3.ArithRef = self.values(index[0])
        self.premises.append(value >= 0)
        if self.most is not None:
            self.premises.append(value <= self.most)
        return value


def compressors() -> Iterator[TileMap]:
    """Overlapping windows and single ones, few slots and many; the batch is fixed, so that rows stay linear in it."""
    rows, batch, total, parts = z3.Ints("rows batch total parts")
    tokens, entries, chunks = z3.Ints("tokens_each entries_each chunks_each")
    whole = [batch == BATCH, rows == BATCH * tokens, total == BATCH * entries, tokens >= 1, entries >= 1]
    for kind, ratio, overlap, dtype in (("CSA", 4, True, "bfloat16"), ("HCA", 128, False, "float32")):
        shared: dict[str, Any] = {"ratio": ratio, "overlap": overlap, "D": D, "dtype": dtype, "threads": 128}
        rope: dict[str, Any] = {"pairs": PAIRS, "eps": 1e-6}
        length = _PerSequence("length", tokens)
        fed: dict[str, Contents] = {"position": _PerSequence("position"), "length": length}
        spec = KernelSpec.of(f"{_FORWARD}:compress", block_N=4, block_C=32, **shared, **rope)
        yield TileMap(f"{kind} compress", spec, fed, premises=whole)
        spec = KernelSpec.of(f"{_FORWARD}:compress_state", block_C=32, **shared)
        kept = ("state_kv", "state_gate")
        yield TileMap(f"{kind} state", spec, fed, premises=whole, partial=kept)
        # A whole sequence completes length // ratio of the entries that there is room for.
        room = [*whole, entries == tokens / ratio]
        spec = KernelSpec.of(f"{_BACKWARD}:entry_gradient", block_C=32, **shared, **rope)
        yield TileMap(f"{kind} entry gradient", spec, {"length": length}, premises=room, partial=("known",))
        spec = KernelSpec.of(f"{_BACKWARD}:token_gradient", block_C=32, chunk=CHUNK, **shared)
        of_chunks = [*room, parts == BATCH * chunks, chunks == (entries + CHUNK - 1) / CHUNK]
        grads = ("kv_grad", "gate_grad")
        yield TileMap(f"{kind} token gradient", spec, {"length": length}, premises=of_chunks, partial=grads)
    yield TileMap("sum of parts", KernelSpec.of(f"{_BACKWARD}:sum_of_parts", D=D, block_C=32, threads=128))


def projections() -> Iterator[TileMap]:
    """Two groups; neither ranks, depth nor hidden size is a multiple of a tile's."""
    tiles: dict[str, Any] = {"block_M": 16, "block_N": 32, "threads": 128}
    types: dict[str, Any] = {f"{name}_dtype": "bfloat16" for name in ("a", "b", "out")}
    for turned in (False, True):
        spec = KernelSpec.of(
            f"{_SLICED}:sliced_gemm", groups=2, N=70, K=600, turned=turned, whole=True, **types, **tiles
        )
        yield TileMap(f"grouped product{' of columns' if turned else ''}", spec)
    spec = KernelSpec.of(f"{_SLICED}:sliced_gemm_over_rows", groups=2, M=50, N=70, **types, **tiles)
    yield TileMap("grouped product over rows", spec)


def tile_maps() -> Iterator[TileMap]:
    """All of them."""
    yield from compressors()
    yield from projections()


def theorems() -> list[Theorem]:
    """Everything that is proved."""
    return [theorem for one in tile_maps() for theorem in one.theorems()]


if __name__ == "__main__":
    prove_all(theorems())
