"""What an op tells the command line, the conformance suite and the benchmarks about itself.

Every folder of ``kernelforge.ops`` that holds a ``spec.py`` with a ``SPEC`` is an op; nothing else has to be told. A
spec is plain data, and everything heavy is named by ``"module:attribute"`` relative to the op's folder and imported
when it is used, so that ``kernelforge list`` stays quick.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import pkgutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from ..runtime import KernelSpec

PACKAGE = __name__.rpartition(".")[0]
Arrays = Mapping[str, NDArray[Any]]
"""Outputs by name: the bits that are compared, in a dtype NumPy has (16-bit floats as uint16 or float16)."""

SIZES = ("ci", "full")


@dataclass(frozen=True)
class Case:
    """One conformance case.

    Attributes:
        name: unique within the op, the same on every machine, e.g. ``"dense/e2m1/bfloat16/7x72x160/nan"``.
        expected: the NumPy reference's outputs.
        run: the op's outputs on a device, by the same names.
    """

    name: str
    expected: Callable[[], Arrays]
    run: Callable[[str], Arrays]


@dataclass(frozen=True)
class OpSpec:
    """An op as the tools see it.

    Attributes:
        name: the folder's name.
        summary: one line.
        functions: public functions in ``kernelforge``.
        needs: capabilities a backend must claim.
        modes: numerics modes the op has.
        variants: input formats, for people.
        cases: ``cases(seed, size) -> Iterator[Case]``; ``size`` is one of :data:`SIZES`.
        kernels: ``kernels(device) -> {variant: KernelSpec}``, representative kernels for ``kernelforge inspect``.
        benchmark: ``benchmark(options) -> Report`` (``kernelforge.bench``), or empty.
    """

    name: str
    summary: str
    functions: tuple[str, ...]
    needs: frozenset[str]
    modes: tuple[str, ...] = ("exact",)
    variants: tuple[str, ...] = ()
    cases: str = ""
    kernels: str = ""
    benchmark: str = ""

    def conformance_cases(self, seed: int, size: str) -> Iterator[Case]:
        """The op's conformance cases; the same for the same seed and size on every machine."""
        if size not in SIZES:
            raise ValueError(f"size: given {size!r}, wanted one of {SIZES}")
        return iter(self._resolve(self.cases)(seed, size)) if self.cases else iter(())

    def kernel_specs(self, device: str) -> Mapping[str, KernelSpec]:
        """Representative kernels by variant."""
        found: Mapping[str, KernelSpec] = self._resolve(self.kernels)(device) if self.kernels else {}
        return found

    def benchmark_function(self) -> Callable[..., Any] | None:
        """What ``kernelforge bench`` runs."""
        return self._resolve(self.benchmark) if self.benchmark else None

    def _resolve(self, reference: str) -> Any:
        module, _, attribute = reference.partition(":")
        return getattr(importlib.import_module(f"{PACKAGE}.{self.name}.{module}"), attribute)


@functools.cache
def specs() -> Mapping[str, OpSpec]:
    """Every op's spec by name, found by scanning the folders of ``kernelforge.ops``.

    Raises:
        TypeError: a ``spec.py`` without a ``SPEC`` named like its folder.
    """
    found = {}
    package = importlib.import_module(PACKAGE)
    for module in sorted(pkgutil.iter_modules(package.__path__), key=lambda m: m.name):
        if not module.ispkg or importlib.util.find_spec(f"{PACKAGE}.{module.name}.spec") is None:
            continue
        spec = getattr(importlib.import_module(f"{PACKAGE}.{module.name}.spec"), "SPEC", None)
        if not isinstance(spec, OpSpec) or spec.name != module.name:
            raise TypeError(f"{PACKAGE}.{module.name}.spec must define SPEC, an OpSpec named {module.name!r}")
        found[spec.name] = spec
    return found


def spec(name: str) -> OpSpec:
    """The spec of one op.

    Raises:
        LookupError: there is no such op; the message lists those there are.
    """
    try:
        return specs()[name]
    except KeyError:
        raise LookupError(f"op: given {name!r}, wanted one of {', '.join(specs())}") from None


def seeded(seed: int, *labels: str) -> np.random.Generator:
    """A generator that depends on nothing but ``seed`` and the case's labels, so cases can be run alone."""
    words = [seed, *(int.from_bytes(label.encode(), "little") for label in labels)]
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence(words)))


def select(names: Sequence[str] | None) -> list[OpSpec]:
    """The specs called ``names``, all of them when None."""
    return list(specs().values()) if names is None else [spec(name) for name in names]
