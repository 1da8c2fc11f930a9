"""The sliced dot of activations with cut weights as one microkernel."""

from __future__ import annotations

from typing import Any

from kernelforge.lowering import Composite, composites_in, take_composites
from kernelforge.lowering.tir import tirx

from .. import compiler
from .sources import checked, tile_address

NAME = "sliced_dot_accumulate"
MICROKERNEL = "kf_sliced_dot_accumulate"
KINDS = {(False, 2, 4): 3, (True, 3, 5): 3, (False, 3, 3): 3, (True, 3, 3): 3, (False, 2, 3): 2}
"""What the microkernel knows: whether rows are float32, their slices, the ranks of slice products that are kept; to
slices of the weights."""


def _stride(tile: Any) -> Any:
    return tirx.IntImm("int64", int(tile.shape[-1]))


def _takes_two_slices() -> bool:
    """Whether the microkernel is the faster way to two slices of weights: it has an engine for them on AVX2 alone."""
    return compiler.has_feature("avx2") and not compiler.has_feature("avx512f")


def _call(composite: Composite) -> Any:
    acc, x, w_exponent, *w = (operand.buffer for operand in composite.operands)
    parameters = composite.parameters
    kind = (str(x.dtype) == "float32", parameters["x_slices"], parameters["ranks"])
    if KINDS.get(kind) != len(w) or (len(w) == 2 and not _takes_two_slices()):
        return None
    arguments = [tile_address(acc), _stride(acc), tile_address(x), _stride(x), tile_address(w_exponent)]
    arguments += [tile_address(slices) for slices in (*w, w[-1])[:3]]
    sizes = (x.shape[0], parameters["columns"], x.shape[1], *kind)
    return checked(MICROKERNEL, [*arguments, _stride(w[0]), *(tirx.IntImm("int32", int(size)) for size in sizes)])


def take_sliced_dot(function: Any) -> Any:
    """Take ``sliced_dot_accumulate`` whole: rows are cut as they are read, slice products stay in the first cache."""
    if not any(composite.name == NAME for composite in composites_in(function)):
        return function
    return take_composites(function, {NAME: _call})
