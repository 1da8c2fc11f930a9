"""Faults put into a correct kernel's code must be found: by bits, by a checker, by a deadlock, or by the lint."""

from __future__ import annotations

import copy
import dataclasses
import re
import shutil
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from exponential_kernel import approximated, exponentials
from virtual_cuda_kernels import built, generated, scaled_gemm, scaled_gemm_case

from kernelforge.backends import backend
from kernelforge.lowering import lower
from kernelforge_cuda.virtual import Schedule, VirtualKernel, compile_ptx, lint_ptx
from kernelforge_cuda.virtual.launch import KernelFault, PtxError

pytestmark = pytest.mark.skipif(shutil.which("nvcc") is None, reason="nvcc is not installed")

SHAPE = (256, 128, 512)
SCHEDULES = [Schedule(1, "late", 0.02), Schedule(2, "early", 0.02), Schedule(3, "random", 0.05)]
SYNCHRONIZATION = re.compile(
    r"^\s*(cp\.async\.commit_group|cp\.async\.wait|bar\.sync|mbarrier\.(?:init|expect_tx|arrive)|wgmma\.(?:fence|commit|wait)|fence\.|mbarrier\.try_wait)"
)


@dataclasses.dataclass(frozen=True)
class Mutant:
    name: str
    ptx: str
    info: dict[str, Any]


def replace_line(lines: list[str], index: int, *texts: str) -> str:
    return "\n".join([*lines[:index], *texts, *lines[index + 1 :]])


def deletions(ptx: str, info: dict[str, Any]) -> Iterator[Mutant]:
    """Each wait, barrier, commit, arrival, initialization and fence deleted."""
    lines = ptx.split("\n")
    for i, line in enumerate(lines):
        found = SYNCHRONIZATION.match(line)
        if not found:
            continue
        name = f"delete {line.strip()[:60]} (line {i + 1})"
        if found[1] == "mbarrier.try_wait":
            yield Mutant(name, replace_line(lines, i, "setp.eq.s32 P1, 0, 0;"), info)
        else:
            yield Mutant(name, replace_line(lines, i), info)


