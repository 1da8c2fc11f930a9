"""A chart of what happens when."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from .simulate import Timeline

COLOURS = {"dispatch": "#4477aa", "linear1": "#228833", "linear2": "#66ccaa", "give_back": "#ee6677"}
LABELS = {"dispatch": "tokens out", "linear1": "linear 1", "linear2": "linear 2", "give_back": "results back"}


class ChartUnavailable(RuntimeError):
    """matplotlib is not installed."""


def draw(timelines: Mapping[str, Timeline], path: Path, title: str = "", rank: int = 0) -> None:
    """Save a Gantt chart, one row of compute and link for each timeline, all on one axis.

    Args:
        timelines: by name, from top to bottom.
        path: where to; its ending says the format (``.svg``, ``.png``, ``.pdf``).
        title: above the chart.
        rank: whose lanes are drawn.

    Raises:
        ChartUnavailable: matplotlib is missing; ``pip install 'kernelforge[docs]'`` brings it.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
        from matplotlib.patches import Patch
    except ImportError as error:
        raise ChartUnavailable("a chart needs matplotlib: pip install 'kernelforge[docs]'") from error
    figure = Figure(figsize=(10, 0.9 * len(timelines) + 1.4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    lanes: list[str] = []
    for name, timeline in timelines.items():
        for lane in ("compute", "link"):
            place = len(lanes)
            lanes.append(f"{name}: {lane}")
            for span in timeline.spans:
                if (span.lane, span.rank) == (lane, rank) and span.end > span.start:
                    axes.broken_barh(
                        [(1e3 * span.start, 1e3 * (span.end - span.start))],
                        (place - 0.4, 0.8),
                        facecolor=COLOURS[span.action],
                        edgecolor="white",
                        linewidth=0.4,
                    )
        axes.plot([1e3 * timeline.seconds] * 2, [len(lanes) - 2.5, len(lanes) - 0.5], color="black", linewidth=1)
        axes.text(
            1e3 * timeline.seconds, len(lanes) - 1.5, f" {1e3 * timeline.seconds:.3g} ms", va="center", fontsize=8
        )
    axes.set_yticks(range(len(lanes)), lanes)
    axes.invert_yaxis()
    axes.set_xlim(0, 1.1e3 * max(timeline.seconds for timeline in timelines.values()))
    axes.set_xlabel("ms")
    axes.set_title(title, fontsize=10)
    axes.legend(
        handles=[Patch(color=colour, label=LABELS[action]) for action, colour in COLOURS.items()],
        loc="lower right",
        fontsize=8,
    )
    figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)
