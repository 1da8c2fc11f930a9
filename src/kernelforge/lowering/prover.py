"""TVM's door to z3, which a pass that needs no proofs finds shut.

TVM's analyzer asks z3 whenever its own rules prove nothing, by one method of C++, and has no switch for it. Nearly all
of those questions remain open, and each new analyzer first starts a z3 of its own, a millisecond. TVM's libraries call
the method through their tables of other functions' addresses (ELF's PLT); while the door is shut, those two entries
lead to a function that says "not proven". What a pass then does is what it does when z3 gives up.
"""

from __future__ import annotations

import ctypes
import functools
import mmap
import platform
import struct
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from .tir import COMPILER_LIBRARIES

_METHOD = b"_ZN3tvm5arith8Z3Prover8CanProveERKNS_8PrimExprE"
"""``bool tvm::arith::Z3Prover::CanProve(const PrimExpr&)``."""

_DYNAMIC_SYMBOLS, _RELOCATIONS = 11, 4
_SECTION, _SYMBOL, _RELOCATION = struct.Struct("<IIQQQQIIQQ"), struct.Struct("<IBBHQQ"), struct.Struct("<QQq")
_JUMP_SLOT = {("linux", "x86_64"): 7, ("linux", "aarch64"): 1026}.get((sys.platform, platform.machine()))


@ctypes.CFUNCTYPE(ctypes.c_bool, ctypes.c_void_p, ctypes.c_void_p)
def _not_proven(prover: int, question: int) -> bool:
    return False


@dataclass
class Door:
    """The entries of :data:`COMPILER_LIBRARIES` through which z3 is asked, and what stood there while it was open."""

    entries: list[ctypes.c_void_p]
    asking: list[int | None] | None = None

    def shut(self) -> None:
        """From now on nothing is proven, in every thread of the process."""
        if self.asking is None:
            self.asking = [entry.value for entry in self.entries]
            for entry in self.entries:
                entry.value = ctypes.cast(_not_proven, ctypes.c_void_p).value

    def open(self) -> None:
        """From now on z3 is asked."""
        if self.asking is not None:
            for entry, address in zip(self.entries, self.asking, strict=True):
                entry.value = address
            self.asking = None

    @property
    def is_open(self) -> bool:
        return self.asking is None


@functools.cache
def door() -> Door:
    """The process's door; without entries, so always open, where libraries are not Linux's, or bound when loaded."""
    entries = [] if _JUMP_SLOT is None else [entry for path in COMPILER_LIBRARIES for entry in _entries(path)]
    return Door(entries if len(entries) == len(COMPILER_LIBRARIES) else [])


def _entries(path: Path) -> Iterator[ctypes.c_void_p]:
    """Where a loaded library keeps the method's address, as far as it can be written."""
    if not path.is_file():
        return
    # A handle is glibc's and musl's record of the library, which starts with the address it is loaded at.
    loaded_at = ctypes.c_void_p.from_address(ctypes.CDLL(str(path))._handle).value or 0
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as image:
        offsets = list(slots(image, _METHOD))
    for address in (loaded_at + offset for offset in offsets):
        if _is_writable(address):
            yield ctypes.c_void_p.from_address(address)


def slots(image: bytes | mmap.mmap, function: bytes) -> Iterator[int]:
    """Offsets, in the image of a 64-bit ELF library, of the entries that hold a function's address for its calls."""
    if image[:6] != b"\x7fELF\x02\x01":
        return
    (table,) = struct.unpack_from("<Q", image, 40)
    size, count = struct.unpack_from("<HH", image, 58)
    sections = [_SECTION.unpack_from(image, table + number * size) for number in range(count)]
    for _, kind, _, _, start, length, symbols, _, _, _ in sections:
        if kind != _RELOCATIONS or sections[symbols][1] != _DYNAMIC_SYMBOLS:
            continue
        number = _symbol(image, sections[symbols], sections[sections[symbols][6]], function)
        for offset, info, _ in _RELOCATION.iter_unpack(image[start : start + length]):
            if info & 0xFFFFFFFF == _JUMP_SLOT and info >> 32 == number:
                yield offset


def _symbol(image: bytes | mmap.mmap, symbols: tuple[int, ...], names: tuple[int, ...], function: bytes) -> int | None:
    """The function's number in a table of symbols."""
    start, length = symbols[4], symbols[5]
    text = image[names[4] : names[4] + names[5]]
    for number, symbol in enumerate(_SYMBOL.iter_unpack(image[start : start + length])):
        if text.startswith(function + b"\0", symbol[0]):
            return number
    return None


def _is_writable(address: int) -> bool:
    for line in Path("/proc/self/maps").read_text().splitlines():
        bounds, permissions = line.split()[:2]
        first, end = (int(bound, 16) for bound in bounds.split("-"))
        if first <= address < end:
            return permissions.startswith("rw")
    return False
