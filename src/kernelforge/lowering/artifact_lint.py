"""Refuses generated code that uses arithmetic exact mode forbids; runs at every compile, on every backend.

The verifier looks at what a kernel says; this looks at what came out of the compilers in between: the device function
after TileLang's pipeline, which the code generators print one to one, and the printed source itself.
"""

from __future__ import annotations

import re
from typing import Any

from .tir import called, functions, post_order, tirx

_FUNCTIONS = (
    "exp|exp2|exp10|expm1|log|log2|log10|log1p|sqrt|rsqrt|cbrt|pow|sin|cos|tan|tanh|sinh|cosh|erf|sigmoid|fma|fdividef|"
    "frcp_rn|fsqrt_rn|fdiv_rn|frsqrt_rn|fmax|fmin|maxnum|minnum"
)
# The C library's and CUDA's spellings (expf, __expf, hexp2, tl::exp ...) and AscendC's (asc_exp, asc_div ...).
_FORBIDDEN_CALL = re.compile(rf"\b(?:__|h|h2|asc_|vec_)?(?:{_FUNCTIONS}|(?<=asc_)(?:div|reciprocal|recip))f?\s*\(")
_COMMENT = re.compile(r"//[^\n]*|/\*.*?\*/", re.DOTALL)
_MATH = frozenset(f"tirx.{name}" for name in _FUNCTIONS.split("|"))


class ForbiddenArithmetic(RuntimeError):
    """Generated code holds arithmetic whose bits differ between devices."""


def lint_artifact(artifact: Any) -> None:
    """Check TileLang's ``CompiledArtifact``: its device functions and its source.

    Raises:
        ForbiddenArithmetic: with every finding.
    """
    findings = [finding for function in functions(artifact.device_mod) for finding in forbidden_in_tir(function)]
    findings += forbidden_in_source(artifact.kernel_source)
    if findings:
        raise ForbiddenArithmetic("generated code leaves exact mode:\n  " + "\n  ".join(findings))


def forbidden_in_tir(function: Any) -> list[str]:
    """Float divisions, remainders, maxima, fused multiply-adds and elementary functions of a lowered function."""
    findings: list[str] = []

    def is_float(node: Any) -> bool:
        return str(node.dtype).startswith(("float", "bfloat"))

    def visit(node: Any) -> None:
        if isinstance(node, (tirx.Div, tirx.Mod, tirx.FloorDiv, tirx.FloorMod, tirx.Min, tirx.Max)) and is_float(node):
            findings.append(f"float {type(node).__name__.lower()}: {node}")
        elif called(node) in _MATH and is_float(node):
            findings.append(f"{called(node)}: {node}")

    post_order(function.body, visit)
    return findings


def forbidden_in_source(source: str) -> list[str]:
    """Calls of functions that round in a device's own way, with their line in C, CUDA C++ or AscendC source."""
    text = _COMMENT.sub(lambda match: "\n" * match.group().count("\n"), source)
    findings = []
    for number, line in enumerate(text.splitlines(), 1):
        for match in _FORBIDDEN_CALL.finditer(line):
            findings.append(f"source line {number}: {match.group().rstrip('( ')}: {line.strip()}")
    return findings
