"""From tensors to the values of a kernel function's parameters."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from kernelforge.backends import LaunchInfo
from kernelforge.backends.launch import dtype_bytes

if TYPE_CHECKING:
    import torch

MAX_BLOCKS = 65535


@dataclass(frozen=True)
class Memory:
    """An array argument by address."""

    address: int
    nbytes: int


class Marshaller:
    """Checks tensors against a kernel's signature and lays out its parameters.

    Args:
        info: how the kernel is called.
        device_type: where its tensors live, ``"cpu"`` for the virtual device, ``"npu"`` for a real one.
    """

    def __init__(self, info: LaunchInfo, device_type: str) -> None:
        self._info = info
        self._device_type = device_type
        self._cores: int | None = info.extra.get("cores")
        self._grid = info.grid_function()
        self._extents = list(info.extents().items())
        self._positions = {argument.name: i for i, argument in enumerate(info.arguments)}
        self._slots = {w.name: math.prod(w.shape) * dtype_bytes(w.dtype) for w in info.workspaces}

    def blocks(self, tensors: Sequence[torch.Tensor]) -> int:
        """Blocks to launch for ``tensors``; 0 where there is nothing to do.

        Raises:
            TypeError: another number of tensors than the kernel takes.
            ValueError: a tensor on another device or not contiguous, or more blocks than a launch can have.
        """
        info = self._info
        info.check(tensors)
        for argument, tensor in zip(info.arguments, tensors, strict=True):
            if tensor.device.type != self._device_type:
                raise ValueError(f"{argument.name} is on {tensor.device}; a tensor on {self._device_type} is wanted")
        tiles = math.prod(self._grid(*self._extent_values(tensors).values()))
        blocks = tiles if self._cores is None else min(tiles, self._cores)
        if blocks > MAX_BLOCKS:
            raise ValueError(
                f"{info.entry} needs {blocks} blocks; at most {MAX_BLOCKS} can be launched: use larger tiles"
            )
        return blocks

    def values(
        self, tensors: Sequence[torch.Tensor], blocks: int, workspace: Callable[[str, int], Memory]
    ) -> list[Memory | int]:
        """One value for each parameter of the compiled function; ``workspace(name, nbytes)`` gives scratch memory."""
        extents = self._extent_values(tensors)
        values: list[Memory | int] = []
        for parameter in self._info.parameters:
            if parameter.kind == "tensor":
                tensor = tensors[self._positions[parameter.name]]
                values.append(Memory(tensor.data_ptr(), tensor.numel() * tensor.element_size()))
            elif parameter.kind == "workspace":
                values.append(workspace(parameter.name, blocks * self._slots[parameter.name]))
            elif parameter.kind == "extent":
                values.append(extents[parameter.name])
            else:
                raise ValueError(f"{self._info.entry}: Ascend has no parameter of kind {parameter.kind!r}")
        return values

    def _extent_values(self, tensors: Sequence[torch.Tensor]) -> dict[str, int]:
        return {name: tensors[position].shape[axis] for name, (position, axis) in self._extents}
