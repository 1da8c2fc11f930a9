"""A kernel before it is compiled, and compiling it in this process."""

from __future__ import annotations

import json
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..backends import Backend

INFO = "launch.json"
SOURCE = "source.txt"


@dataclass(frozen=True)
class KernelSpec:
    """A kernel before it is compiled.

    Attributes:
        builder: ``"package.module:function"`` that traces it (imported only to compile).
        parameters: the builder's keyword arguments, sorted by name.
        needs: capabilities the backend must claim.
    """

    builder: str
    parameters: tuple[tuple[str, Any], ...]
    needs: frozenset[str] = frozenset()

    @classmethod
    def of(cls, builder: str, needs: frozenset[str] = frozenset(), **parameters: Any) -> KernelSpec:
        return cls(builder, tuple(sorted(parameters.items())), needs)

    @property
    def name(self) -> str:
        return self.builder.rpartition(":")[2]


_lowering = threading.Lock()
"""TileLang lowers one kernel at a time; the compilers behind it run side by side."""


def compile_kernel(spec: KernelSpec, backend: Backend, arch: str, directory: Path) -> None:
    """Compile a kernel in this process into an empty directory."""
    with _lowering:
        from .. import lowering  # imports TileLang

        lowered = lowering.lower(lowering.trace(spec.builder, dict(spec.parameters)), backend, arch)
    (directory / SOURCE).write_text(lowered.source)
    (directory / INFO).write_text(json.dumps(lowered.info.to_json(), indent=1))
    backend.build(lowered.source, lowered.info, arch, directory)
