"""kernelforge cache"""

from __future__ import annotations

import click


@click.group("cache")
def command() -> None:
    """Where compiled kernels are kept, and how to drop them."""


@command.command("path")
def path() -> None:
    """Print the cache directory: $KERNELFORGE_CACHE, or a folder in the user's cache."""
    from ..runtime import default_root

    click.echo(default_root())


@command.command("list")
def list_entries() -> None:
    """The compiled kernels, their size and age."""
    import time

    from ..runtime import cache
    from .terminal import console, table

    made = table(str(cache.default_root()), "kernel", "kB", "days", right=("kB", "days"))
    for entry in cache.entries():
        made.add_row(entry.name, f"{entry.nbytes / 1e3:.0f}", f"{(time.time() - entry.modified) / 86400:.1f}")
    console().print(made)


@command.command("clear")
def clear() -> None:
    """Remove every compiled kernel; each is compiled again when it is next used."""
    from ..runtime import cache

    removed = cache.clear()
    click.echo(f"removed {removed} kernels from {cache.default_root()}")
