"""Where a walk over a kernel is, what its names stand for, and what it has found."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from .tir import post_order, tirx
from .verify_expressions import tile_name
from .verify_fp32 import FOLDED
from .verify_source import Location, first_use, folded_zeros, is_library


class Context:
    """State of a walk.

    Attributes:
        found: file, line and message of each violation, once.
        at: locations of the open statements, innermost last.
        bound: the values behind names.
    """

    def __init__(self) -> None:
        self.found: dict[tuple[str, int, str], None] = {}
        self.at: list[Location] = []
        self.bound: dict[Any, Any] = {}

    def messages(self) -> list[str]:
        """The violations, in the order of their lines."""
        return [f"{file}:{line}: {message}" for file, line, message in sorted(self.found)]

    def report(self, message: str, at: Location | None = None) -> None:
        """Add a violation, at the innermost open statement unless told."""
        file, line = at or (self.at[-1] if self.at else ("<unknown>", 0))
        self.found[file, line, message] = None

    def visible(self, at: Location, node: Any) -> Location:
        """The line of the kernel, where the statement is one of TileLang's own macros."""
        if not is_library(at):
            return at
        outer = self.at[-1] if self.at else at
        if isinstance(node, tirx.Evaluate) and isinstance(node.value, tirx.Call):
            return first_use(tile_name(node.value), outer) or outer
        return outer

    def source(self) -> None:
        """Report what tracing folded away around the innermost open statement."""
        file, line = self.at[-1]
        for number, operator in folded_zeros(file, line):
            self.report(FOLDED[operator], (file, number))

    def resolve(self, expression: Any) -> Any:
        """The value behind a name; other expressions as they are."""
        while isinstance(expression, tirx.Var) and expression in self.bound:
            expression = self.bound[expression]
        return expression

    def holds(self, expression: Any, wanted: Callable[[Any], bool]) -> bool:
        """Whether an expression, followed through names, holds a node that is wanted."""
        seen: set[Any] = set()
        found = False

        def visit(part: Any) -> None:
            nonlocal found
            found = found or wanted(part)
            if isinstance(part, tirx.Var) and part in self.bound and part not in seen:
                seen.add(part)
                post_order(self.bound[part], visit)

        post_order(expression, visit)
        return found

    def reads_data(self, expression: Any) -> bool:
        """Whether an expression depends on what a buffer holds."""
        return self.holds(expression, lambda part: isinstance(part, tirx.BufferLoad))
