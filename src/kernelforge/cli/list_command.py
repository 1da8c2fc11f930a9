"""kernelforge list"""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ..backends import Backend, Device
    from ..ops.spec import OpSpec


@click.command("list")
def command() -> None:
    """The ops, their modes and formats, and the devices that each runs on here."""
    from rich.markup import escape

    from .. import backends
    from ..ops.spec import specs
    from .terminal import NO, YES, console, table

    out = console()
    devices = [(backend, device) for backend in backends.backends().values() for device in backend.devices()]

    made = table("numerics modes of each op, by device", "op", *(device.name for _, device in devices))
    for op in specs().values():
        made.add_row(op.name, *(_modes(op, backend, device) for backend, device in devices))
    out.print(made)
    out.print(
        "  exact: the same bits everywhere. native: the device's fastest engines, checked by tolerance. "
        "(in brackets): can be compiled for, but no such device is here.\n",
        highlight=False,
    )

    made = table("ops", "op", "what it computes", "call", "formats")
    for op in specs().values():
        calls = "\n".join(f"kf.{name}" for name in op.functions)
        made.add_row(op.name, escape(op.summary), calls, escape(", ".join(op.variants)))
        made.add_section()
    out.print(made, "")

    made = table("devices", "device", "runs here", "detail")
    for _, device in devices:
        made.add_row(device.name, YES if device.available else NO, escape(device.detail))
    out.print(made)
    for name, reason in _refusals(list(specs().values()), [backend for backend, _ in devices]):
        out.print(f"  [red]{name}:[/] {escape(reason)}", highlight=False)
    for plug_in in backends.broken():
        out.print(f"[red]backend {plug_in.name} does not load[/]; see kernelforge doctor")


def _modes(op: OpSpec, backend: Backend, device: Device) -> str:
    """The op's modes on a device, as a cell of the table."""
    if _refusal(op, backend) is not None:
        return "[red]cannot[/]"
    modes = ", ".join(op.modes)
    return f"[green]{modes}[/]" if device.available else f"[yellow]({modes})[/]"


def _refusal(op: OpSpec, backend: Backend) -> str | None:
    """Why a backend cannot have the op, None where it can."""
    from ..backends import CapabilityError

    try:
        backend.capabilities.require(op.name, op.needs, backend.name)
    except CapabilityError as error:
        return str(error)
    return None


def _refusals(ops: Sequence[OpSpec], backends: Sequence[Backend]) -> dict[tuple[str, str], None]:
    """Every (op, reason), once."""
    found = ((op.name, _refusal(op, backend)) for op in ops for backend in backends)
    return dict.fromkeys((name, reason) for name, reason in found if reason is not None)
