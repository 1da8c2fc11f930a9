"""kernelforge report"""

from __future__ import annotations

from pathlib import Path

import click


@click.group("report")
def command() -> None:
    """Tables that are computed rather than measured."""


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
def longcontext(context: int, storage: str, picture: Path | None) -> None:
    """Cache and arithmetic per token of DeepSeek-V4's attention beside DeepSeek-V3.2's, and the published shares."""
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
