"""What a decoded token costs in one layer, part by part, over contexts of different lengths."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from ..bench import Report, Row
from .chain import CSA, HCA, PARTS, Layer, Shape

CONTEXTS = tuple(1 << bits for bits in (14, 16, 18, 20))
GROUP = 4
"""Tokens that are decoded in a row in each context in turn; CSA completes an entry among them."""
GROUPS = 12


@dataclass
class Cost:
    """Seconds of one token, the mean of each group of tokens, by part."""

    context: int
    seconds: dict[str, list[float]] = field(default_factory=lambda: {part: [] for part in PARTS})

    def of(self, part: str) -> float:
        """The median group's seconds."""
        found = self.seconds[part]
        return statistics.median(found) if found else 0.0

    @property
    def total(self) -> float:
        return sum(self.of(part) for part in PARTS)


def decode_costs(
    shape: Shape,
    contexts: Sequence[int] = CONTEXTS,
    groups: int = GROUPS,
    storage: str = "bfloat16",
    device: str = "cpu",
    clock: Callable[[], float] = time.perf_counter,
) -> list[Cost]:
    """Decode tokens after synthetic contexts, the contexts in turn.

    Args:
        shape: of the layer.
        contexts: tokens before those that are measured.
        groups: how often each context's turn comes; the first, which compiles, is not counted.
        storage: of the cache, see :class:`kernelforge.cache.CompressedKV`.
        device: a torch device.
        clock: seconds; the device must be idle when it is read.
    """
    spare = (groups + 1) * GROUP
    layer = Layer(shape, max(contexts) + spare, device=device)
    caches = [layer.cache(1, context + spare, storage) for context in contexts]
    for cache, context in zip(caches, contexts, strict=True):
        layer.fill(cache, context)
    tokens = [layer.piece(1, 1) for _ in range(GROUP)]
    costs = [Cost(context) for context in contexts]
    for group in range(groups + 1):
        for cache, cost in zip(caches, costs, strict=True):
            spent = dict.fromkeys(PARTS, 0.0)
            for token in tokens:
                last = clock()

                def done(part: str) -> None:
                    nonlocal last
                    now = clock()
                    spent[part] += (now - last) / GROUP  # noqa: B023
                    last = now

                layer.feed(cache, token, done=done)
            if group:
                for part, seconds in spent.items():
                    cost.seconds[part].append(seconds)
    return costs


def slope(costs: Sequence[Cost], ratio: int) -> float:
    """Seconds that one more compressed entry adds to a token, between the two longest contexts."""
    *_, shorter, longer = sorted(costs, key=lambda cost: cost.context)
    return (longer.total - shorter.total) / ((longer.context - shorter.context) // ratio)


def constant(costs: Sequence[Cost], scan: str) -> tuple[float, float]:
    """The least and the most seconds, over contexts, of all parts but the one that scans compressed entries."""
    found = [cost.total - cost.of(scan) for cost in costs]
    return min(found), max(found)


SCANS = {CSA.name: "index and select", HCA.name: "attend"}
"""The part of each layer that meets every compressed entry."""


def report(
    command: str,
    device: str = "cpu",
    storage: str = "bfloat16",
    shapes: Sequence[Shape] = (CSA, HCA),
    contexts: Sequence[int] = CONTEXTS,
    groups: int = GROUPS,
    clock: Callable[[], float] = time.perf_counter,
    observe: Callable[[str], None] = lambda what: None,
) -> Report:
    """Rows of :func:`decode_costs` for DeepSeek-V4-Flash's layers, and their slopes as notes.

    ``observe`` is told which layer is measured.
    """
    made = Report("longcontext", command, device)
    made.notes += [
        "One decoded token in one layer of V4-Flash's shape, after a synthetic context: milliseconds of each part, "
        f"medians of {groups} groups of {GROUP} tokens, the contexts in turn.",
        f"{storage} storage; the output projection's weights are MXFP4. An HCA layer completes an entry every 128 "
        "tokens; medians leave those tokens out.",
    ]
    for shape in shapes:
        observe(f"{shape.name} layer after {min(contexts)} to {max(contexts)} tokens")
        costs = decode_costs(shape, contexts, groups, storage, device, clock)
        for cost in costs:
            values = {"ms": cost.total * 1e3} | {part: cost.of(part) * 1e3 for part in PARTS}
            made.rows.append(Row(f"{shape.name}, {cost.context} tokens", values))
        scan = SCANS[shape.name]
        least, most = constant(costs, scan)
        made.notes.append(
            f"{shape.name}: between the two longest contexts a compressed entry, {shape.ratio} tokens, adds "
            f'{slope(costs, shape.ratio) * 1e9:.1f} ns to a token; all parts but "{scan}", which alone meets every '
            f"entry, take {least * 1e3:.2f} to {most * 1e3:.2f} ms over all contexts."
        )
    return made
