"""fp32 expressions that the compiler rewrites to others with different bits.

TVM's simplifier treats fp32 as the reals, which have no rounding and no NaN: it cancels sums, and negates an ordered
comparison to its opposite. It inlines named values first, so values are followed through their names here too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from .tir import structurally_equal, tirx

Report = Callable[[str], None]
Resolve = Callable[[Any], Any]

MAGIC = "read the bits of the rounded sum instead: reinterpret(x + c) - bits of c, as int32"
_NAN = "wrong for NaN: compare the bits, or order the selects so that each comparison decides one case"
_PLUS_ZERO = "make -0 into +0 by compare and select"
_TIMES_ZERO = "use T.if_then_else or T.clear"
FOLDED = {
    "+": f"fp32 x + 0.0 is not portable (folded to x, -0 stays): {_PLUS_ZERO}",
    "*": f"fp32 x * 0.0 is not portable (folded to 0.0, NaN and Inf are lost): {_TIMES_ZERO}",
}
"""Messages for what tracing or the simplifier folds, by operator."""

_ORDERED = (tirx.LT, tirx.LE, tirx.GT, tirx.GE)


def is_fp32(expression: Any) -> bool:
    """Whether an expression is a binary32 scalar."""
    return str(expression.dtype) == "float32"


def _is_constant(expression: Any, value: float) -> bool:
    return isinstance(expression, tirx.FloatImm) and expression.value == value


class Fp32Rules:
    """Checks single nodes; ``resolve`` gives the value behind a name."""

    def __init__(self, resolve: Resolve) -> None:
        self._resolve = resolve

    def check(self, node: Any, report: Report) -> None:
        """Report what is wrong with ``node`` itself; its operands are checked on their own."""
        if isinstance(node, tirx.Sub) and is_fp32(node):
            self._subtraction(node, report)
        elif isinstance(node, tirx.Add) and is_fp32(node):
            if any(_is_constant(value, 0.0) for side in (node.a, node.b) for value in self._arms(side)):
                report(FOLDED["+"])
        elif isinstance(node, tirx.Mul) and is_fp32(node):
            if any(self._all_zero(side) for side in (node.a, node.b)):
                report(FOLDED["*"])
        elif isinstance(node, (tirx.EQ, tirx.NE)) and is_fp32(node.a):
            if self._same(node.a, node.b):
                report("fp32 x == x and x != x are not portable (rewritten to true and false): test the bits for NaN")
        elif isinstance(node, tirx.Not):
            if any(True for _ in self._ordered(node.a)):
                report(f"not of an fp32 comparison is not portable (rewritten to its opposite), {_NAN}")
        elif isinstance(node, tirx.Or):
            self._alternatives(node, report)

    def negated(self, condition: Any) -> list[tuple[Any, Any, bool]]:
        """What the compiler believes where ``condition`` is false: pairs (a, b) with a < b, or a <= b where flagged."""
        return [(b, a, not or_equal) for a, b, or_equal in self._ordered(condition)]

    def check_under(self, node: Any, believed: list[tuple[Any, Any, bool]], report: Report) -> None:
        """Report a comparison that the compiler takes as decided by an enclosing one that was false."""
        normal = self._normal(node)
        if normal is None:
            return
        a, b, or_equal = normal
        for low, high, believed_or_equal in believed:
            if (or_equal or not believed_or_equal) and self._same(a, low) and self._same(b, high):
                report(f"an fp32 comparison in the else of its opposite is not portable (taken as true), {_NAN}")

    def _value(self, expression: Any) -> Any:
        """Behind names, and behind operations that change nothing."""
        expression = self._resolve(expression)
        if isinstance(expression, tirx.Mul) and is_fp32(expression):
            for side, other in ((expression.a, expression.b), (expression.b, expression.a)):
                if _is_constant(self._resolve(side), 1.0):
                    return self._value(other)
        if isinstance(expression, tirx.Sub) and is_fp32(expression) and _is_constant(self._resolve(expression.b), 0.0):
            return self._value(expression.a)
        return expression

    def _arms(self, expression: Any) -> list[Any]:
        """The values a select may give: the compiler moves arithmetic into them."""
        value = self._value(expression)
        if isinstance(value, tirx.Select):
            return self._arms(value.true_value) + self._arms(value.false_value)
        return [value]

    def _all_zero(self, expression: Any) -> bool:
        return all(_is_constant(value, 0.0) for value in self._arms(expression))

    def _subtraction(self, node: Any, report: Report) -> None:
        for a in self._arms(node.a):
            for b in self._arms(node.b):
                if self._same(a, b):
                    report("fp32 x - x is not portable (rewritten to 0.0, NaN and Inf are lost): write the constant")
                    return
                if isinstance(a, tirx.Add) and (self._same(a.a, b) or self._same(a.b, b)):
                    report(f"fp32 (x + c) - c is not portable (rewritten to x, its rounding is lost): {MAGIC}")
                    return
                if isinstance(b, tirx.Add) and (self._same(b.a, a) or self._same(b.b, a)):
                    report(f"fp32 x - (x + c) is not portable (rewritten to -c, its rounding is lost): {MAGIC}")
                    return

    def _same(self, a: Any, b: Any) -> bool:
        if a.same_as(b):
            return True
        a, b = self._value(a), self._value(b)
        if a.same_as(b):
            return True
        if type(a) is not type(b) or str(a.dtype) != str(b.dtype):
            return False
        if isinstance(a, (tirx.Add, tirx.Sub, tirx.Mul)):
            return self._same(a.a, b.a) and self._same(a.b, b.b)
        if isinstance(a, tirx.BufferLoad) and not a.buffer.same_as(b.buffer):
            return False  # structural equality takes any two buffers of one shape for the same
        return structurally_equal(a, b)

    def _normal(self, node: Any) -> tuple[Any, Any, bool] | None:
        """An ordered fp32 comparison as (low, high, or_equal)."""
        if not isinstance(node, _ORDERED) or not is_fp32(node.a):
            return None
        low, high = (node.a, node.b) if isinstance(node, (tirx.LT, tirx.LE)) else (node.b, node.a)
        return low, high, isinstance(node, (tirx.LE, tirx.GE))

    def _ordered(self, condition: Any) -> Iterator[tuple[Any, Any, bool]]:
        condition = self._resolve(condition)
        if isinstance(condition, (tirx.And, tirx.Or)):
            yield from self._ordered(condition.a)
            yield from self._ordered(condition.b)
        elif isinstance(condition, tirx.Not):
            yield from self._ordered(condition.a)
        else:
            normal = self._normal(condition)
            if normal is not None:
                yield normal

    def _alternatives(self, node: Any, report: Report) -> None:
        for a, b, _ in self._ordered(node.a):
            for c, d, _ in self._ordered(node.b):
                if self._same(a, d) and self._same(b, c):
                    report(f"an fp32 comparison or its mirror image is not portable (taken as unequal or true), {_NAN}")
                    return
