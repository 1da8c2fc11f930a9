"""Bits: digests of them, and where they differ."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..ops.spec import Arrays


@dataclass(frozen=True)
class Difference:
    """Where an output differs from the reference.

    Attributes:
        output: its name.
        reason: shape, dtype, or the first differing element with both bit patterns.
        count: elements that differ; 0 where they cannot be compared.
    """

    output: str
    reason: str
    count: int = 0

    def __str__(self) -> str:
        return f"{self.output}: {self.reason}"


def digest(arrays: Arrays) -> str:
    """SHA-256 over names, dtypes, shapes and little-endian bits, in order of name."""
    state = hashlib.sha256()
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        state.update(f"{name}\0{array.dtype.name}\0{array.shape}\0".encode())
        state.update(array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes())
    return state.hexdigest()


def compare(expected: Arrays, given: Arrays) -> list[Difference]:
    """Differences in any bit; an empty list means equal."""
    if set(expected) != set(given):
        return [Difference("outputs", f"given {sorted(given)}, wanted {sorted(expected)}")]
    return [d for name in expected if (d := _compare(name, expected[name], given[name])) is not None]


def _compare(name: str, expected: NDArray[Any], given: NDArray[Any]) -> Difference | None:
    if expected.dtype != given.dtype or expected.shape != given.shape:
        return Difference(
            name, f"given {given.dtype}{list(given.shape)}, wanted {expected.dtype}{list(expected.shape)}"
        )
    want, have = _bits(expected), _bits(given)
    differs = np.argwhere(want != have)
    if not len(differs):
        return None
    first = tuple(int(i) for i in differs[0])
    width = 2 * expected.dtype.itemsize
    return Difference(
        name,
        f"{len(differs)} of {expected.size} elements differ; first at {list(first)}: "
        f"given 0x{int(have[first]):0{width}x}, wanted 0x{int(want[first]):0{width}x}",
        len(differs),
    )


def _bits(array: NDArray[Any]) -> NDArray[Any]:
    return np.ascontiguousarray(array).view(f"u{array.dtype.itemsize}")
