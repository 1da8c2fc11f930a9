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


def folded_zeros(file: str, line: int) -> tuple[tuple[int, str], ...]:
    """Lines that add or multiply by a literal fp32 zero, with the operator, in the function that holds ``line``."""
    around = [found for first, last, found in _zeros_by_function(file) if first <= line <= last]
    return around[-1] if around else ()


@functools.cache
def _zeros_by_function(file: str) -> tuple[tuple[int, int, tuple[tuple[int, str], ...]], ...]:
    """First line, last line and :func:`folded_zeros` of each function of a file, inner functions later."""
    try:
        tree = ast.parse("".join(linecache.getlines(file)))
    except SyntaxError:
        return ()
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
    functions.sort(key=lambda node: node.lineno)
    return tuple((node.lineno, node.end_lineno or node.lineno, _zeros_in(node)) for node in functions)


def _zeros_in(function: ast.FunctionDef) -> tuple[tuple[int, str], ...]:
    found = {
        (statement.lineno, operator)
        for statement in ast.walk(function)
        if isinstance(statement, ast.stmt)
        for part in _expressions(statement)
        for operator in _zeros(part)
    }
    return tuple(sorted(found))


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
