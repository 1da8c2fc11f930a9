"""Proofs of the contract's claims, by z3: each theorem's negation is shown to have no model.

A proof module exposes ``theorems() -> list[Theorem]``; ``prove`` decides one. Run one module with
``python -m kernelforge.proofs.mx_accumulator``.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import z3

TIMEOUT_MS = 120_000


class ProofError(AssertionError):
    """A theorem does not hold, or the solver could not decide it."""


@dataclass(frozen=True)
class Theorem:
    """A claim with its premises, over free variables.

    Attributes:
        name: short identifier.
        statement: the claim in words.
        premises: constraints on the free variables.
        claim: what follows from them.
    """

    name: str
    statement: str
    premises: list[z3.BoolRef] = field(repr=False)
    claim: z3.BoolRef = field(repr=False)


def prove(theorem: Theorem) -> None:
    """Return if the theorem holds.

    Raises:
        ProofError: with a counterexample, or because premises contradict each other, or on a timeout.
    """
    solver = z3.Solver()
    solver.set("timeout", TIMEOUT_MS)
    solver.add(*theorem.premises)
    if solver.check() != z3.sat:
        raise ProofError(f"{theorem.name}: the premises hold for no value at all, so the claim says nothing")
    solver.add(z3.Not(theorem.claim))
    verdict = solver.check()
    if verdict == z3.sat:
        raise ProofError(f"{theorem.name}: {theorem.statement}: fails for {solver.model()}")
    if verdict != z3.unsat:
        raise ProofError(f"{theorem.name}: undecided ({solver.reason_unknown()})")


def prove_all(theorems: Iterable[Theorem]) -> int:
    """Prove and print each theorem; returns how many there were."""
    count = 0
    for theorem in theorems:
        prove(theorem)
        print(f"proved  {theorem.name}: {theorem.statement}")
        count += 1
    return count
