"""The gemms of a kernel, and how it uses the buffers around them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tvm import tirx

from .rewriter import BufferMap, Region, is_const, is_global, op_name, walk


@dataclass
class Use:
    """How a kernel uses an on-chip buffer."""

    loaded: bool = False  # written by a copy from global memory
    computed: bool = False  # written in any other way
    read: bool = False  # read by anything but a gemm
    partial: bool = False  # some gemm takes a part of its columns


@dataclass
class Gemm:
    """A ``T.gemm`` with its operands."""

    a: Region
    b: Region
    c: Region
    transpose_a: bool
    transpose_b: bool
    clear: Any
    call: Any

    @staticmethod
    def of(call: Any) -> Gemm:
        a, b, c = (Region.of(argument) for argument in call.args[:3])
        return Gemm(a, b, c, bool(int(call.args[3])), bool(int(call.args[4])), call.args[9], call)


def uses_of(function: Any) -> BufferMap:
    """How a kernel uses its on-chip buffers: buffer -> :class:`Use`."""
    uses = BufferMap()

    def use(buffer: Any) -> Use:
        return uses.setdefault(buffer, Use)

    def visit(node: Any) -> None:
        name = op_name(node)
        if isinstance(node, tirx.BufferStore):
            use(node.buffer).computed = True
        elif name == "tl.tileop.gemm":
            gemm = Gemm.of(node)
            for region in (gemm.a, gemm.b):
                rows, columns = region.buffer.shape[-2:]
                whole = all(is_const(m, 0) for m in region.mins[-2:])
                sizes = [int(e) for e in region.extents[-2:]]
                use(region.buffer).partial |= not whole or sizes != [int(rows), int(columns)]
            use(gemm.c.buffer).computed = True
        elif name == "tl.tileop.copy":
            source, target = Region.of(node.args[0]), Region.of(node.args[1])
            if is_global(source.buffer):
                use(target.buffer).loaded = True
            else:
                use(target.buffer).computed = True
            use(source.buffer).read = True
        elif name.startswith("tl.tileop."):
            for argument in node.args:
                if op_name(argument) == "tl.region":
                    region = Region.of(argument)
                    use(region.buffer).computed |= bool(region.access & 2)
                    use(region.buffer).read |= bool(region.access & 1)

    walk(function.body, visit)

    # Loads inside regions are positions, not reads; count the others.
    def reads(node: Any) -> None:
        if isinstance(node, (tirx.For, tirx.BufferStore, tirx.IfThenElse, tirx.Bind)):
            roots = {
                tirx.For: lambda n: [n.min, n.extent],
                tirx.BufferStore: lambda n: [n.value, *n.indices],
                tirx.IfThenElse: lambda n: [n.condition],
                tirx.Bind: lambda n: [n.value],
            }[type(node)](node)
            for root in roots:
                walk(root, lambda n: _mark_read(n, use))
        elif isinstance(node, tirx.Evaluate) and not op_name(node.value).startswith("tl.tileop."):
            walk(node.value, lambda n: _mark_atomic(n, use))

    walk(function.body, reads)
    return uses


def _mark_read(node: Any, use: Any) -> None:
    if isinstance(node, tirx.BufferLoad):
        use(node.buffer).read = True


def _mark_atomic(node: Any, use: Any) -> None:
    if isinstance(node, tirx.BufferLoad):
        use(node.buffer).read = use(node.buffer).computed = True


def touches(node: Any, buffer: Any) -> bool:
    """Whether a statement reads or writes a buffer."""
    found: list[bool] = []

    def visit(n: Any) -> None:
        if isinstance(n, (tirx.BufferLoad, tirx.BufferStore)) and n.buffer.same_as(buffer):
            found.append(True)

    walk(node, visit)
    return bool(found)
