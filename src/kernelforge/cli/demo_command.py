"""kernelforge demo"""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from rich.console import Console

    from ..demo.run import Outcome


@click.command("demo")
@click.option("--backends", "names", help="Comma-separated backends or devices. Default: all.")
def command(names: str | None) -> None:
    """A sentence-embedding model with MXFP4 feed-forward layers, on every backend.

    Ends with exit code 1 when a device's bits are not the reference's.
    """
    from ..demo.run import run
    from .terminal import console, progress

    with progress() as bar:
        task = bar.add_task("starting", total=None)
        outcome = run(
            None if names is None else [name.strip() for name in names.split(",")],
            lambda what: bar.update(task, description=what),
        )
    out = console()
    _show(out, outcome)
    if not outcome.all_equal or outcome.chosen.missing:
        raise SystemExit(1)


def _show(out: Console, outcome: Outcome) -> None:
    from rich.markup import escape

    from ..demo.run import SLICE
    from .terminal import table

    _, N, K = outcome.shape
    out.print()
    out.print(f"[bold]{outcome.model}[/]: {outcome.sentences} sentences, {outcome.tokens} tokens", highlight=False)
    out.print(
        f"feed-forward weights: {outcome.float_bytes / 1e6:.1f} MB in float32, {outcome.packed_bytes / 1e6:.1f} MB in "
        f"MXFP4 ({outcome.float_bytes / outcome.packed_bytes:.1f}x smaller)\n",
        highlight=False,
    )

    made = table(
        f"one kernel, every device: the up projection of {SLICE} tokens (N={N}, K={K}), bits of the bf16 output",
        *("mode", "device", "how", "SHA-256", "equal to reference"),
    )
    for mode in dict.fromkeys(result.mode for result in outcome.devices):
        for result in [r for r in outcome.devices if r.mode == mode]:
            how = "lowered, executed on this host" if result.virtual else "run"
            verdict = "[green]yes, every bit[/]" if result.equal else "[red]no[/]"
            shown = result.digest[:32] if not result.error else escape(result.error[:160])
            made.add_row(mode, result.device, how if not result.error else "[red]failed[/]", shown, verdict)
            mode = ""
        made.add_section()
    out.print(made)
    for device, reason in outcome.chosen.absent:
        out.print(f"  [yellow]not here:[/] {device}: {escape(reason)}", highlight=False)
    for device, reason in outcome.chosen.missing:
        out.print(f"  [red]cannot run:[/] {device}: {escape(reason)}", highlight=False)
    out.print()

    times_shown = ("kernelforge ms", "torch bf16 ms", "torch dequantize + matmul ms", "x bf16", "x dequantize + matmul")
    title = f"time on the CPU: both products of the layer (N={N}, K={K} and back), medians of one run"
    made = table(title, "tokens", "mode", *times_shown, right=times_shown)
    for times in zip(*(mode_result.times for mode_result in outcome.modes), strict=True):
        first = f"{times[0].tokens}, {times[0].batch}"
        for mode_result, taken in zip(outcome.modes, times, strict=True):
            shown_times = (taken.kernelforge, taken.torch, taken.dequantize)
            ratios = (taken.torch / taken.kernelforge, taken.dequantize / taken.kernelforge)
            made.add_row(first, mode_result.mode, *(f"{t:.3f}" for t in shown_times), *(f"{r:.2f}" for r in ratios))
            first = ""
        made.add_section()
    out.print(made)
    out.print(
        "  x: torch's time over kernelforge's. torch bf16: weights dequantized beforehand, "
        f"{outcome.float_bytes / 2 / outcome.packed_bytes:.1f} times the memory.\n",
        highlight=False,
    )

    costs = ("error of the layer", "mean cosine", "least cosine", "same nearest sentence")
    made = table("what quantization costs: against the float32 model", "mode", *costs, right=costs)
    for mode_result in outcome.modes:
        made.add_row(
            mode_result.mode,
            f"{100 * mode_result.layer_error:.2f} %",
            f"{mode_result.mean_cosine:.5f}",
            f"{mode_result.least_cosine:.5f}",
            f"{mode_result.same_neighbour} of {outcome.sentences}",
        )
    out.print(made)
    if outcome.all_equal:
        devices = len(dict.fromkeys(result.device for result in outcome.devices))
        out.print(f"\n[green]the same bits on {devices} {'devices' if devices > 1 else 'device'}[/]")
