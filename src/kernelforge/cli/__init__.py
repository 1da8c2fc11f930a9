"""The ``kernelforge`` command. Every subcommand is a module here; what is heavy is imported when a command runs."""

from __future__ import annotations

import importlib
from typing import Any

import click

from .. import __version__

_COMMANDS = {
    "bench": "Measure an op against torch, in one run, beside the machine's roofline.",
    "cache": "Where compiled kernels are kept, and how to drop them.",
    "conform": "Run every case on every device and compare the bits with the reference.",
    "demo": "A sentence-embedding model with MXFP4 feed-forward layers, on every backend.",
    "doctor": "What is installed here, which devices can run, and why others cannot.",
    "inspect": "A kernel on its way to a backend: IR after each pass, generated source.",
    "list": "The ops, and where each runs.",
    "moe-plan": "Times of an expert-parallel layer on a given cluster, and the best wave count.",
    "report": "Tables that are computed: what long contexts cost.",
}
"""Name and short help, so that ``kernelforge --help`` imports none of them."""


class _Lazy(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        command: click.Command = importlib.import_module(f".{cmd_name.replace('-', '_')}_command", __name__).command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(sorted(_COMMANDS.items()))

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except Exception as error:
            from .errors import explain

            message = explain(error)
            if message is None:
                raise
            raise click.ClickException(message) from error


@click.group(cls=_Lazy, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="kernelforge")
def main() -> None:
    """Fused ops of DeepSeek-V4-class models: written once in TileLang, the same bits on every device."""
