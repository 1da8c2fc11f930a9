"""The box of a tensor that an access of a loop nest covers, where its indices are affine."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

from tilelang import tvm
from tvm import tirx

from .rewriter import Region, int32, walk

COPIES = 8
"""Most copies for one operand: a box that is not two-dimensional takes several."""

ALIGNMENT = 32
"""Bytes; a copy starts at a multiple of it in UB."""

_TABLE = 1024
"""Longest loop whose index is tabulated where it is not linear, such as ``c // 2``."""

Loop = tuple[Any, int, int]
"""Variable, first value, number of values."""


@dataclass
class Box:
    """A box of a tensor, and the tile of UB that holds a copy of it.

    Attributes:
        buffer: the tensor.
        mins, extents: of the box that one copy moves, by dimension of the tensor; ``mins`` in terms of ``outer``.
        outer: loops of the nest with a copy for each of their values.
        axes: by dimension of the tile, the position in ``outer`` or, as ``~d``, the dimension of the tensor it follows.
        shape: of the tile.
        at: the element of the tile that stands for the nest's element of the tensor.
        coefficients: by dimension of the tensor, what multiplies which loop variable within the box.
        exact: whether the nest's iterations reach every element of the box.
    """

    buffer: Any
    mins: list[Any]
    extents: list[int]
    outer: list[Loop]
    axes: list[int]
    shape: list[int]
    at: list[Any]
    coefficients: list[dict[Any, int]]
    exact: bool

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * tvm.DataType(self.buffer.dtype).bits // 8

    def copies(self, tile: Any, there: Any) -> list[tuple[Region, Region]]:
        """The regions of the tile and of the tensor (or a view ``there`` of it), one pair for each copy."""
        pairs = []
        for values in product(*(range(first, first + count) for _, first, count in self.outer)):
            known = {loop[0]: int32(value) for loop, value in zip(self.outer, values, strict=True)}
            mins = [substitute(m, known) for m in self.mins]
            of_tile, extents = [], []
            for axis in self.axes:
                of_tile.append(int32(values[axis] - self.outer[axis][1]) if axis >= 0 else int32(0))
                extents.append(int32(1) if axis >= 0 else int32(self.extents[~axis]))
            if len(self.axes) < len(self.shape):  # a dimension that only aligns
                of_tile.append(int32(0))
                extents.append(int32(1))
            pairs.append((Region(tile, of_tile, extents, 3), Region(there, mins, list(map(int32, self.extents)), 3)))
        return pairs


def substitute(expression: Any, values: dict[Any, Any]) -> Any:
    """The expression with variables replaced, simplified."""
    if not values:
        return expression
    return tvm.arith.Analyzer().simplify(tirx.stmt_functor.substitute(expression, values))


def occurs(expression: Any, variable: Any) -> bool:
    found: list[bool] = []
    walk(expression, lambda n: found.append(True) if isinstance(n, tirx.Var) and n.same_as(variable) else None)
    return bool(found)


def linear(expression: Any, variables: Sequence[Any]) -> tuple[list[int], Any] | None:
    """Constant coefficients of the variables and the rest, if the expression is linear in them."""
    if not variables:
        return [], expression
    terms = tvm.arith.detect_linear_equation(expression, list(variables))
    if not terms or not all(isinstance(term, tirx.IntImm) for term in terms[:-1]):
        return None
    return [int(term) for term in terms[:-1]], terms[-1]


@dataclass
class _Dimension:
    """One index: ``clamp(inner)``, of which ``coefficients`` and ``extent`` describe ``inner``."""

    inner: Any
    clamp: Callable[[Any], Any]
    clamped: bool
    lowest: Any = None
    extent: int = 1
    coefficients: dict[Any, int] | None = None
    exact: bool = True


def _unclamped(index: Any, moving: Callable[[Any], bool]) -> _Dimension:
    """Strip minima and maxima with a bound that does not move."""
    if isinstance(index, (tirx.Min, tirx.Max)) and moving(index.a) != moving(index.b):
        kind = type(index)
        inside, bound = (index.a, index.b) if moving(index.a) else (index.b, index.a)
        found = _unclamped(inside, moving)
        inner_clamp = found.clamp
        return _Dimension(found.inner, lambda x: kind(inner_clamp(x), bound), True)
    return _Dimension(index, lambda x: x, False)


def _measure(dimension: _Dimension, loops: list[Loop]) -> list[Loop] | None:
    """Fill in the dimension's box under ``loops``; returns those too far apart for it, None if it has none."""
    inner, variables = dimension.inner, [loop[0] for loop in loops]
    found = linear(inner, variables)
    first = {loop[0]: int32(loop[1]) for loop in loops}
    if found is None:
        if len(loops) != 1 or loops[0][2] > _TABLE:
            return None
        variable, start, count = loops[0]
        values = [substitute(inner, {variable: int32(start + k)}) for k in range(count)]
        analyzer = tvm.arith.Analyzer()
        offsets = [analyzer.simplify(value - values[0]) for value in values]
        if not all(isinstance(offset, tirx.IntImm) for offset in offsets):
            return None
        numbers = [int(offset) for offset in offsets]
        dimension.lowest = substitute(values[0] + min(numbers), first)
        dimension.extent = max(numbers) - min(numbers) + 1
        dimension.exact = len(set(numbers)) == dimension.extent
        return []
    coefficients, _ = found
    if any(c < 0 for c in coefficients):
        return None
    apart, extent, inside = [], 1, {}
    for coefficient, loop in sorted(zip(coefficients, loops, strict=True), key=lambda pair: pair[0]):
        if coefficient > extent:
            apart.append(loop)
        else:
            extent += coefficient * (loop[2] - 1)
            inside[loop[0]] = coefficient
    dimension.extent, dimension.coefficients = extent, inside
    dimension.lowest = substitute(inner, {loop[0]: first[loop[0]] for loop in loops if loop[0] in inside})
    return apart


