"""Fused multiply-adds in what the compiler made, whatever it was told.

``-ffp-contract=off`` does not stop every one: GCC 12's vectorizer turns ``a * c - b, d * c + e`` in neighbouring lanes
into one vfmaddsub (``addsub_pattern`` in tree-vect-slp-patterns.cc asks only whether the CPU has it), which rounds once
where the contract rounds twice.
"""

from __future__ import annotations

import re

# x86: vfmadd132ps, vfnmsub231ss, vfmaddsub213ps ...; AArch64: fmadd, fmla, fnmsub, fcmla ...
_FUSED = re.compile(r"^\s+(v?fn?m(?:add|sub|addsub|subadd)\w*|fn?ml[as]\w*|fcmla)\b.*$", re.MULTILINE)
_ALTERNATING = re.compile(r"^\s+(vfm(?:addsub|subadd)\w*)\b.*$", re.MULTILINE)

CAREFUL = ((), ("-fno-tree-slp-vectorize",), ("-fno-tree-vectorize",))
"""Flags to try, one after the other, until nothing is fused: without the pass that fuses, code is slower."""


def fused(assembly: str, microkernel: bool = False) -> list[str]:
    """Instructions that multiply and add with one rounding, in assembly as GCC and Clang print it.

    Args:
        assembly: of a generated kernel, or of a microkernel.
        microkernel: count only what the vectorizer makes by itself: microkernels ask for fused multiply-adds by name
            where the product is exact.
    """
    pattern = _ALTERNATING if microkernel else _FUSED
    return [match.group().strip() for match in pattern.finditer(assembly)]
