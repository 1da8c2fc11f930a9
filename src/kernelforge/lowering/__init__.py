"""The portable subset, its verifier, and passes that more than one backend uses. Importing it imports TileLang."""

from .artifact_lint import ForbiddenArithmetic
from .composites import Composite, composite_of, composites_in, lower_composites, take_composites
from .lower import Lowered, lower, trace
from .pinned_fp32 import pin_fp32
from .rounded_dots import lower_rounded_dots, rounds_dots
from .verify import NotPortable, verify

__all__ = [
    "Composite",
    "ForbiddenArithmetic",
    "Lowered",
    "NotPortable",
    "composite_of",
    "composites_in",
    "lower",
    "lower_composites",
    "lower_rounded_dots",
    "pin_fp32",
    "rounds_dots",
    "take_composites",
    "trace",
    "verify",
]
