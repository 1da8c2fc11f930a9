"""Console, tables and progress bars, the same in every command."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

if TYPE_CHECKING:
    from ..bench import Report

YES, NO = "[green]yes[/]", "[red]no[/]"


def console() -> Console:
    """Standard output; wide enough for digests when it is not a terminal."""
    plain = Console()
    return plain if plain.is_terminal else Console(width=120)


def progress() -> Progress:
    """A bar on standard error that leaves nothing behind, so that standard output can be piped."""
    return Progress(
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=Console(stderr=True),
        transient=True,
    )


def table(title: str, *columns: str, right: Iterable[str] = ()) -> Table:
    """An empty table; columns named in ``right`` hold numbers."""
    made = Table(title=title, title_justify="left", title_style="bold", header_style="bold cyan")
    for column in columns:
        made.add_column(column, justify="right" if column in right else "left", overflow="fold")
    return made


def show_report(screen: Console, title: str, report: Report) -> None:
    """A benchmark's rows as a table, and its notes."""
    from ..bench.report import show

    columns = report.columns()
    made = table(title, "", *columns, right=columns)
    for row in report.rows:
        made.add_row(row.name, *(show(row.values.get(column)) for column in columns))
    screen.print(made)
    for note in report.notes:
        screen.print(f"  {note}", highlight=False)
