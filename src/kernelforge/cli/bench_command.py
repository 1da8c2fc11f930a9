"""kernelforge bench"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from rich.progress import TaskID


@click.command("bench")
@click.argument("op", required=False)
@click.option("--all", "every", is_flag=True, help="Every op that has a benchmark.")
@click.option("--device", default="cpu", show_default=True, help="A device, e.g. cpu, cuda, cuda:virtual.")
@click.option("--threads", type=click.IntRange(min=1), help="CPU threads; by default torch's number.")
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("benchmarks/results"),
    show_default=True,
    help="Where the JSON and the Markdown page go.",
)
def command(op: str | None, every: bool, device: str, threads: int | None, out: Path) -> None:
    """Measure OP against torch, in one run, beside the machine's measured roofline."""
    import torch

    from .. import backends
    from ..nn.benchmark import MODULES
    from ..ops.spec import spec, specs
    from .terminal import console, progress, show_report

    if (op is None) == (not every):
        raise click.UsageError("name one op, or give --all")
    chosen = [spec(op)] if op is not None else [s for s in specs().values() if s.benchmark]
    _, where = backends.device(device)
    executor = f"{device} executes on the host: these times are not the device's."
    if threads is not None:
        torch.set_num_threads(threads)
    screen = console()
    for one in chosen:
        function = one.benchmark_function()
        if function is None:
            raise click.UsageError(f"op {one.name} has no benchmark")
        typed = f"kernelforge bench {one.name} --device {device}" + (f" --threads {threads}" if threads else "")
        with progress() as bar:
            task = bar.add_task(one.name, total=None)

            def observe(what: str, t: TaskID = task) -> None:
                bar.update(t, description=what)

            report = function(device, typed, observe)
            if one.name in MODULES:
                report.rows += MODULES[one.name](device, observe)
        if where.virtual and executor not in report.notes:
            report.notes.insert(0, executor)
        show_report(screen, f"{one.name} on {device}", report)
        data, page = report.write(out)
        screen.print(f"  written: {data}, {page}", highlight=False)
