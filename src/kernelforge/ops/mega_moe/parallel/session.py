"""One engine for each group and device, made when it is first needed and again after an error has closed it."""

from __future__ import annotations

import atexit
import math
import os
from dataclasses import dataclass, field

import torch
import torch.distributed as dist

from .accelerator import AcceleratorTransport
from .agree import Agreeing
from .engine import Engine
from .gloo import GlooTransport
from .headed import CheckedTransport, Link, ShapedTransport
from .measured import Measured, measure_link
from .symmetric import SymmetricTransport
from .symmetric_cuda import CudaWorkspace, offered
from .transport import Transport

DEFAULT_TIMEOUT = 60.0


@dataclass(frozen=True)
class Options:
    """How ranks are connected.

    Attributes:
        timeout: seconds that a wait for another rank may take before the call fails.
        checksums: send a checksum with each message (``KERNELFORGE_MOE_CHECKSUMS=1``); slow, for debugging.
        link: limits of the link out of each rank, for benchmarks on one machine; None for none.
        symmetric: let CUDA devices that can access each other write into each other's memory, where torch offers
            symmetric memory (``KERNELFORGE_MOE_SYMMETRIC=0`` for never); NCCL takes the messages otherwise.
    """

    timeout: float = DEFAULT_TIMEOUT
    checksums: bool = False
    link: Link | None = None
    symmetric: bool = True

    def __post_init__(self) -> None:
        if not 0 < self.timeout < math.inf:
            raise ValueError(f"timeout: given {self.timeout}, wanted a positive number of seconds")

    @staticmethod
    def from_environment() -> Options:
        """Defaults, with ``KERNELFORGE_MOE_TIMEOUT`` (seconds), ``KERNELFORGE_MOE_CHECKSUMS`` and
        ``KERNELFORGE_MOE_SYMMETRIC`` (0 or 1)."""
        names = [f"KERNELFORGE_MOE_{name}" for name in ("TIMEOUT", "CHECKSUMS", "SYMMETRIC")]
        given = [os.environ.get(*pair) for pair in zip(names, (str(DEFAULT_TIMEOUT), "0", "1"), strict=True)]
        try:
            timeout, checksums, symmetric = (float(text) for text in given)
            return Options(timeout=timeout, checksums=bool(checksums), symmetric=bool(symmetric))
        except ValueError as error:
            raise ValueError(
                f"{', '.join(names)}: given {', '.join(map(repr, given))}, wanted seconds, then twice 0 or 1"
            ) from error


@dataclass
class Session:
    """An engine, and what has been measured on it."""

    engine: Engine
    agreeing: Agreeing
    shaped: ShapedTransport | None
    seconds_per_byte: float = 0.0
    latency: float = 0.0
    measured: dict[tuple[int, ...], Measured] = field(default_factory=dict)

    def measured_for(self, *shape: int) -> Measured:
        """The measurements of layers of one shape."""
        return self.measured.setdefault(shape, Measured())


_options: dict[str, Options] = {}
_sessions: dict[tuple[str, torch.device], Session] = {}


def configure(group: dist.ProcessGroup, options: Options) -> None:
    """Set how the ranks of a group are connected from the next call on; all ranks must set the same, between calls."""
    close(group)
    _options[group.group_name] = options


def session(group: dist.ProcessGroup, device: torch.device) -> Session:
    """The session of a group, opened if there is none: then all ranks must come here.

    Raises:
        PeerLost: they did not come in time.
    """
    key = group.group_name, device
    found = _sessions.get(key)
    if found is not None and (not found.engine.closed or found.engine.owes_error):
        return found
    options = _options.get(group.group_name) or Options.from_environment()
    opened = open_session(_transport(group, device, options), device, options)
    _sessions[key] = opened
    return opened


def _transport(group: dist.ProcessGroup, device: torch.device, options: Options) -> Transport:
    """On accelerators symmetric memory where it is wanted and offered, torch.distributed's messages otherwise."""
    if device.type == "cpu":
        return GlooTransport(group, options.timeout)
    if options.symmetric and offered(group, device, options.timeout):
        return SymmetricTransport(CudaWorkspace(group, device, options.timeout))
    return AcceleratorTransport(group, device, options.timeout)


def open_session(transport: Transport, device: torch.device, options: Options) -> Session:
    """A session over a transport, its link measured."""
    shaped = None
    if options.link is not None:
        transport = shaped = ShapedTransport(transport, options.link)
    if options.checksums:
        transport = CheckedTransport(transport)
    engine = Engine(transport, device, options.timeout)
    opened = Session(engine, Agreeing(transport, device, options.timeout), shaped)
    if transport.size > 1:

        def measure() -> None:
            bandwidth, opened.latency = measure_link(transport, device, options.timeout)
            opened.seconds_per_byte = 1 / bandwidth

        engine.perform(measure)
    return opened


def close(group: dist.ProcessGroup) -> None:
    """Close a group's connections and free its buffers; the next call opens it anew."""
    for key in [key for key in _sessions if key[0] == group.group_name]:
        _sessions.pop(key).engine.close()


@atexit.register
def _close_all() -> None:
    for opened in _sessions.values():
        opened.engine.close()
    _sessions.clear()
