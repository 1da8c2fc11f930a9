"""Dots of rows that are cut into slices on the way as microkernels."""

from __future__ import annotations

from typing import Any

from kernelforge.lowering import Composite, composites_in, take_composites
from kernelforge.lowering.tir import tirx

from .. import compiler
from .sources import Source, checked, stride, tile_address

KINDS = {(False, 2, 4), (True, 3, 5), (False, 3, 3), (True, 3, 3)}
"""What the microkernel of cut weights knows: whether rows are float32, their slices, the ranks of slice products that
are kept."""
FEW_ROWS = 16
"""With more, the products outweigh what cutting both sides takes: matrix instructions of AVX-512 are faster then, and
columns side by side where weights have three slices."""


def _int32(value: Any) -> Any:
    return tirx.IntImm("int32", int(value))


def _with_cut_weights(composite: Composite) -> Any:
    acc, x, w_exponent, *w = (operand.buffer for operand in composite.operands)
    parameters = composite.parameters
    kind = (str(x.dtype) == "float32", parameters["x_slices"], parameters["ranks"])
    if kind not in KINDS or len(w) != 3:
        return None
    arguments = [argument for tile in (acc, x) for argument in (tile_address(tile), stride(tile))]
    arguments += [tile_address(slices) for slices in (w_exponent, *w)]
    sizes = (x.shape[0], parameters["columns"], x.shape[1], *kind)
    return checked("kf_sliced_dot_accumulate", [*arguments, stride(w[0]), *map(_int32, sizes)])


def _of_rows(composite: Composite) -> Any:
    acc, a, b = (operand.buffer for operand in composite.operands[:3])
    row, column, b_row = composite.operands[3:]
    wide = str(b.dtype) == "float32"
    if str(a.dtype) != "uint16" or not compiler.has_feature("avx2"):
        return None
    if int(acc.shape[0]) > FEW_ROWS and (wide or compiler.has_feature("avx512f")):
        return None
    N, *sizes = (_int32(composite.parameters[name]) for name in ("N", "K", "chunk"))
    rows = tirx.min(_int32(acc.shape[0]), a.shape[0] - row)
    columns = tirx.min(_int32(acc.shape[1]), N - tirx.floormod(b_row, N))
    arguments = [tile_address(acc), stride(acc)]
    for buffer, start in ((a, (row, column)), (b, (b_row, _int32(0)))):
        arguments += [Source(buffer, start).address(), stride(buffer)]
    return checked("kf_rows_dot_accumulate", [*arguments, rows, columns, *sizes, _int32(wide)])


TAKERS = {"rows_dot_accumulate": _of_rows, "sliced_dot_accumulate": _with_cut_weights}


def take_sliced_dot(function: Any) -> Any:
    """Take both whole: rows are cut as they are read, slice products stay in the first cache."""
    if not any(composite.name in TAKERS for composite in composites_in(function)):
        return function
    return take_composites(function, TAKERS)
