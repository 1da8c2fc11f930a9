"""Grouped output projection: heads in groups, each group to a rank, the ranks together to the hidden size."""
