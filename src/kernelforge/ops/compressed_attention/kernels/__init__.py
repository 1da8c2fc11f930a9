"""Kernels of the backward pass of CSA and HCA (contract C5, backward).

Rows are cut into int8 slices once (``cut_matrix``; a row's high slice, then its low one). Which rows of
``[kv, entries]`` a query's chunks hold is the caller's to list. For every chunk ``attention_products`` computes scores
and the gradients of the probabilities, ``attention_windows`` what a query's chunks say together, and from it the
windows of every chunk, along its entries and along the heads; ``query_gradient`` and ``entry_gradient`` multiply them
with the rows.
"""
