"""The interface every backend implements, in-tree or a vendor's."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from .capabilities import Capabilities
from .launch import LaunchInfo

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Device:
    """Where kernels of a backend run.

    Attributes:
        name: ``"cpu"``, ``"cuda"``, ``"cuda:virtual"`` ...; what a user passes as ``backend=``.
        available: whether it can run now.
        detail: what it is, or why it is not available and what to do about it.
        virtual: executed on the host; times are not the device's.
    """

    name: str
    available: bool
    detail: str
    virtual: bool = False


@dataclass(frozen=True)
class Tool:
    """A program or library a backend uses, for ``kernelforge doctor``."""

    name: str
    found: bool
    detail: str


class Pass(Protocol):
    """A compiler pass over TIR with a name and a docstring."""

    __name__: str
    __doc__: str | None

    def __call__(self, function: Any) -> Any:
        """Return the rewritten ``tvm.tirx.PrimFunc``."""


class Executable(Protocol):
    """A loaded kernel."""

    def __call__(self, *arguments: torch.Tensor) -> None:
        """Run on tensors in the order of the kernel's signature; outputs are written in place.

        Raises:
            TypeError, ValueError: tensors that :meth:`LaunchInfo.check` refuses.
        """


class Backend(ABC):
    """One compiler path and the devices it serves.

    A backend is found by the entry-point group ``kernelforge.backends``; the entry point names a subclass, which is
    constructed without arguments. Construction must be cheap and must not import TileLang.
    """

    name: str
    version: str
    tensor_device: str
    """Device type of the torch tensors its real device takes: ``"cpu"``, ``"cuda"``, ``"npu"``."""
    capabilities: Capabilities
    composites: frozenset[str] = frozenset()
    """Primitives of ``numerics`` that the backend takes whole, where operands and architecture allow it, instead of
    lowering their portable body."""
    proving_passes: frozenset[str] | None = None
    """Passes of TileLang's pipeline whose code z3's proofs decide; the others do without, faster. None: all."""

    @abstractmethod
    def devices(self) -> Sequence[Device]:
        """Its devices, the default one first."""

    @abstractmethod
    def tools(self) -> Sequence[Tool]:
        """The programs and libraries it uses."""

    @abstractmethod
    def default_arch(self, device: str) -> str:
        """The architecture that ``device`` runs, e.g. ``"sm_90a"``."""

    @abstractmethod
    def archs(self) -> Sequence[str]:
        """Architectures that can be compiled for."""

    @abstractmethod
    def target(self, arch: str) -> Mapping[str, Any]:
        """The TVM target as a dict."""

    @abstractmethod
    def passes(self, arch: str) -> Sequence[Pass]:
        """Portable TIR to what TileLang's pipeline for the target accepts, in order."""

    def pass_configs(self, arch: str, function: Any) -> Mapping[str, Any]:
        """TVM ``PassContext`` options under which TileLang lowers ``function``, the outcome of :meth:`passes`."""
        return {}

    def source(self, lowered: Any) -> str:
        """The source text of TileLang's ``CompiledArtifact``."""
        printed: str = lowered.kernel_source
        return printed

    def finish(self, lowered: Any, info: LaunchInfo) -> LaunchInfo:
        """Complete the launch information from TileLang's ``CompiledArtifact``."""
        return info

    @abstractmethod
    def build(self, source: str, info: LaunchInfo, arch: str, directory: Path) -> None:
        """Compile ``source`` into files in ``directory`` (private to the caller until it is published).

        Raises:
            CompilerMissing: the compiler is not installed; the message says how to get it.
            CompileFailed: the compiler's own words.
        """

    @abstractmethod
    def load(self, directory: Path, info: LaunchInfo, device: str) -> Executable:
        """Load what :meth:`build` made."""

    def tuning(self, op: str) -> Sequence[Mapping[str, Any]]:
        """Rows of the tuning table for ``op``, tried before the op's own defaults."""
        return ()

    def digest_roots(self) -> Sequence[Path]:
        """Files and folders whose content decides what :meth:`build` makes; part of every cache key."""
        return ()


BackendFactory = Callable[[], Backend]


class CompilerMissing(RuntimeError):
    """A compiler that a backend needs is not installed."""


class CompileFailed(RuntimeError):
    """A compiler rejected generated source."""


class DeviceUnavailable(RuntimeError):
    """The device asked for cannot run here."""