def box_of(buffer: Any, indices: Sequence[Any], loops: Sequence[Loop], analyzer: Any) -> Box | None:
    """The box that ``buffer[indices]`` covers while ``loops`` run, None if there is none or it needs many copies.

    Each index is affine in the loops' variables, up to a minimum or maximum with a bound that does not move; or it is
    a function of one loop alone. A loop that two indices follow, or whose steps leave gaps, gets a copy for each value.
    """
    plain = _box(buffer, list(indices), list(loops))
    if plain is not None:
        return plain
    return _box(buffer, [analyzer.simplify(index) for index in indices], list(loops))


def _box(buffer: Any, indices: list[Any], loops: list[Loop]) -> Box | None:
    follows = [[loop for loop in loops if occurs(index, loop[0])] for index in indices]
    outer: list[Loop] = []
    for loop in loops:
        if sum(any(loop is f for f in one) for one in follows) > 1:
            outer.append(loop)
    dimensions: list[_Dimension] = []
    settled = False
    while not settled:
        settled, dimensions = True, []
        for index, one in zip(indices, follows, strict=True):
            inside = [loop for loop in one if loop not in outer]
            moves = [loop[0] for loop in inside]
            dimension = _unclamped(index, lambda e, moves=moves: any(occurs(e, v) for v in moves))  # type: ignore[misc]
            apart = _measure(dimension, inside)
            if apart is None:
                return None
            if apart:
                outer.extend(apart)
                settled = False
                break
            dimensions.append(dimension)
        if settled:
            wide = [d for d, dimension in enumerate(dimensions) if dimension.extent > 1]
            if len(wide) > 2:  # a copy has two dimensions
                outer.extend(loop for loop in follows[wide[0]] if loop not in outer)
                settled = False
    if math.prod(loop[2] for loop in outer) > COPIES:
        return None
    return _tile(buffer, indices, follows, outer, dimensions)


def _tile(
    buffer: Any, indices: list[Any], follows: list[list[Loop]], outer: list[Loop], dimensions: list[_Dimension]
) -> Box:
    axes: list[int] = []
    shape: list[int] = []
    at: list[Any] = []
    mins = [dimension.clamp(dimension.lowest) for dimension in dimensions]
    for d, dimension in enumerate(dimensions):
        for position, loop in enumerate(outer):
            if position not in axes and loop in follows[d]:
                axes.append(position)
                shape.append(loop[2])
                at.append(loop[0] if loop[1] == 0 else loop[0] - loop[1])
        if dimension.extent > 1:
            axes.append(~d)
            shape.append(dimension.extent)
            at.append(_offset(indices[d], mins[d], dimension, follows[d]))
    if outer or not shape:
        unit = ALIGNMENT * 8 // tvm.DataType(buffer.dtype).bits
        if not axes or axes[-1] >= 0:
            shape.append(unit if outer else 1)
            at.append(int32(0))
        else:
            shape[-1] = -(-shape[-1] // unit) * unit
    exact = all(dimension.exact and not dimension.clamped for dimension in dimensions)
    inside = [dimension.coefficients or {} for dimension in dimensions]
    return Box(buffer, mins, [d.extent for d in dimensions], outer, axes, shape, at, inside, exact)


def _offset(index: Any, minimum: Any, dimension: _Dimension, loops: list[Loop]) -> Any:
    if dimension.clamped or dimension.coefficients is None:
        return tvm.arith.Analyzer().simplify(index - minimum)
    total: Any = None
    for variable, start, _ in loops:
        coefficient = dimension.coefficients.get(variable)
        if coefficient is None:
            continue
        term = variable if start == 0 else variable - start
        term = term if coefficient == 1 else term * coefficient
        total = term if total is None else total + term
    return int32(0) if total is None else total


def bound_of(condition: Any, loops: Sequence[Loop]) -> tuple[dict[Any, int], Any] | None:
    """A comparison of integers as ``sum of coefficient * (variable - first value) < bound``, if it is one."""
    below = {
        tirx.LT: lambda a, b: a - b,
        tirx.LE: lambda a, b: a - b - 1,
        tirx.GT: lambda a, b: b - a,
        tirx.GE: lambda a, b: b - a - 1,
    }.get(type(condition))
    if below is None or not str(condition.a.dtype).startswith("int"):
        return None
    difference = below(condition.a, condition.b)
    used = [loop for loop in loops if occurs(difference, loop[0])]
    found = linear(difference, [loop[0] for loop in used])
    if found is None:
        return None
    start = substitute(difference, {loop[0]: int32(loop[1]) for loop in used})
    coefficients = {loop[0]: c for loop, c in zip(used, found[0], strict=True) if c}
    return coefficients, tvm.arith.Analyzer().simplify(0 - start)
