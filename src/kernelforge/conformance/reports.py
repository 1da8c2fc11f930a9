"""JUnit, HTML and JSON from a conformance run."""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from .. import __version__
from .runner import Run

PACKAGES = ("kernelforge", "tilelang", "torch", "numpy")


def environment() -> dict[str, str]:
    """What a reader of a report wants to know about the machine."""
    return {"python": platform.python_version(), "machine": platform.machine(), **{p: version(p) for p in PACKAGES}}


def digests(run: Run) -> dict[str, Any]:
    """Digests by op and case, the reference's once and each device's; comparable between machines."""
    ops = {}
    for op in run.ops:
        cases: dict[str, dict[str, str]] = {}
        for result in run.results:
            if result.op == op:
                cases.setdefault(result.case, {"reference": result.expected})[result.device] = result.digest
        joint = {"reference": run.expected_digest(op)}
        joint.update({device: run.device_digest(device, op) for device in run.devices})
        ops[op] = {"all": joint, "cases": cases}
    return {
        "kernelforge": __version__,
        "contract": run.contract,
        "seed": run.seed,
        "size": run.size,
        "environment": environment(),
        "ops": ops,
    }


def against(run: Run, other: Mapping[str, Any]) -> list[str]:
    """How another machine's digests disagree with this run's; empty when they agree.

    Every case that both hold is compared, reference and devices alike.
    """
    for name, mine in (("contract", run.contract), ("seed", run.seed)):
        if other.get(name) != mine:
            return [f"{name} is {other.get(name)} there and {mine} here: the digests cannot be compared"]
    found, compared = [], 0
    for result in run.results:
        for device, value in other["ops"].get(result.op, {}).get("cases", {}).get(result.case, {}).items():
            compared += 1
            if value != result.digest:
                found.append(f"{result.op} {result.case}: {result.device} here is not {device} there")
    return found if compared else ["the digests have no case in common with this run"]


def write_digests(run: Run, path: Path) -> None:
    """Write :func:`digests` as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(digests(run), indent=1) + "\n")


def write_junit(run: Run, path: Path) -> None:
    """One test suite per device and op, one test case per case."""
    root = ElementTree.Element("testsuites", name="kernelforge conform", time=f"{run.seconds:.3f}")
    for device in run.devices:
        for op in run.ops:
            results = run.of(device, op)
            suite = ElementTree.SubElement(
                root,
                "testsuite",
                name=f"{op}@{device}",
                tests=str(len(results)),
                failures=str(sum(not r.equal for r in results)),
                errors="0",
                time=f"{sum(r.seconds for r in results):.3f}",
            )
            for result in results:
                case = ElementTree.SubElement(
                    suite, "testcase", classname=f"{device}.{op}", name=result.case, time=f"{result.seconds:.3f}"
                )
                if not result.equal:
                    failure = ElementTree.SubElement(case, "failure", message=_xml_text(result.problems[0]))
                    failure.text = _xml_text("\n".join(result.problems))
    path.parent.mkdir(parents=True, exist_ok=True)
    ElementTree.indent(root)
    ElementTree.ElementTree(root).write(path, encoding="utf-8", xml_declaration=True)


def _xml_text(text: str) -> str:
    """Without the control characters that XML 1.0 cannot hold, e.g. from a compiler's coloured messages."""
    return "".join(c if c >= " " or c in "\n\t" else "?" for c in text)


def write_html(run: Run, path: Path) -> None:
    """One page: summary, digests, every case."""
    import jinja2

    template = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined).from_string(
        files(__package__).joinpath("report.html.j2").read_text()
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(template.render(run=run, environment=environment()))
