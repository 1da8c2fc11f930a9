"""The report as a picture."""

from __future__ import annotations

from pathlib import Path

from .model import CONTEXTS, MODELS


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
