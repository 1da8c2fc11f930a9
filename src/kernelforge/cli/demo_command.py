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
            how = "compiled, run on a virtual device" if result.virtual else "compiled, run"
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

    _show_times(out, outcome)

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
    out.print()
    _show_verdict(out, outcome)


DEQUANTIZE = "dequantize + matmul"


def _kept(outcome: Outcome) -> str:
    return f"{outcome.torch_dtype} weights kept"


def _show_times(out: Console, outcome: Outcome) -> None:
    """What kernelforge and torch take, beside what they keep in memory."""
    from .terminal import table

    _, N, K = outcome.shape
    kept_as = _kept(outcome)
    numbers = ("weights, MB", "ms", f"x {DEQUANTIZE}", f"x {kept_as}")
    title = f"time on the CPU: both products of the layer (N={N}, K={K} and back), medians of one run"
    made = table(title, "tokens", "", *numbers, right=numbers)
    packed = outcome.layer_bytes / 1e6
    wide = packed * outcome.kept_bytes / outcome.packed_bytes
    for times in outcome.times:
        rows = [
            (f"kernelforge {mode}", packed, taken, f"{times.dequantize / taken:.1f}", f"{times.torch / taken:.2f}")
            for mode, taken in times.kernelforge.items()
        ]
        rows.append((f"torch {DEQUANTIZE}", packed, times.dequantize, "", ""))
        rows.append((f"torch {kept_as}", wide, times.torch, "", ""))
        first = f"{times.tokens}, {times.batch}"
        for who, kept, taken, *ratios in rows:
            made.add_row(first, who, f"{kept:.2f}", f"{taken:.3f}", *ratios)
            first = ""
        made.add_section()
    out.print(made)
    out.print(
        f"  {DEQUANTIZE}: what torch has to do with the same weights.\n"
        f"  {kept_as}: dequantized beforehand; a {outcome.torch_dtype} matmul at each call, torch's fastest here.\n"
        "  x: torch's time over kernelforge's; above 1, kernelforge is the faster one.\n",
        highlight=False,
    )


def _show_verdict(out: Console, outcome: Outcome) -> None:
    """What was seen: it follows from the tables."""
    if outcome.all_equal:
        count = len(dict.fromkeys(result.device for result in outcome.devices))
        devices = "1 device" if count == 1 else f"{count} devices"
        out.print(f"[green]the same bits on {devices}[/], equal to the reference", highlight=False)
    else:
        out.print("[red]not every device has the bits of the reference[/]")
    ratios = outcome.against_dequantize
    faster = f"{_span(ratios, 1)} times as fast as torch with the same weights"
    colour = "green" if min(ratios) > 1 else "yellow"
    out.print(f"[{colour}]{faster}[/] ({DEQUANTIZE}), over all modes and batches", highlight=False)
    memory = outcome.kept_bytes / outcome.packed_bytes
    beside = ", ".join(f"{result.mode} {_span(outcome.against_torch(result.mode), 2)}" for result in outcome.modes)
    out.print(
        f"{beside} times as fast as torch with {_kept(outcome)}, at 1/{memory:.1f} of their memory", highlight=False
    )


def _span(values: list[float], digits: int) -> str:
    low, high = f"{min(values):.{digits}f}", f"{max(values):.{digits}f}"
    return low if low == high else f"{low} to {high}"
