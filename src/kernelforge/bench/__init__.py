"""Measuring: interleaved timings, the machine's roofline, peak memory, reports."""

from .measure import Timing, interleaved, peak_memory
from .report import Report, Row, replays
from .roofline import Roofline, measure_roofline, product_dtype, short_name

__all__ = [
    "Report",
    "Roofline",
    "Row",
    "Timing",
    "interleaved",
    "measure_roofline",
    "peak_memory",
    "product_dtype",
    "replays",
    "short_name",
]
