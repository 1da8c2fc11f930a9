"""kernelforge report"""

from __future__ import annotations

from pathlib import Path

import click


@click.group("report")
def command() -> None:
    """What models cost, computed from their shapes, and a layer of them measured."""


@command.command("longcontext")
@click.option("--context", type=click.IntRange(1024), default=1 << 20, show_default=True, help="Tokens of context.")
@click.option(
    "--storage",
    type=click.Choice(["float8_e4m3fn", "bfloat16"]),
    default="float8_e4m3fn",
    show_default=True,
    help="Of the channels that are not rotary.",
)
@click.option(
    "--plot", "picture", type=click.Path(dir_okay=False, path_type=Path), help="Write a plot here (.png, .svg)."
)
@click.option("--measure", is_flag=True, help="Time a decoded token in a CSA and an HCA layer over 16K to 1M tokens.")
@click.option("--threads", type=click.IntRange(min=1), help="CPU threads of --measure; by default torch's number.")
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("benchmarks/results"),
    show_default=True,
    help="Where the JSON and the Markdown page of --measure go.",
)
def longcontext(
    context: int, storage: str, picture: Path | None, measure: bool, threads: int | None, out: Path
) -> None:
    """Cache and arithmetic per token of DeepSeek-V4's attention beside DeepSeek-V3.2's, and the published shares.

    With --measure the whole decode chain runs on this machine's CPU, in V4-Flash's shapes, after synthetic contexts.
    """
    if measure:
        _measured(storage, picture, threads, out)
    else:
        _computed(context, storage, picture)


def _measured(storage: str, picture: Path | None, threads: int | None, out: Path) -> None:
    import torch

    from ..longcontext.measure import report
    from ..longcontext.plot import plot_measured
    from .terminal import console, progress, show_report

    if threads is not None:
        torch.set_num_threads(threads)
    typed = f"kernelforge report longcontext --measure --storage {storage}" + (
        f" --threads {threads}" if threads else ""
    )
    with progress() as bar:
        task = bar.add_task("longcontext", total=None)
        made = report(typed, storage=storage, observe=lambda what: bar.update(task, description=what))
    screen = console()
    show_report(screen, "a decoded token in one layer, ms", made)
    written = list(made.write(out))
    if picture is not None:
        plot_measured(made, picture)
        written.append(picture)
    screen.print(f"  written: {', '.join(map(str, written))}", highlight=False)


def _computed(context: int, storage: str, picture: Path | None) -> None:
    from ..longcontext.model import MODELS, V32
    from .terminal import console, table

    columns = ("cache, GiB", "bytes/token", "share", "published", "GFLOP/token", "share ", "published ")
    made = table(f"{context} tokens, {storage}", "model", *columns, right=columns)
    cache, work = V32.cache_bytes(context, storage), V32.operations(context)
    for model in MODELS:
        held, done = model.cache_bytes(context, storage), model.operations(context)
        made.add_row(
            model.name,
            f"{held / 2**30:.2f}",
            f"{held / context:.0f}",
            f"{held / cache:.1%}",
            f"{model.published_cache:.0%}",
            f"{done / 1e9:.0f}",
            f"{done / work:.1%}",
            f"{model.published_operations:.0%}",
        )
    out = console()
    out.print(made)
    out.print("  published: at 1M tokens, against V3.2. Operations of every precision count the same here.")
    if picture is not None:
        from ..longcontext.plot import plot

        plot(picture)
        out.print(f"  written: {picture}")
