"""Errors that a user can act on are shown as one message; anything else keeps its traceback."""

from __future__ import annotations


def explain(error: Exception) -> str | None:
    """The message to show, or None for an error that is ours to debug."""
    from ..backends import CapabilityError, CompileFailed, CompilerMissing, DeviceUnavailable
    from ..demo.model import ModelMissing
    from ..ops.mega_moe.schedule.gantt import ChartUnavailable
    from ..runtime import CacheError

    environment = (CompilerMissing, DeviceUnavailable, CacheError, ModelMissing, ChartUnavailable)
    known = (CapabilityError, CompileFailed, LookupError, *environment)
    return str(error.args[0] if isinstance(error, LookupError) and error.args else error) if _is(error, known) else None


def _is(error: Exception, known: tuple[type[Exception], ...]) -> bool:
    # A KeyError or IndexError is a bug; a plain LookupError is raised with a message for people.
    return isinstance(error, known) and not isinstance(error, (KeyError, IndexError))
