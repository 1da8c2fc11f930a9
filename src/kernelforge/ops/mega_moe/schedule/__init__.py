"""When what is computed and sent: the schedules, a model of their times, a chart."""

from .model import MoeSchedule, moe_schedule
from .program import SCHEDULES, Step, program
from .rates import Rates, dispatch_row, result_row
from .simulate import Loads, Span, Timeline, simulate

__all__ = [
    "SCHEDULES",
    "Loads",
    "MoeSchedule",
    "Rates",
    "Span",
    "Step",
    "Timeline",
    "dispatch_row",
    "moe_schedule",
    "program",
    "result_row",
    "simulate",
]
