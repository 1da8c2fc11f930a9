"""Runs prepared scenarios on instrumented executors; started under a sanitizer by ``test_sanitizers.py``.

Loads neither torch nor TileLang: their threads and allocators are not instrumented.
"""

from __future__ import annotations

import importlib.util
import json
import os
import sys
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

LANDINGS = ("late", "early", "random")


def arrays(folder: Path, scenario: dict[str, Any]) -> dict[str, np.ndarray]:
    """Every array in an allocation of its own and of its size, so that a sanitizer sees its ends."""
    return {name: np.load(folder / f"{name}.npy") for name in scenario["arrays"]}


def differing(folder: Path, scenario: dict[str, Any], found: dict[str, np.ndarray]) -> list[str]:
    """Names of outputs whose bits are not the expected ones."""
    wanted = {name: np.load(folder / f"{name}.expected.npy") for name in scenario["outputs"]}
    return [
        name for name, want in wanted.items() if not np.array_equal(want.view(np.uint8), found[name].view(np.uint8))
    ]


def attempts(
    folder: Path, scenario: dict[str, Any], launch: Callable[[dict[str, np.ndarray], str, bool], None]
) -> None:
    """Every landing, with and without the checkers: the expected bits, or the expected fault."""
    wanted = scenario.get("fault")
    for landing, check in product(LANDINGS, scenario["checks"]):
        label = f"{folder.name} {landing}{' checked' if check else ''}"
        values = arrays(folder, scenario)
        try:
            launch(values, landing, check)
        except RuntimeError as fault:
            if wanted is None or wanted not in str(fault):
                raise
        else:
            if wanted is not None:
                raise SystemExit(f"{label}: no fault that says {wanted!r}")
            if wrong := differing(folder, scenario, values):
                raise SystemExit(f"{label}: {', '.join(wrong)} do not have the expected bits")
        print(label, flush=True)


def run_cuda(module: str, folders: list[Path]) -> None:
    name = "kernelforge_cuda._virtual"
    specification = importlib.util.spec_from_file_location(name, module)
    if specification is None or specification.loader is None:
        raise SystemExit(f"{module} is no module")
    sys.modules[name] = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(sys.modules[name])
    from kernelforge_cuda.virtual.launch import Schedule, VirtualKernel

    for folder in folders:
        scenario = json.loads((folder / "scenario.json").read_text())
        kernel = VirtualKernel((folder / "kernel.ptx").read_text(), scenario["info"])

        def launch(
            values: dict[str, np.ndarray], landing: str, check: bool, kernel: Any = kernel, scenario: Any = scenario
        ) -> None:
            schedule = Schedule(seed=3, landing=landing, preempt=0.03)
            kernel({**values, **scenario["scalars"]}, schedule=schedule, check=check, threads=2)

        attempts(folder, scenario, launch)


def run_ascend(sanitize: str, folders: list[Path]) -> None:
    from kernelforge_ascend import virtual

    for folder in folders:
        scenario = json.loads((folder / "scenario.json").read_text())

        def launch(
            values: dict[str, np.ndarray], landing: str, check: bool, folder: Path = folder, scenario: Any = scenario
        ) -> None:
            library = folder / sanitize / f"{virtual.CHECKED_STEM if check else virtual.STEM}.so"
            schedule = virtual.Schedule(landing, seed=3, check=check, threads=2)
            scratch = {name: np.empty(size, np.uint8) for name, size in scenario["workspaces"].items()}
            known = {**values, **scratch, **scenario["scalars"]}
            arguments = [known[name] for name in scenario["parameters"]]
            virtual.launch(
                library, arguments, scenario["blocks"], schedule, workspaces=tuple(scratch), sanitize=sanitize
            )

        attempts(folder, scenario, launch)


def main() -> None:
    executor, how, *folders = sys.argv[1:]
    os.environ.pop("LD_PRELOAD", None)  # not for what this process starts
    {"cuda": run_cuda, "ascend": run_ascend}[executor](how, [Path(folder) for folder in folders])


if __name__ == "__main__":
    main()
