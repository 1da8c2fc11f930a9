"""kernelforge list"""

from __future__ import annotations

import click


@click.command("list")
def command() -> None:
    """The ops, their modes and formats, and the devices that each runs on here."""
    from rich.markup import escape

    from .. import backends
    from ..backends import CapabilityError
    from ..ops.spec import specs
    from .terminal import console, table

    out = console()
    found = backends.backends()
    for op in specs().values():
        made = table(f"{op.name}", "backend", "device", "modes", "runs here", "detail")
        for backend in found.values():
            try:
                backend.capabilities.require(op.name, op.needs, backend.name)
            except CapabilityError as error:
                made.add_row(backend.name, "", "", "[red]no[/]", escape(str(error)))
                continue
            for device in backend.devices():
                runs = "[green]yes[/]" if device.available else "[yellow]no[/]"
                made.add_row(backend.name, device.name, ", ".join(op.modes), runs, escape(device.detail))
        functions = ", ".join(f"kf.{name}" for name in op.functions)
        out.print(made)
        out.print(f"  {op.summary}\n  call: [bold]{functions}[/]", highlight=False)
        if op.variants:
            out.print(f"  formats: {', '.join(op.variants)}", highlight=False)
        out.print()
    for plug_in in backends.broken():
        out.print(f"[red]backend {plug_in.name} does not load[/]; see kernelforge doctor")
