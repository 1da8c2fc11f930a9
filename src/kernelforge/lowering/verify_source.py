"""What tracing leaves no trace of: read from the kernel's source.

TileLang folds ``x + 0.0`` and ``x * 0.0`` while it traces, so no check of the traced function can see them.
"""

from __future__ import annotations

import ast
import functools
import linecache
import re
from collections.abc import Iterator
from pathlib import Path

from .tir import tilelang

Location = tuple[str, int]

_LIBRARY = str(Path(tilelang.__file__).parent)


def is_library(location: Location) -> bool:
    """Whether a location is TileLang's own, as for statements of its macros."""
    return location[0].startswith(_LIBRARY)


def first_use(name: str, after: Location) -> Location | None:
    """The first line from ``after`` on that calls ``name``."""
    file, line = after
    for number, text in enumerate(linecache.getlines(file)[line - 1 :], line):
        if re.search(rf"\b{re.escape(name)}\s*\(", text):
            return file, number
    return None


@functools.cache
def folded_zeros(file: str, line: int) -> tuple[tuple[int, str], ...]:
    """Lines that add or multiply by a literal fp32 zero, with the operator, in the function that holds ``line``."""
    functions = [node for node in ast.walk(_parsed(file)) if isinstance(node, ast.FunctionDef)]
    around = [node for node in functions if node.lineno <= line <= (node.end_lineno or node.lineno)]
    if not around:
        return ()
    found: set[tuple[int, str]] = set()
    for statement in ast.walk(max(around, key=lambda node: node.lineno)):
        if isinstance(statement, ast.stmt):
            parts = _expressions(statement)
            found |= {(statement.lineno, operator) for part in parts for operator in _zeros(part)}
    return tuple(sorted(found))


@functools.cache
def _parsed(file: str) -> ast.Module:
    try:
        return ast.parse("".join(linecache.getlines(file)))
    except SyntaxError:
        return ast.Module([], [])


def _expressions(statement: ast.stmt) -> Iterator[ast.expr]:
    """The statement's own expressions, without the statements nested in it."""
    for child in ast.iter_child_nodes(statement):
        if isinstance(child, ast.expr):
            yield child


def _zeros(expression: ast.expr) -> Iterator[str]:
    for node in ast.walk(expression):
        if not isinstance(node, ast.BinOp) or not (_is_zero(node.left) or _is_zero(node.right)):
            continue
        if isinstance(node.op, (ast.Add, ast.Mult)):
            yield "+" if isinstance(node.op, ast.Add) else "*"


def _is_zero(node: ast.expr) -> bool:
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, (ast.USub, ast.UAdd)):
        return _is_zero(node.operand)
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "float32":
        return len(node.args) == 1 and isinstance(node.args[0], ast.Constant) and node.args[0].value == 0
    return isinstance(node, ast.Constant) and isinstance(node.value, float) and node.value == 0
