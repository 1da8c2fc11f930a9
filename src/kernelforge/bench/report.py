"""Rows of measurements, on the screen, as JSON and as Markdown."""

from __future__ import annotations

import datetime
import functools
import json
import os
import platform
import subprocess
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from ..backends import device as find_device
from .measure import Timing

Value = str | int | float | None


@dataclass(frozen=True)
class Row:
    """One line; ``values`` by column."""

    name: str
    values: Mapping[str, Value]


@dataclass
class Report:
    """A benchmark's outcome.

    Attributes:
        name: the op.
        command: what was typed.
        device: a kernelforge device.
        notes: how it was measured.
        rows: the measurements.
    """

    name: str
    command: str
    device: str
    notes: list[str] = field(default_factory=list)
    rows: list[Row] = field(default_factory=list)
    environment: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.environment = self.environment or _environment(self.device)

    def columns(self) -> list[str]:
        return list(dict.fromkeys(column for row in self.rows for column in row.values))

    def write(self, directory: Path) -> tuple[Path, Path]:
        """``<op>-<device>.json`` and ``.md`` in ``directory``."""
        directory.mkdir(parents=True, exist_ok=True)
        stem = f"{self.name}-{self.device.replace(':', '-')}"
        data, page = directory / f"{stem}.json", directory / f"{stem}.md"
        data.write_text(json.dumps(asdict(self), indent=1) + "\n")
        page.write_text(self.markdown())
        return data, page

    def markdown(self) -> str:
        columns = self.columns()
        lines = [f"# {self.name} on {self.device}", "", f"`{self.command}`", ""]
        lines += [", ".join(f"{name} {value}" for name, value in self.environment.items()) + ".", ""]
        lines += [f"- {note}" for note in self.notes] + [""]
        lines += ["| | " + " | ".join(columns) + " |", "|---|" + "---:|" * len(columns)]
        for row in self.rows:
            lines.append(f"| {row.name} | " + " | ".join(show(row.values.get(c)) for c in columns) + " |")
        return "\n".join(lines) + "\n"


def replays(taken: Mapping[str, Timing], ours: str = "kernelforge") -> dict[str, Value]:
    """Columns of what calls take as CUDA graphs: ours, and how many times as long the others; none on other devices."""
    least = taken[ours].replay
    if least is None:
        return {}
    columns: dict[str, Value] = {"graph ms": least * 1e3}
    for name, timing in taken.items():
        if name != ours and timing.replay is not None:
            columns[f"graph x {name}"] = timing.replay / least
    return columns


def show(value: Value) -> str:
    """A value with as many digits as it deserves."""
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"
    return str(value)


def _environment(device: str) -> dict[str, str]:
    return {
        "date": datetime.date.today().isoformat(),
        **_commit(),
        **(_gpu() if device == "cuda" else {}),
        "processor": f"{_processor()} ({find_device('cpu')[1].detail})",
        "threads": str(torch.get_num_threads()),
        "processors": str(os.cpu_count()),
        "python": platform.python_version(),
        **{package: version(package) for package in ("kernelforge", "torch", "tilelang")},
    }


def _commit() -> dict[str, str]:
    """The commit that is measured, where the package is run from its repository."""
    root = Path(__file__).parents[3]
    if not (root / ".git").exists():
        return {}
    git = functools.partial(subprocess.run, cwd=root, capture_output=True, text=True, timeout=60, check=True)
    try:
        head = git(["git", "rev-parse", "--short", "HEAD"]).stdout.strip()
        changed = git(["git", "status", "--porcelain", "--", "src", "backends", "csrc"]).stdout
    except (OSError, subprocess.SubprocessError):
        return {}
    return {"commit": head + (" with changes" if changed else "")}


def _gpu() -> dict[str, str]:
    """The GPU, its driver, and the CUDA that torch was built with."""
    found = {"GPU": torch.cuda.get_device_name(), "CUDA of torch": str(torch.version.cuda)}
    try:
        asked = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        said = subprocess.run(asked, capture_output=True, text=True, timeout=60, check=True).stdout
        found["driver"] = said.splitlines()[torch.cuda.current_device()].strip()
    except (OSError, subprocess.SubprocessError, IndexError):
        pass
    return found


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def as_dict(report: Report) -> dict[str, Any]:
    """Plain data, as :meth:`Report.write` stores it."""
    return asdict(report)
