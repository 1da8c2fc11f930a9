"""kernelforge conform"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from rich.console import Console

    from ..conformance import Chosen, Run

_FILE = click.Path(dir_okay=False, path_type=Path)


@click.command("conform")
@click.option(
    "--backends",
    "--backend",
    "backend_names",
    help="Comma-separated backends (each its real device, if here, and its virtual one) or devices. Default: all.",
)
@click.option("--ops", "op_names", help="Comma-separated ops. Default: all.")
@click.option("--seed", default=0, show_default=True, help="Seed of the random data.")
@click.option("--size", type=click.Choice(["ci", "full"]), default="ci", show_default=True, help="How many cases.")
@click.option("--junit", type=_FILE, help="Write a JUnit XML report.")
@click.option("--html", type=_FILE, help="Write an HTML report.")
@click.option("--digests", "digest_file", type=_FILE, help="Write the digests of all output bits as JSON.")
@click.option(
    "--against",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Compare with the digests another machine wrote.",
)
def command(
    backend_names: str | None,
    op_names: str | None,
    seed: int,
    size: str,
    junit: Path | None,
    html: Path | None,
    digest_file: Path | None,
    against: Path | None,
) -> None:
    """Run every case on every device and compare the bits with the NumPy reference.

    Ends with exit code 1 when any bit differs, a case fails, or a backend that was named cannot run here at all.
    """
    from ..conformance import choose, plan, run
    from ..ops.spec import select
    from .terminal import console, progress

    chosen = choose(_split(backend_names))
    out = console()
    _say_absent(out, chosen)
    planned = plan(select(_split(op_names)), chosen.devices, seed, size)
    with progress() as bar:
        task = bar.add_task("conformance", total=len(planned))
        outcome = run(
            planned,
            seed,
            size,
            lambda r: bar.update(task, advance=1, description=f"{r.device} {r.case}"),
        )
    _show(out, outcome)
    disagreements = _report(outcome, junit, html, digest_file, against)
    for line in disagreements:
        out.print(f"[red]{line}[/]", highlight=False)
    if outcome.failures or chosen.missing or disagreements or not planned:
        raise SystemExit(1)


def _split(names: str | None) -> list[str] | None:
    return None if names is None else [name.strip() for name in names.split(",") if name.strip()]


def _say_absent(out: Console, chosen: Chosen) -> None:
    from rich.markup import escape

    for device, reason in chosen.absent:
        out.print(f"[yellow]not here:[/] {device}: {escape(reason)}", highlight=False)
    for name, reason in chosen.missing:
        out.print(f"[red]cannot run:[/] {name}: {escape(reason)}", highlight=False)


def _show(out: Console, outcome: Run) -> None:
    from rich.markup import escape

    from .terminal import table

    made = table(
        f"conformance, contract {outcome.contract}, cases {outcome.size}, seed {outcome.seed}",
        *("op", "device", "cases", "equal", "seconds", "SHA-256 of all output bits"),
        right=("cases", "equal", "seconds"),
    )
    for op in outcome.ops:
        made.add_row(op, "NumPy reference", "", "", "", outcome.expected_digest(op)[:32])
        for device in outcome.devices:
            results = outcome.of(device, op)
            equal = sum(result.equal for result in results)
            colour = "green" if equal == len(results) else "red"
            seconds = sum(result.seconds for result in results)
            digest = outcome.device_digest(device, op)[:32]
            made.add_row("", device, str(len(results)), f"[{colour}]{equal}[/]", f"{seconds:.1f}", digest)
        made.add_section()
    out.print(made)
    for result in outcome.failures[:20]:
        out.print(f"[red]differs[/] {result.op} {result.case} on {result.device}", highlight=False)
        for problem in result.problems:
            out.print(f"  {escape(problem[:2000])}", highlight=False)
    if len(outcome.failures) > 20:
        out.print(f"and {len(outcome.failures) - 20} more")
    if outcome.results and not outcome.failures:
        out.print(f"[green]all {len(outcome.results)} results have the reference's bits[/], {outcome.seconds:.1f} s")


def _report(
    outcome: Run, junit: Path | None, html: Path | None, digest_file: Path | None, against: Path | None
) -> list[str]:
    import json

    from ..conformance import reports

    if junit is not None:
        reports.write_junit(outcome, junit)
    if html is not None:
        reports.write_html(outcome, html)
    if digest_file is not None:
        reports.write_digests(outcome, digest_file)
    if against is None:
        return []
    try:
        return reports.against(outcome, json.loads(against.read_text()))
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise click.BadParameter(f"{against} is not a digest file: {error}", param_hint="--against") from error
