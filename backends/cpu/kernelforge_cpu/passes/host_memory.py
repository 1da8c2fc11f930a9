"""Tiles move to the host's memory."""

from __future__ import annotations

from typing import Any

from kernelforge.lowering.tir import PyStmtExprMutator, mutator, prim_func, tirx

STACK_BYTES = 16384
"""Tiles up to this size are locals of the function; larger ones live in the launcher's scratch memory."""


@mutator
class _Rescope(PyStmtExprMutator):
    def __init__(self) -> None:
        super().__init__()
        self.moved: dict[Any, Any] = {}
        self.workspaces: list[tuple[Any, Any]] = []

    def _host(self, buffer: Any) -> Any:
        if buffer.scope() not in ("local.fragment", "shared.dyn", "shared"):
            return buffer
        if buffer not in self.moved:
            self.moved[buffer] = self._allocate(buffer)
        return self.moved[buffer]

    def _allocate(self, buffer: Any) -> Any:
        nbytes = _nbytes(buffer)
        if nbytes <= STACK_BYTES:
            return tirx.decl_buffer(buffer.shape, buffer.dtype, buffer.name, scope="local")
        name = f"kf_{buffer.name}_{len(self.workspaces)}"
        workspace = tirx.decl_buffer(buffer.shape, buffer.dtype, name)
        self.workspaces.append((tirx.Var(f"{name}_handle", "handle"), workspace))
        return workspace

    def visit_sblock_(self, op: Any) -> Any:
        body = self.visit_stmt(op.body)
        hosts = [self._host(buffer) for buffer in op.alloc_buffers]
        allocated = [buffer for buffer in hosts if buffer.scope() != "global"]
        annotations = {key: value for key, value in op.annotations.items() if key != "tl.launch_threads"}
        return tirx.SBlock(
            op.iter_vars, op.reads, op.writes, op.name_hint, body, op.init, allocated, op.match_buffers, annotations
        )

    def visit_for_(self, op: Any) -> Any:
        kind = tirx.ForKind.SERIAL if op.kind == tirx.ForKind.PARALLEL else op.kind
        low, extent = self.visit_expr(op.min), self.visit_expr(op.extent)
        # One core has nothing to overlap a copy with.
        annotations = {key: value for key, value in op.annotations.items() if key != "num_stages"}
        return tirx.For(op.loop_var, low, extent, kind, self.visit_stmt(op.body), op.thread_binding, annotations)

    def visit_buffer_load_(self, op: Any) -> Any:
        return tirx.BufferLoad(self._host(op.buffer), [self.visit_expr(index) for index in op.indices])

    def visit_buffer_store_(self, op: Any) -> Any:
        value = self.visit_expr(op.value)
        return tirx.BufferStore(self._host(op.buffer), value, [self.visit_expr(index) for index in op.indices])


def _nbytes(buffer: Any) -> int:
    size = buffer.dtype.bits // 8 if hasattr(buffer.dtype, "bits") else 4
    for extent in buffer.shape:
        size *= int(extent)
    return size


def host_memory(function: Any) -> Any:
    """Move shared and fragment tiles to locals (small) or to scratch memory (large), and make parallel loops serial."""
    rescope = _Rescope()
    body = rescope.visit_stmt(function.body)
    return prim_func(function, body, extra_buffers=rescope.workspaces)
