"""Mixture of experts: dispatch plan, expert feed-forward, combine."""
