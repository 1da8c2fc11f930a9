"""Order between the thread that computes and the one that communicates: streams and events, or nothing on a CPU."""

from __future__ import annotations

import contextlib
from typing import Any

import torch


class Streams:
    """The caller's stream, which computes, and one beside it, which communicates.

    On a CPU every method does nothing: threads and their locks give the order.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._module: Any = None if device.type == "cpu" else torch.get_device_module(device)
        self._communication = None if self._module is None else self._module.Stream(device)

    def mark(self) -> Any:
        """An event after everything that the current stream was given."""
        if self._module is None:
            return None
        event = self._module.Event()
        event.record(self._module.current_stream(self.device))
        return event

    def join(self, event: Any) -> None:
        """Let the current stream wait for an event."""
        if event is not None:
            self._module.current_stream(self.device).wait_event(event)

    def communication(self) -> Any:
        """A context in which the communication stream is the current one."""
        if self._module is None:
            return contextlib.nullcontext()
        return self._module.stream(self._communication)
