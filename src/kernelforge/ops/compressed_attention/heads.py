"""Queries' heads in groups, as tiles hold them."""

from ...numerics.attention_gradient import GROUP


def group_rows(H: int) -> int:
    """Heads in a group: 64 by the contract, fewer where there are fewer heads; a multiple of 32."""
    return min(GROUP, (H + 31) // 32 * 32)


def groups_of(H: int) -> int:
    """Groups of heads."""
    return (H + group_rows(H) - 1) // group_rows(H)
