"""kernelforge moe-plan"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

MODELS = {
    "v4-flash": {"hidden": 4096, "inter": 2048, "experts": 256, "topk": 6},
    "v4-pro": {"hidden": 7168, "inter": 3072, "experts": 384, "topk": 6},
}


@click.command("moe-plan")
@click.option("--model", type=click.Choice(sorted(MODELS)), help="Sizes of a DeepSeek-V4 layer.")
@click.option("--hidden", type=int, help="Model width.")
@click.option("--inter", type=int, help="An expert's width.")
@click.option("--experts", type=int, help="Routed experts in all.")
@click.option("--topk", type=int, help="Experts per token.")
@click.option("--tokens", type=int, required=True, help="Tokens on each rank.")
@click.option("--ranks", type=int, required=True, help="Expert-parallel ranks.")
@click.option("--tflops", type=float, required=True, help="TFLOP/s that a rank's products reach.")
@click.option("--bandwidth", type=float, required=True, help="GB/s out of a rank.")
@click.option("--latency", type=float, default=5.0, show_default=True, help="Microseconds of a message.")
@click.option("--memory", type=float, help="GB/s at which a rank reads weights; by default no limit.")
@click.option("--waves", type=int, help="This wave count instead of the best.")
@click.option("--chart", type=click.Path(dir_okay=False, path_type=Path), help="Save a Gantt chart (.svg, .png, .pdf).")
def command(
    model: str | None,
    hidden: int | None,
    inter: int | None,
    experts: int | None,
    topk: int | None,
    tokens: int,
    ranks: int,
    tflops: float,
    bandwidth: float,
    latency: float,
    memory: float | None,
    waves: int | None,
    chart: Path | None,
) -> None:
    """Plan an expert-parallel layer: times of the three schedules, the best wave count, a Gantt chart."""
    from ..ops.mega_moe.schedule import moe_schedule
    from ..ops.mega_moe.schedule.gantt import draw
    from .terminal import console, table

    sizes: dict[str, Any] = dict(MODELS[model]) if model else {}
    sizes |= {
        name: value
        for name, value in (("hidden", hidden), ("inter", inter), ("experts", experts), ("topk", topk))
        if value is not None
    }
    missing = [f"--{name}" for name in ("hidden", "inter", "experts", "topk") if name not in sizes]
    if missing:
        raise click.UsageError(f"give --model, or {', '.join(missing)}")
    try:
        plan = moe_schedule(
            tokens,
            ranks=ranks,
            flops=1e12 * tflops,
            bandwidth=1e9 * bandwidth,
            latency=1e-6 * latency,
            memory_bandwidth=float("inf") if memory is None else 1e9 * memory,
            waves=waves,
            **sizes,
        )
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    screen = console()
    columns = ("waves", "time us", "x serial", "compute busy %", "link busy %")
    made = table(f"{tokens} tokens on each of {ranks} ranks", "schedule", *columns, right=columns)
    for schedule, timeline in plan.timelines.items():
        busy = (
            100 * timeline.busy(lane) / timeline.seconds if timeline.seconds else 0.0 for lane in ("compute", "link")
        )
        made.add_row(
            schedule,
            str(1 if schedule == "serial" else plan.waves),
            f"{1e6 * timeline.seconds:.1f}",
            f"{plan.seconds('serial') / timeline.seconds:.2f}" if timeline.seconds else "",
            *(f"{share:.0f}" for share in busy),
        )
    screen.print(made)
    screen.print(f"  no overlap can gain more than {plan.bound:.2f}x over serial", highlight=False)
    tried = ", ".join(f"{count}: {1e6 * seconds:.1f}" for count, seconds in plan.by_waves.items())
    screen.print(f"  us by wave count: {tried}", highlight=False)
    if chart is not None:
        draw(plan.timelines, chart, f"{tokens} tokens on each of {ranks} ranks, {plan.waves} waves")
        screen.print(f"  written: {chart}", highlight=False)
