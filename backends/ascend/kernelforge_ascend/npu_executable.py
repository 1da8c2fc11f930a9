"""A kernel on an Ascend 950, called with tensors of torch_npu."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kernelforge.backends import LaunchInfo

from . import acl, bisheng
from .marshal import Marshaller, Memory

if TYPE_CHECKING:
    import torch


class NpuExecutable:
    """Launches on torch_npu's current stream.

    Args:
        image: the binary that bisheng made.
        info: how to call it.
        runtime: CANN's runtime.
        device_type: type of the tensors.
        stream: the current stream's handle.
        device: index of the current device.
        allocate: scratch memory on the device, ``allocate(nbytes)`` -> tensor; it is kept alive by the stream order of
            torch_npu's caching allocator.
    """

    def __init__(
        self,
        image: bytes,
        info: LaunchInfo,
        runtime: acl.Runtime,
        device_type: str,
        stream: Callable[[], int],
        device: Callable[[], int],
        allocate: Callable[[int], Any],
    ) -> None:
        self._image, self._info, self._runtime = image, info, runtime
        self._marshal = Marshaller(info, device_type)
        self._dtypes = [parameter.dtype for parameter in info.parameters]
        self._stream, self._device, self._allocate = stream, device, allocate
        self._functions: dict[int, int] = {}

    def __call__(self, *tensors: torch.Tensor) -> None:
        """Run on tensors in the order of the kernel's signature; outputs are written in place."""
        blocks = self._marshal.blocks(tensors)
        if blocks == 0:
            return
        scratch: list[Any] = []

        def workspace(name: str, nbytes: int) -> Memory:
            scratch.append(self._allocate(nbytes))
            return Memory(scratch[-1].data_ptr(), nbytes)

        arguments = acl.pack(self._marshal.values(tensors, blocks, workspace), self._dtypes)
        self._runtime.launch(self._function(), blocks, self._stream(), arguments, self._info.shared_bytes)

    def _function(self) -> int:
        device = self._device()
        if device not in self._functions:
            binary = self._runtime.load(self._image)
            self._functions[device] = self._runtime.function(binary, self._info.entry)
        return self._functions[device]


def load(directory: Path, info: LaunchInfo) -> NpuExecutable:
    """The kernel in ``directory`` on the NPU of this process.

    Raises:
        DeviceUnavailable: torch_npu or CANN is missing.
    """
    torch_npu = bisheng.torch_npu()
    import torch

    return NpuExecutable(
        (directory / bisheng.BINARY).read_bytes(),
        info,
        acl.system_runtime(),
        "npu",
        stream=lambda: int(torch_npu.npu.current_stream().npu_stream),
        device=lambda: int(torch_npu.npu.current_device()),
        allocate=lambda nbytes: torch.empty(nbytes, dtype=torch.uint8, device="npu"),
    )