def changes(ptx: str, info: dict[str, Any]) -> Iterator[Mutant]:
    """Waits that are too weak, stages and offsets exchanged, copies and boxes too small, wrong layouts, wrong grids."""
    lines = ptx.split("\n")
    for i, line in enumerate(lines):
        at = f"(line {i + 1})"
        if m := re.search(r"(cp\.async|wgmma)\.wait_group(\.sync\.aligned)? +\t*(\d+);", line):
            yield Mutant(
                f"wait for one group less {at}",
                replace_line(lines, i, line.replace(f"{m[3]};", f"{int(m[3]) + 1};")),
                info,
            )
        if "cp.async.wait_all" in line:
            yield Mutant(f"leave the last group in flight {at}", replace_line(lines, i, "cp.async.wait_group 1;"), info)
        if re.match(r"\s*add\.s32 \s*%r\d+, %r\d+, (16384|32768|49152);", line):
            yield Mutant(
                f"another stage: {line.strip()} {at}",
                replace_line(lines, i, re.sub(r"(\d+);", lambda n: f"{int(n[1]) ^ 16384};", line)),
                info,
            )
        if re.match(r"\s*xor\.b32 .*, (16|32|64);", line):
            yield Mutant(
                f"another swizzle: {line.strip()} {at}",
                replace_line(lines, i, re.sub(r"(\d+);", lambda n: f"{int(n[1]) ^ 96};", line)),
                info,
            )
        if re.match(r"\s*bar\.sync", line):
            yield Mutant(f"another barrier {at}", replace_line(lines, i, line.replace("0;", "1, 64;")), info)
        if re.match(r"\s*mbarrier\.init", line):
            yield Mutant(
                f"one arrival more {at}",
                replace_line(
                    lines,
                    i,
                    f"{{ .reg .b32 t; add.u32 t, {line.split(',')[1].strip(' ;')}, 1; {line.split(',')[0]}, t; }}",
                ),
                info,
            )
        if re.match(r"\s*mbarrier\.try_wait", line):
            parity = line.split(",")[2].strip()
            flipped = re.sub(re.escape(parity), "flip", line, count=1)
            yield Mutant(
                f"the other parity {at}",
                replace_line(lines, i, ".reg .b32 flip;", f"xor.b32 flip, {parity}, 1;", flipped),
                info,
            )
    copies = [i for i, line in enumerate(lines) if re.match(r"\s*cp\.async\.cg", line)]
    for i in copies[:: max(1, len(copies) // 4)]:
        yield Mutant(
            f"half a copy (line {i + 1})",
            replace_line(lines, i, lines[i].replace(".cg.", ".ca.").replace("16;", "8;")),
            info,
        )
    matrices = [i for i, line in enumerate(lines) if re.match(r"\s*(ldmatrix|mma\.sync)", line)]
    for i in matrices[:: max(1, len(matrices) // 6)]:
        registers = re.findall(r"%r\d+", lines[i])
        swapped = (
            lines[i].replace(registers[0], "#", 1).replace(registers[1], registers[0], 1).replace("#", registers[1], 1)
        )
        yield Mutant(f"two registers exchanged (line {i + 1})", replace_line(lines, i, swapped), info)
    for axis in range(2):
        for delta in (-1, 1):
            other = copy.deepcopy(info)
            other["grid"][axis] += delta
            if other["grid"][axis]:
                yield Mutant(f"off by one: grid {info['grid']} becomes {other['grid']}", ptx, other)
    for name in info["tma"]:
        for key, value in (
            ("swizzle", 2),
            ("swizzle", 0),
            ("box", [128, 64]),
            ("box", [64, 128]),
            ("strides", [1, 256]),
            ("dims", [512, 64]),
        ):
            other = copy.deepcopy(info)
            other["tma"][name][key] = value
            what = "another swizzle: " if key == "swizzle" else ""
            yield Mutant(f"{what}tensor map {name}: {key} = {value}", ptx, other)
    less = {**info, "shared_bytes": info["shared_bytes"] - 16384}
    yield Mutant("less shared memory", ptx, less)


def early_arrivals(ptx: str, info: dict[str, Any]) -> Iterator[Mutant]:
    """The consumer frees its buffer before the wgmma that still reads it has ended."""
    lines = ptx.split("\n")
    arrive = next((i for i, line in enumerate(lines) if re.match(r"\s*mbarrier\.arrive\.shared", line)), None)
    wait = next((i for i, line in enumerate(lines) if re.match(r"\s*wgmma\.wait_group", line)), None)
    if arrive is None or wait is None:
        return
    address = re.search(r"\[(%r\d+)\]", lines[arrive])
    assert address is not None
    computed = [i for i in range(wait, arrive) if re.match(r"\s*[a-z]", lines[i]) and i != wait]
    moved = [*lines[:wait], *(lines[i] for i in computed), lines[arrive], lines[wait]]
    rest = [lines[i] for i in range(wait + 1, arrive) if i not in computed]
    yield Mutant("arrive before the wgmma has ended", "\n".join([*moved, *rest, *lines[arrive + 1 :]]), info)


def arithmetic(arch: str) -> Iterator[Mutant]:
    """Products contracted by the compiler; an exponential that is the C library's."""
    source, info = generated(scaled_gemm, arch, *SHAPE)
    yield Mutant("drop -fmad=false", compile_ptx(source, arch, flags=()), info)
    source = lower(exponentials(256), backend("cuda"), arch).source
    exact = compile_ptx(source, arch)
    assert lint_ptx(exact) == []
    faulty = "\n".join(map(approximated, source.split("\n")))
    assert faulty != source
    yield Mutant("approximate exp", compile_ptx(faulty, arch), info)


def detected_by(mutant: Mutant) -> str | None:
    """What finds the mutant, or None."""
    operands, expected = scaled_gemm_case(*SHAPE)
    if lint_ptx(mutant.ptx):
        return "lint"
    try:
        kernel = VirtualKernel(mutant.ptx, mutant.info)
        for schedule in SCHEDULES:
            c = np.full(expected.shape, np.nan, np.float32)
            kernel({**operands, "C": c}, schedule=schedule)
            if not np.array_equal(c.view(np.uint32), expected.view(np.uint32)):
                return "bits"
    except KernelFault as fault:
        return "deadlock" if "deadlock" in str(fault) else "fault"
    except PtxError:
        return "load"
    except ValueError:
        return "launch"
    return None


@pytest.mark.parametrize("arch", ["sm_80", "sm_90a"])
def test_mutations_are_detected(arch: str, capsys: pytest.CaptureFixture[str]) -> None:
    """All but the producer's waits for buffers that were never used: they pass at once, so deleting one is no fault."""
    ptx, info = built(scaled_gemm, arch, *SHAPE)
    ptx = re.sub(r"^\s*\.(?:loc|file) .*$", "", ptx, flags=re.M)
    assert detected_by(Mutant("intact", ptx, info)) is None
    mutants = [*deletions(ptx, info), *changes(ptx, info), *early_arrivals(ptx, info), *arithmetic(arch)]
    outcome = {mutant.name: detected_by(mutant) for mutant in mutants}
    ways = [way for way in outcome.values() if way]
    waits = [name for name in outcome if name.startswith("delete mbarrier.try_wait")]
    survivors = [name for name, way in outcome.items() if way is None]
    counts = ", ".join(f"{way} {ways.count(way)}" for way in sorted(set(ways)))
    with capsys.disabled():
        print(f"\n{arch}: {len(ways)} of {len(mutants)} mutants detected ({counts})")
        for name in survivors:
            print("  survives, equivalent" if name in waits[:2] else "  survives", name)
    assert set(survivors) <= set(waits[:2])
    assert len(mutants) >= 40
    commit, wait, copy = FAULTS[arch]
    every = (commit, wait, copy, "delete bar.sync", "another stage", "another swizzle", "off by one: grid")
    for what in (*every, "drop -fmad=false", "approximate exp"):
        assert any(name.startswith(what) for name in outcome), what


FAULTS = {
    "sm_80": ("delete cp.async.commit_group", "delete cp.async.wait_group", "half a copy"),
    "sm_90a": ("delete wgmma.commit_group", "delete wgmma.wait_group", "tensor map A_desc: box"),
}
"""By architecture: what a deleted commit, a deleted wait and a shortened copy are called."""
