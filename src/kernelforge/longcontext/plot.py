"""The report as a picture."""

from __future__ import annotations

from pathlib import Path

from ..bench import Report
from .measure import SCANS
from .model import CONTEXTS, MODELS


def plot_measured(report: Report, path: Path) -> None:
    """Write milliseconds per token over the context, in all and of the part that meets every entry.

    Args:
        report: of :func:`kernelforge.longcontext.measure.report`.
        path: the format follows from its suffix.

    Raises:
        ModuleNotFoundError: as in :func:`plot`.
    """
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams["svg.hashsalt"] = "kernelforge"
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(1, len(SCANS), figsize=(10, 4), layout="constrained", squeeze=False)
    for axes, (layer, scan) in zip(panels[0], SCANS.items(), strict=True):
        rows = [row for row in report.rows if row.name.startswith(f"{layer}, ")]
        contexts = [int(row.name.removeprefix(f"{layer}, ").removesuffix(" tokens")) for row in rows]
        total, scanned = ([float(row.values[column] or 0) for row in rows] for column in ("ms", scan))
        rest = [whole - part for whole, part in zip(total, scanned, strict=True)]
        for label, values in (("all", total), (scan, scanned), ("the rest", rest)):
            axes.plot(contexts, values, marker="o", label=label)
        axes.set_title(f"{layer} layer of V4-Flash on {report.device}")
        axes.set_xscale("log", base=2)
        axes.set_ylim(bottom=0)
        axes.set_xlabel("tokens of context")
        axes.set_ylabel("ms per decoded token")
        axes.grid(alpha=0.3)
        axes.legend()
    figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)
    pyplot.close(figure)


def plot(path: Path) -> None:
    """Write cache and operations per token over the context (format by the suffix).

    Raises:
        ModuleNotFoundError: matplotlib is not installed; it is in the ``docs`` extra.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(10, 4), layout="constrained")
    for model in MODELS:
        left.plot(CONTEXTS, [model.cache_bytes(n) / 2**30 for n in CONTEXTS], marker="o", label=model.name)
        right.plot(CONTEXTS, [model.operations(n) / 1e9 for n in CONTEXTS], marker="o", label=model.name)
    left.set_ylabel("cache of a sequence, GiB")
    right.set_ylabel("operations of a decoded token, 10^9")
    for axes in (left, right):
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        axes.set_xlabel("tokens of context")
        axes.grid(alpha=0.3)
        axes.legend()
    figure.savefig(path)
    pyplot.close(figure)
