"""Compressed sparse and heavily compressed attention: the window, compressed entries and a sink."""
