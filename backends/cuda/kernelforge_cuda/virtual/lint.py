"""Refuses PTX instructions whose bits exact mode cannot promise."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable

_STATEMENT = re.compile(r"^\s*(?:@!?%?[\w$]+\s+)?([a-z][a-z0-9_]*(?:\.[\w:]+)*)\s*([^;]*);?")
_APPROXIMATE = frozenset({"ex2", "lg2", "sin", "cos", "tanh", "rsqrt", "rcp", "sqrt", "div"})
_LABEL = re.compile(r"^\s*[\w$]+:\s*")
_FLOATS = frozenset({"f16", "f16x2", "bf16", "bf16x2", "f32", "f32x2", "f64"})


@dataclasses.dataclass(frozen=True)
class Finding:
    """A forbidden instruction: its opcode, line in the PTX (from 1), the source line when known, and why."""

    opcode: str
    line: int
    source: str
    reason: str
    text: str

    def __str__(self) -> str:
        where = f"PTX line {self.line}" + (f", {self.source}" if self.source else "")
        return f"{self.opcode} ({where}): {self.reason}: `{self.text}`"


def _reason(opcode: str, mods: list[str], text: str, allow_fma: Callable[[str], bool]) -> str | None:
    base, kinds = mods[0], set(mods[1:])
    floats = kinds & _FLOATS
    if "approx" in kinds or "full" in kinds:
        return "an approximation; use the primitives of kernelforge.numerics"
    if base in _APPROXIMATE and floats:
        return "division, roots and elementary functions differ between devices; use kernelforge.numerics"
    if base in ("fma", "mad") and floats and not allow_fma(text):
        return "a contracted multiply-add rounds once where the contract rounds twice; compile with -fmad=false"
    if base in ("mma", "wgmma") and "tf32" in kinds:
        return "tf32 drops bits of its operands"
    if base == "mma" or "mma_async" in kinds:
        accumulator = next((m for m in mods if m in ("f16", "f32", "s32", "f64")), None)
        if accumulator == "f16":
            return "an f16 accumulator rounds its sums"
    if floats and (base in ("atom", "red") or (base == "cp" and "reduce" in kinds)):
        return "float atomics add in no fixed order"
    if base in ("add", "sub", "mul", "fma", "mad") and "f32" in kinds:
        if kinds & {"rz", "rm", "rp"}:
            return "the contract rounds to nearest"
        if "ftz" in kinds:
            return "compiled with flush-to-zero; compile without -ftz=true or --use_fast_math"
    return None


def lint(ptx: str, *, allow_fma: Callable[[str], bool] | bool = False) -> list[Finding]:
    """Instructions that exact mode forbids, in the order of the text.

    Forbidden: approximations (``*.approx``, ``*.full``), float ``div``, ``sqrt``, ``rsqrt``, ``rcp``, ``ex2``, ``lg2``,
    ``sin``, ``cos``, ``tanh``; contracted multiply-adds; tf32 and f16-accumulating matrix instructions; float atomics;
    directed rounding and flush-to-zero in fp32 arithmetic.

    Args:
        ptx: PTX text.
        allow_fma: True, or a predicate on the instruction's text, where the caller knows that the products are exact.
    """
    allowed = allow_fma if callable(allow_fma) else (lambda _text: bool(allow_fma))
    findings: list[Finding] = []
    files: dict[str, str] = {}
    source = ""
    ptx = re.sub(r"/\*.*?\*/", lambda m: re.sub(r"[^\n]", " ", m[0]), ptx, flags=re.S)
    for match in re.finditer(r'^\s*\.file\s+(\d+)\s+"([^"]*)"', ptx, flags=re.M):
        files[match[1]] = match[2].rsplit("/", 1)[-1]
    for number, raw in enumerate(ptx.splitlines(), start=1):
        line = raw.split("//", 1)[0]
        location = re.match(r"\s*\.loc\s+(\d+)\s+(\d+)", line)
        if location:
            source = f"{files.get(location[1], 'file ' + location[1])}:{location[2]}"
            continue
        for part in line.split(";"):
            part = _LABEL.sub("", part)
            while part.strip().startswith(("{", "}")):
                part = part.strip()[1:]
            if not part.strip() or part.strip().startswith("."):
                continue
            statement = _STATEMENT.match(part)
            if not statement:
                continue
            opcode = statement[1]
            reason = _reason(opcode, opcode.split("."), part.strip(), allowed)
            if reason:
                findings.append(Finding(opcode, number, source, reason, part.strip()))
    return findings
