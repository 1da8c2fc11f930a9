"""Named regions: taken whole by a backend, or lowered as their portable body."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from .tir import COMPOSITE, PyStmtExprMutator, mutator, post_order, tirx


@dataclass(frozen=True)
class Composite:
    """A region found in a kernel.

    Attributes:
        name: the primitive.
        operands: loads of the first element of each operand tile, in the primitive's order.
        parameters: integers that select a variant.
        body: the portable statements.
    """

    name: str
    operands: tuple[Any, ...]
    parameters: dict[str, int]
    body: Any


def composite_of(statement: Any) -> Composite | None:
    """The composite that an ``AttrStmt`` opens, if it does."""
    if not isinstance(statement, tirx.AttrStmt) or statement.attr_key != COMPOSITE:
        return None
    name, *operands = statement.value.args
    parameters = {str(key): int(value) for key, value in statement.node.items()}
    return Composite(name.value, tuple(operands), parameters, statement.body)


def composites_in(function: Any) -> list[Composite]:
    """Every composite of a function."""
    found: list[Composite] = []

    def visit(node: Any) -> None:
        composite = composite_of(node)
        if composite is not None:
            found.append(composite)

    post_order(function.body, visit)
    return found


@mutator
class _Replace(PyStmtExprMutator):
    def __init__(self, takers: Mapping[str, Callable[[Composite], Any]], keep_others: bool) -> None:
        super().__init__()
        self.takers = takers
        self.keep_others = keep_others

    def visit_attr_stmt_(self, op: Any) -> Any:
        composite = composite_of(op)
        if composite is None or (self.keep_others and composite.name not in self.takers):
            return tirx.AttrStmt(op.node, op.attr_key, op.value, self.visit_stmt(op.body))
        taken = self.takers[composite.name](composite) if composite.name in self.takers else None
        return self.visit_stmt(op.body) if taken is None else taken


def lower_composites(function: Any) -> Any:
    """Replace every composite region by its portable body."""
    return take_composites(function, {})


def take_composites(function: Any, takers: Mapping[str, Callable[[Composite], Any]], keep_others: bool = False) -> Any:
    """Replace each composite named in ``takers`` by the statement its taker returns, the others by their body.

    A taker that cannot take a region returns None and leaves it to its body. With ``keep_others``, regions of other
    names stay for a later pass.
    """
    return function.with_body(_Replace(takers, keep_others).visit_stmt(function.body))
