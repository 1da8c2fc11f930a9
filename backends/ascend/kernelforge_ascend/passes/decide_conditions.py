"""Conditions that always hold, or never, are decided before TileLang puts tasks in order."""

from __future__ import annotations

from typing import Any

import tilelang
from tilelang import tvm


def decide_conditions(function: Any) -> Any:
    """TileLang's simplifier, with z3, on the finished program.

    A task under a condition that always holds costs the scheduler many questions. TileLang simplifies too, a dozen
    times; only here z3 proves anything, so there it is not asked (``proving_passes``).
    """
    module = tilelang.transform.Simplify()(tvm.IRModule({"main": function}))
    return module["main"]
