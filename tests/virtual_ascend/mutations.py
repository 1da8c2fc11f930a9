"""Faults put into generated AscendC, one at a time."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from exponential_kernel import approximated


@dataclass(frozen=True)
class Mutation:
    """A faulty variant of a source.

    Attributes:
        kind: what was done.
        line: where, counted from 1; 0 for a launch that is at fault.
        before: the line as it was.
        source: the whole source with the fault.
        blocks: launched more than the kernel needs, or fewer.
    """

    kind: str
    line: int
    before: str
    source: str
    blocks: int = 0

    @property
    def name(self) -> str:
        return f"{self.kind} at line {self.line}: {self.before.strip()}" if self.line else self.kind


_SYNCHRONIZATION = re.compile(
    r"^\s*asc_(sync_notify|sync_wait|sync_intra_arrive|sync_intra_wait|sync_pipe|syncthreads)\("
)
_COPY = re.compile(r"^\s*asc_(copy_\w+|fill_l1)\(")


def _deletions(line: str) -> Iterator[tuple[str, str]]:
    found = _SYNCHRONIZATION.match(line)
    if found:
        yield f"delete {found[1]}", ""
    elif _COPY.match(line):
        yield "delete copy", ""
    elif "asc_vf_call<" in line:
        yield "delete vector function", ""
    elif "ascend_gemm_l1<" in line:
        yield "delete gemm", ""


def _flags(line: str) -> Iterator[tuple[str, str]]:
    if re.search(r"asc_sync_(notify|wait)\(", line):
        yield "other event", re.sub(r"static_cast<event_t>\((.*)\)\);", r"static_cast<event_t>((\1) ^ 4));", line)
    if "asc_sync_intra_" in line:
        yield "other cross-core flag", re.sub(r", (.*)\);$", r", (\1) ^ 8);", line)
        if "& 1)" in line:
            yield "stuck stage of a flag", re.sub(r"\((\w+) & 1\)", "0", line)


def _copies(line: str) -> Iterator[tuple[str, str]]:
    rows = re.search(r"(asc_copy_(?:gm2ub|ub2gm)_align\(.*\)\)\), )(\d+|min\([^;]*?\)\)\)), (\d+), ", line)
    if rows:
        count, width = rows[2], int(rows[3])
        yield "one row less", line.replace(f"{rows[1]}{count}, {width}, ", f"{rows[1]}({count}) - 1, {width}, ")
        if width > 1:
            yield "short rows", line.replace(f"{rows[1]}{count}, {width}, ", f"{rows[1]}{count}, {width // 2}, ")
        yield "wide rows", line.replace(f"{rows[1]}{count}, {width}, ", f"{rows[1]}{count}, {width + 32}, ")
    if "asc_copy_gm2ub_align" in line and not re.search(r"\)\)\), 1, \d+, ", line):  # one row has no stride
        yield "other source stride", re.sub(r", (\d+), (\d+)\);$", r", \1 + 4, \2);", line)
    if "asc_set_gm2l1_nz_para" in line:
        yield "other fractal pitch", re.sub(r"static_cast<uint16_t>\((\d+)\)", r"static_cast<uint16_t>(\1 + 16)", line)
    if "asc_copy_gm2l1_nd2nz" in line:
        yield "transposed load", line.replace("nd2nz", "dn2nz")
        yield "fewer columns", re.sub(r", (\d+), (\d+), 0, 0\);$", r", \1, \2 / 2, 0, 0);", line)
    if "asc_copy_l0c2ub" in line:
        yield "sums to one core", line.replace("asc_dual_dst_mode>(1)", "asc_dual_dst_mode>(0)")
        yield "columns split", line.replace("asc_dual_dst_mode>(1)", "asc_dual_dst_mode>(2)")
    if re.search(r"\(k(_1)? & 1\)", line) and "buf_dyn" in line:
        yield "stuck stage", re.sub(r"\(k(_1)? & 1\)", "0", line)
        yield "other stage", re.sub(r"\((k(?:_1)?) & 1\)", r"((\1 + 1) & 1)", line)


def _computation(line: str) -> Iterator[tuple[str, str]]:
    gemm = re.search(r"ascend_gemm_l1<(\d+), (\d+), (\d+), (\d+),", line)
    if gemm:
        yield "sums not cleared", line.replace("(bool)1", "(bool)0")
        yield "swapped operands", re.sub(r"(\(\(__cbuf__[^,]*\)), (\(\(__cbuf__[^,]*\))", r"\2, \1", line)
    if re.search(r"for \(int32_t k(_1)? = 0; k(_1)? < \d+;", line):
        yield "one step less", re.sub(r"< (\d+);", r"< \1 - 1;", line)
    if "asc_vf_call<" in line:
        yield "half the threads", re.sub(r"cce::dim3\((\d+)\)", r"cce::dim3(\1 / 2)", line)
    if "kf_mul(" in line and "KF_FUNCTION" not in line:
        yield "sum for product", line.replace("kf_mul(", "kf_add(", 1)
    yield "contracted product", _contracted(line)
    yield "approximate exp", approximated(line)
    if "++turn" in line:
        yield "one turn less", line.replace(" + 31) - ", " - 1) - ")
    if "threadIdx.x" in line and "buf_dyn_shmem" in line and "] =" in line:
        yield "shifted store", re.sub(r"\)\] =", r") + 1] =", line, count=1)


def _contracted(line: str) -> str:
    """The first sum with a product as one rounding, as a compiler that may contract makes it."""
    for at in (found.end() for found in re.finditer(r"\bkf_add\(", line)):
        augend, product, end = _arguments(line, at)
        if product.startswith("kf_mul("):
            a, b, _ = _arguments(product, len("kf_mul("))
            return f"{line[: at - len('kf_add(')]}__builtin_fmaf({a}, {b}, {augend}{line[end:]}"
    return line


def _arguments(text: str, at: int) -> tuple[str, str, int]:
    """Both arguments of a call whose first begins at ``at``, and where its closing parenthesis is."""
    depth, comma, end = 0, at, at
    while depth >= 0:
        depth += {"(": 1, ")": -1}.get(text[end], 0)
        if depth == 0 and text[end] == "," and comma == at:
            comma = end
        end += 1
    return text[at:comma], text[comma + 2 : end - 1], end - 1


def mutations(source: str) -> list[Mutation]:
    """Every mutation of a generated source that changes its text, and launches of a block more and less."""
    lines = source.split("\n")
    found = [Mutation("one block less", 0, "", source, -1), Mutation("one block more", 0, "", source, 1)]
    for number, line in enumerate(lines):
        for rule in (_deletions, _flags, _copies, _computation):
            for kind, changed in rule(line):
                if changed != line:
                    mutated = "\n".join([*lines[:number], changed, *lines[number + 1 :]])
                    found.append(Mutation(kind, number + 1, line, mutated))
    return found
