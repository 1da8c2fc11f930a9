"""Where TileLang may give copies to warps of their own."""

from __future__ import annotations

from typing import Any

from kernelforge.lowering.tir import called, post_order, text, tirx, tvm


def specialization_is_safe(function: Any) -> bool:
    """Whether the warps that compute are done with a stage when TileLang lets the copying warps refill it.

    TileLang 0.1.15 releases a stage behind the last reader of what tensor maps (TMA) brought, though the rest of the
    loop's body may still read what the copying threads stored themselves: a column of scales in an epilogue, for
    instance. So a kernel is specialized only where what a pipelined loop copies without a tensor map is read by matrix
    products alone. Without that, ``int8_gemm`` of ``benchmarks/`` has a race on sm_90a, which the virtual device finds.

    TileLang also gives what stands ahead of the loop to one side alone, assignments of variables with it, which the
    other side reads before anything is assigned: a grouped GEMM's expert, for instance. So a kernel that assigns
    variables outside of pipelined loops is not specialized.

    Nor is a kernel that calls a device function of this backend (``mx_block.h``), in which all of a block's warps take
    part.
    """
    safe, assigned = True, _assignments(function.body)

    def visit(node: Any) -> None:
        nonlocal safe, assigned
        if called(node) == "tirx.call_extern":
            safe = False
        if isinstance(node, tirx.For) and "num_stages" in node.annotations:
            safe = safe and not (_copied(node.body) & _read_beside_products(node.body))
            assigned -= _assignments(node.body)

    post_order(function.body, visit)
    return safe and assigned == 0


def _assignments(body: Any) -> int:
    """How many statements assign a variable."""
    count = 0

    def visit(node: Any) -> None:
        nonlocal count
        count += isinstance(node, tirx.BufferStore) and text(node.buffer.scope()) == "local.var"

    post_order(body, visit)
    return count


_ALIGNMENT = 16
"""Bytes that a tensor map's rows and their distances are multiples of."""


def _regions(call: Any) -> list[Any]:
    """A tile operation's regions, in order: calls of (load of the first element, access, *extents)."""
    return [argument for argument in call.args if called(argument) in ("tl.region", "tl.tileop.region")]


def _buffer(region: Any) -> Any:
    return region.args[0].buffer


def _has_tensor_map(source: Any) -> bool:
    """Whether a region of global memory has two dimensions, in rows that a tensor map can describe."""
    row, shape = source.args[-1], _buffer(source).shape
    if len(shape) < 2 or not all(isinstance(extent, (int, tirx.IntImm)) for extent in (row, shape[-1])):
        return False
    bits = int(tvm.DataType(text(_buffer(source).dtype)).bits)
    return all(int(extent) * bits % (8 * _ALIGNMENT) == 0 for extent in (row, shape[-1]))


def _copied(body: Any) -> set[Any]:
    """Shared buffers that the body copies from global memory without a tensor map."""
    found = set()

    def visit(node: Any) -> None:
        if called(node) == "tl.tileop.copy":
            source, target = _regions(node)
            into_shared = text(_buffer(target).scope()).startswith("shared")
            if into_shared and text(_buffer(source).scope()) == "global" and not _has_tensor_map(source):
                found.add(_buffer(target).data)

    post_order(body, visit)
    return found


def _read_beside_products(body: Any) -> set[Any]:
    """Buffers that the body reads other than as a whole operand of a matrix product."""
    reads: dict[Any, int] = {}
    operands: dict[Any, int] = {}

    def visit(node: Any) -> None:
        if isinstance(node, tirx.BufferLoad):
            reads[node.buffer.data] = reads.get(node.buffer.data, 0) + 1
        elif called(node) == "tl.tileop.gemm":
            for buffer in map(_buffer, _regions(node)):
                operands[buffer.data] = operands.get(buffer.data, 0) + 1
        elif called(node) == "tl.tileop.copy":
            target = _buffer(_regions(node)[1])  # written, though its region is spelled as a load
            operands[target.data] = operands.get(target.data, 0) + 1

    post_order(body, visit)
    return {buffer for buffer, count in reads.items() if count > operands.get(buffer, 0)}
