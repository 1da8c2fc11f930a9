"""The contract's primitives as TileLang macros; importing this imports TileLang."""

from . import composite, elementary, exact_dot, mx_block, rounding, row_sum, scalar, sliced_dot

__all__ = ["composite", "elementary", "exact_dot", "mx_block", "rounding", "row_sum", "scalar", "sliced_dot"]
