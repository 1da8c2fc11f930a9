"""No index leaves its buffer, and every element of an output is written by exactly one block, for every dynamic extent.

``prove_kernel(spec)`` works on any op's kernel: the claims are made from its traced TIR
(:mod:`kernelforge.proofs.kernel_accesses`), so they speak of the code that every backend lowers.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence

import z3

from ..runtime import KernelSpec
from . import Theorem, prove
from .kernel_accesses import Access, Contents, Kernel, accesses

Witness = Callable[[list[z3.ArithRef]], z3.ArithRef]
"""From an element of an output to the value of a block or loop index that stores it."""


class Ascending:
    """Contents of an array of ``count`` offsets: it starts at 0, never falls and ends at the extent called ``last``."""

    def __init__(self, count: int, last: str) -> None:
        self.values = [z3.Int(f"offset{i}") for i in range(count)]
        self.premises = [
            self.values[0] == 0,
            self.values[-1] == z3.Int(last),
            *(a <= b for a, b in itertools.pairwise(self.values)),
        ]

    def __call__(self, index: list[z3.ArithRef]) -> z3.ArithRef | None:
        if len(index) != 1:
            return None
        if z3.is_int_value(index[0]):
            return self.values[index[0].as_long()]
        found = self.values[-1]
        for position, value in reversed(list(enumerate(self.values[:-1]))):
            found = z3.If(index[0] == position, value, found)
        return found


def theorems(
    spec: KernelSpec,
    contents: Mapping[str, Contents] | None = None,
    witnesses: Mapping[str, Witness] | None = None,
    premises: Sequence[z3.BoolRef] = (),
    partial: Sequence[str] = (),
) -> list[Theorem]:
    """What is claimed of a kernel.

    Args:
        spec: the kernel.
        contents: by buffer name, what integer buffers hold that decide indices, e.g. :class:`Ascending`.
        witnesses: by the name of a block or loop index, which of its values stores an element; wanted only of indices
            that are no digit of the element's own (a row tile of a group).
        premises: what the op checks about dynamic extents before a launch; the extent M is ``z3.Int("M")``.
        partial: outputs that the kernel changes in part, by name; the others are stored completely.
    """
    from ..lowering import trace

    kernel = accesses(trace(spec.builder, dict(spec.parameters)), contents)
    kernel.facts += premises
    for holds in (contents or {}).values():
        kernel.facts += getattr(holds, "premises", [])
    found = _bounds(kernel)
    written = dict.fromkeys(a.buffer for a in kernel.accesses if a.writes and a.scope == "global" and not a.atomic)
    for buffer in written:
        stores = [a for a in kernel.accesses if a.buffer == buffer and a.writes]
        found.append(_written_by_one_block(kernel, buffer, stores))
        if buffer not in partial:
            found.append(_complete(kernel, buffer, stores, witnesses or {}))
    return found


def prove_kernel(
    spec: KernelSpec,
    contents: Mapping[str, Contents] | None = None,
    witnesses: Mapping[str, Witness] | None = None,
    premises: Sequence[z3.BoolRef] = (),
) -> int:
    """Prove everything about one kernel, see :func:`theorems`; returns how many theorems there were.

    Raises:
        ProofError: with a counterexample: the block, the indices and the element.
    """
    claimed = theorems(spec, contents, witnesses, premises)
    for theorem in claimed:
        prove(theorem)
    return len(claimed)


def _bounds(kernel: Kernel) -> list[Theorem]:
    """One theorem for each distinct access."""
    found: dict[str, Theorem] = {}
    for access in kernel.accesses:
        inside = []
        for at, extent, size in zip(access.start, access.extent, access.shape, strict=True):
            # A tile copy leaves out what lies beyond the buffer, but has to start in it.
            inside += [at >= 0, at < size if access.clipped else at + extent <= size]
        claim = z3.Implies(z3.And(*access.path), z3.And(*inside))
        verb = "stored to" if access.writes else "read from"
        name = f"{access.buffer}[{', '.join(str(z3.simplify(i)) for i in access.start)}]"
        statement = f"what is {verb} {name} ({access.where or 'unknown line'}) lies inside"
        found.setdefault(claim.sexpr(), Theorem(f"inside_{access.buffer}", statement, kernel.facts, claim))
    return list(found.values())


def _covers(access: Access, element: list[z3.ArithRef]) -> z3.BoolRef:
    """Whether a store touches an element that lies in the buffer."""
    inside = [z3.And(e >= at, e < at + n) for e, at, n in zip(element, access.start, access.extent, strict=True)]
    return z3.And(*access.path, *inside)


def _element(access: Access) -> tuple[list[z3.ArithRef], z3.BoolRef]:
    element = [z3.Int(f"element{axis}") for axis in range(len(access.shape))]
    return element, z3.And(*(z3.And(e >= 0, e < size) for e, size in zip(element, access.shape, strict=True)))


def _written_by_one_block(kernel: Kernel, buffer: str, stores: list[Access]) -> Theorem:
    """Two blocks never store to the same element; nor do two indices of one parallel store, which would race."""
    element, inside = _element(stores[0])
    local = list(dict.fromkeys([*kernel.blocks, *(i for a in stores for i in a.indices), *kernel.unknowns]))
    other = [(v, z3.FreshConst(v.sort(), f"other_{v}")) for v in local]
    renamed = dict(zip(local, (new for _, new in other), strict=True))
    facts = [*kernel.facts, *(z3.substitute(fact, *other) for fact in kernel.facts)]
    same_block = z3.And(*(v == renamed[v] for v in kernel.blocks))
    clashes = []
    for one, two in itertools.product(stores, repeat=2):
        both = z3.And(_covers(one, element), z3.substitute(_covers(two, element), *other))
        clashes.append(z3.And(both, z3.Not(same_block)))
        serial = [v for v in one.indices if not any(v.eq(p) for p in one.parallel)]
        if one is two and one.parallel:
            turn = z3.And(*(v == renamed[v] for v in serial))
            differ = z3.Or(*(v != renamed[v] for v in one.parallel))
            clashes.append(z3.And(both, turn, differ))
    statement = f"no element of {buffer} is stored by two blocks, or by two indices of one parallel loop"
    return Theorem(f"once_{buffer}", statement, [*facts, inside], z3.Not(z3.Or(*clashes)))


def _complete(kernel: Kernel, buffer: str, stores: list[Access], witnesses: Mapping[str, Witness]) -> Theorem:
    element, inside = _element(stores[0])
    written = []
    for access in stores:
        where = _writer(access, element, witnesses)
        written.append(z3.substitute(_covers(access, element), *where.items()) if where else _covers(access, element))
    statement = f"every element of {buffer} is stored"
    return Theorem(f"complete_{buffer}", statement, [*kernel.facts, inside], z3.Or(*written))


def _writer(
    access: Access, element: list[z3.ArithRef], witnesses: Mapping[str, Witness]
) -> dict[z3.ArithRef, z3.ArithRef]:
    """The indices that should store an element; that they do is what is then proved.

    Where a box starts at c1 * i1 + c2 * i2 + ..., the indices are the element's digits in that mixed radix.
    """
    chosen = {v: witnesses[name](element) for v in access.indices if (name := str(v).partition("!")[0]) in witnesses}
    for e, start in zip(element, access.start, strict=True):
        free = [v for v in access.indices if v not in chosen]
        known = z3.substitute(start, *chosen.items()) if chosen else start
        at_zero = z3.substitute(known, *((v, z3.IntVal(0)) for v in free)) if free else known
        radix = {}
        for v in free:
            others = [(u, z3.IntVal(int(u is v))) for u in free]
            step = z3.simplify(z3.substitute(known, *others) - at_zero)
            if z3.is_int_value(step) and step.as_long() > 0:
                radix[v] = step.as_long()
        rest = e - at_zero
        for v, step in sorted(radix.items(), key=lambda pair: -pair[1]):
            chosen[v] = rest / step
            rest = rest % step
    return {v: chosen.get(v, z3.IntVal(0)) for v in access.indices}
