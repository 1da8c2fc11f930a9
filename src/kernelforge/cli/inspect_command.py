"""kernelforge inspect"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from rich.console import Console

    from ..backends import Backend
    from ..lowering import Lowered


@click.command("inspect")
@click.argument("op")
@click.option("--backend", "-b", "backend_name", required=True, help="A backend, e.g. cpu, cuda, ascend.")
@click.option("--arch", help="One of the backend's architectures; by default the device's, else the first.")
@click.option("--variant", help="Which of the op's kernels; without it the first. An unknown name lists them.")
@click.option("--passes", "show_passes", is_flag=True, help="Print the IR after each pass.")
@click.option("--diff", "show_diff", is_flag=True, help="Print what each pass changed.")
@click.option("--source", "show_source", is_flag=True, help="Print the generated source.")
def command(
    op: str,
    backend_name: str,
    arch: str | None,
    variant: str | None,
    show_passes: bool,
    show_diff: bool,
    show_source: bool,
) -> None:
    """A kernel of OP on its way to a backend. Needs no device: only lowering is done."""
    from .. import backends
    from ..ops.spec import spec
    from .terminal import console, progress

    backend = backends.backend(backend_name.partition(":")[0])
    kernels = spec(op).kernel_specs(backend.name)
    variant = variant or next(iter(kernels), "")
    if variant not in kernels:
        raise click.BadParameter(f"{variant!r} is not one of {', '.join(kernels)}", param_hint="--variant")
    arch = _arch(backend, arch)
    kernel = kernels[variant]
    backend.capabilities.require(op, kernel.needs, backend.name)

    stages: list[tuple[str, Any]] = []
    held: dict[str, set[str]] = {}
    before_opening: set[str] = set()
    with progress() as bar:
        task = bar.add_task(f"lowering {op} {variant} for {backend.name} {arch}", total=None)
        from .. import lowering

        def observe(name: str, function: Any) -> None:
            if name == lowering.lower_composites.__name__:
                before_opening.update(held[stages[-1][0]])
            stages.append((name, function.script()))
            held[name] = {composite.name for composite in lowering.composites_in(function)}
            bar.update(task, description=f"lowering {op} {variant} for {backend.name} {arch}: {name}")

        portable = lowering.trace(kernel.builder, dict(kernel.parameters))
        lowered = lowering.lower(portable, backend, arch, observe)
    out = console()
    whole = {name: name in backend.composites - before_opening for name in held["portable"]}
    _summary(out, backend, arch, f"{op} ({variant})", dict(kernel.parameters), whole, stages, lowered)
    if show_passes or show_diff:
        _stages(out, stages, show_passes, show_diff)
    if show_source:
        from rich.syntax import Syntax

        out.rule("generated source")
        out.print(Syntax(lowered.source, "cpp", background_color="default", word_wrap=True))
    if not (show_passes or show_diff or show_source):
        out.print(
            "  --diff prints what each pass changed, --passes the whole IR after each, --source the generated code"
        )


def _arch(backend: Backend, given: str | None) -> str:
    from ..backends import DeviceUnavailable

    if given is not None:
        if given not in backend.archs():
            raise click.BadParameter(f"{given!r} is not one of {', '.join(backend.archs())}", param_hint="--arch")
        return given
    for device in backend.devices():
        if device.available:
            try:
                return backend.default_arch(device.name)
            except DeviceUnavailable:
                continue
    return backend.archs()[0]


def _summary(
    out: Console,
    backend: Backend,
    arch: str,
    name: str,
    parameters: dict[str, Any],
    composites: dict[str, bool],
    stages: list[tuple[str, Any]],
    lowered: Lowered,
) -> None:
    from rich.markup import escape

    from .terminal import table

    info = lowered.info
    made = table(f"{name} for {backend.name} {arch}", "what", "value")
    made.add_row("parameters", escape(", ".join(f"{name}={value}" for name, value in parameters.items())))
    for argument in info.arguments:
        made.add_row("argument", escape(f"{argument.name}: {argument.dtype}[{', '.join(map(str, argument.shape))}]"))
    made.add_row("grid", escape(" x ".join(info.grid)))
    made.add_row("threads", " x ".join(map(str, info.threads)))
    made.add_row("shared memory", f"{info.shared_bytes} bytes")
    for workspace in info.workspaces:
        made.add_row("workspace", escape(f"{workspace.name}: {workspace.dtype}{list(workspace.shape)}"))
    for composite, whole in sorted(composites.items()):
        made.add_row("composite", composite + (", taken whole" if whole else ""))
    made.add_row("source", f"{len(lowered.source.splitlines())} lines")
    out.print(made)

    steps = {step.__name__: (step.__doc__ or "").strip().splitlines()[0] for step in backend.passes(arch)}
    made = table("passes", "#", "pass", "what it does", "IR lines", right=("#", "IR lines"))
    for i, (step, script) in enumerate(stages):
        made.add_row(
            str(i), step, escape(steps.get(step, "the kernel as it was traced")), str(len(script.splitlines()))
        )
    out.print(made)


def _stages(out: Console, stages: list[tuple[str, Any]], full: bool, diff: bool) -> None:
    import difflib

    from rich.syntax import Syntax

    previous = ""
    for i, (name, script) in enumerate(stages):
        if full or i == 0:
            out.rule(f"{i}: {name}")
            out.print(Syntax(script, "python", background_color="default", word_wrap=True))
        if diff and i > 0:
            out.rule(f"{i}: {name}, changes")
            changes = difflib.unified_diff(previous.splitlines(), script.splitlines(), lineterm="", n=2)
            text = "\n".join(list(changes)[2:]) or "(no change)"
            out.print(Syntax(text, "diff", background_color="default", word_wrap=True))
        previous = script
