"""Every op on every device, held to the NumPy references bit for bit."""

from .compare import Difference, compare, digest
from .devices import Chosen, choose
from .runner import CaseResult, Plan, Run, plan, run

__all__ = ["CaseResult", "Chosen", "Difference", "Plan", "Run", "choose", "compare", "digest", "plan", "run"]
