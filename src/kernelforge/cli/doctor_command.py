"""kernelforge doctor"""

from __future__ import annotations

import click


@click.command("doctor")
def command() -> None:
    """What is installed here, which devices can run, and why others cannot.

    Ends with exit code 1 when a plug-in does not load, no device can run, or the cache cannot be written.
    """
    from rich.markup import escape

    from .. import backends, contract
    from ..runtime import cache
    from .terminal import NO, YES, console, table

    out = console()
    problems = []

    made = table("environment", "what", "value")
    for name, value in _environment().items():
        made.add_row(name, escape(value))
    made.add_row("numerics contract", f"version {contract.VERSION}")
    out.print(made, "")

    made = table("devices", "backend", "device", "runs here", "detail")
    runs = False
    for backend in backends.backends().values():
        for device in backend.devices():
            runs |= device.available
            made.add_row(backend.name, device.name, YES if device.available else NO, escape(device.detail))
    out.print(made, "")
    if not runs:
        problems.append("no device can run: see the table of devices for what each needs")

    made = table("backends", "backend", "version", "takes whole", "claims")
    for backend in backends.backends().values():
        whole = ", ".join(sorted(backend.composites)) or "nothing: every composite is lowered"
        made.add_row(backend.name, backend.version, whole, ", ".join(sorted(backend.capabilities.features)))
    out.print(made, "")

    made = table("tools", "backend", "tool", "found", "detail")
    for backend in backends.backends().values():
        for tool in backend.tools():
            made.add_row(backend.name, tool.name, YES if tool.found else NO, escape(tool.detail))
    out.print(made, "")

    for plug_in in backends.broken():
        problems.append(f"backend {plug_in.name!r} ({plug_in.value}) does not load: {plug_in.reason}")

    state = cache.state()
    made = table("kernel cache", "what", "value")
    made.add_row("directory", escape(str(state.root)))
    made.add_row("kernels", f"{state.entries}, {state.nbytes / 1e6:.1f} MB")
    made.add_row("writable", YES if state.problem is None else f"{NO}: {escape(state.problem)}")
    out.print(made, "")
    if state.problem is not None:
        problems.append(f"kernel cache {state.root}: {state.problem}; kernels are compiled anew by every process")

    for problem in problems:
        out.print(f"[red]problem:[/] {escape(problem)}", highlight=False)
    if problems:
        raise SystemExit(1)
    out.print("[green]no problems found[/]")


def _environment() -> dict[str, str]:
    import os
    import platform
    from importlib.metadata import PackageNotFoundError, version

    found = {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processors": str(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()),
    }
    for package in ("kernelforge", "torch", "tilelang", "numpy", "z3-solver", "torch_npu"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found
