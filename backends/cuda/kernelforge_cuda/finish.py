"""What only the CUDA launcher needs to know, read off TileLang's ``CompiledArtifact``."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from kernelforge.backends import CompileFailed, LaunchInfo
from kernelforge.lowering.tir import functions, text, tirx

from .passes.long_axis_first import exchanged


def finish(artifact: Any, info: LaunchInfo) -> LaunchInfo:
    """Complete ``info`` by the order of block axes, threads, dynamic shared memory, tensor maps and what is written.

    ``info.extra`` becomes ``{"tma": {parameter: tensor map}, "writes": [names]}``. A tensor map holds ``dtype``,
    ``rank``, ``buffer`` (the argument it describes), ``dims``, ``strides`` (bytes; the innermost is not read), ``box``,
    ``element_strides``, ``interleave``, ``swizzle``, ``l2`` and ``oob``: integers as cuda.h numbers them, or
    expressions over the dynamic extents.
    """
    (device,) = functions(artifact.device_mod)
    (host,) = functions(artifact.host_mod)
    extent = device.attrs["thread_extent"]
    threads = tuple(int(extent.get(f"threadIdx.{axis}", 1)) for axis in "xyz")
    shared = int(device.attrs["dyn_shared_memory_buf"]) if "dyn_shared_memory_buf" in device.attrs else 0
    described = host.attrs.get("tma_descriptor_args", {})
    tma = {text(name.name): _tensor_map(text(name.name), list(values)) for name, values in described.items()}
    read_only = {int(index) for index in device.attrs["tl.readonly_param_indices"]}
    writes = []
    for index, parameter in enumerate(info.parameters):
        if parameter.kind == "descriptor" and parameter.name not in tma:
            raise CompileFailed(f"{info.entry}: TileLang described no tensor map for parameter {parameter.name!r}")
        if index not in read_only and parameter.kind in ("tensor", "descriptor"):
            writes.append(tma[parameter.name]["buffer"] if parameter.kind == "descriptor" else parameter.name)
    return replace(
        info,
        grid=_grid(info.grid),
        threads=(threads[0], threads[1], threads[2]),
        shared_bytes=shared,
        extra={**info.extra, "tma": tma, "writes": writes},
    )


def _grid(portable: tuple[str, ...]) -> tuple[str, ...]:
    """Extents of the axes as :func:`long_axis_first` leaves them."""
    grid = list(portable)
    other = exchanged([extent.isdigit() for extent in grid])
    if other is not None:
        grid[0], grid[other] = grid[other], grid[0]
    return tuple(grid)


def _tensor_map(name: str, values: list[Any]) -> dict[str, Any]:
    create, _, dtype, rank, buffer, *rest = values
    if text(getattr(create, "value", create)) != "__tvm_tensormap_create_tiled":
        raise CompileFailed(f"tensor map {name!r} is made by {create}; only tiled ones are supported")
    size = int(rank)
    numbers = [expression(value) for value in rest]
    dims, strides, box, steps = (numbers[i * size : (i + 1) * size] for i in range(4))
    interleave, swizzle, l2, oob = numbers[4 * size :]
    return {
        "dtype": int(dtype),
        "rank": size,
        "buffer": text(buffer.name),
        "dims": dims,
        "strides": strides,
        "box": box,
        "element_strides": steps,
        "interleave": interleave,
        "swizzle": swizzle,
        "l2": l2,
        "oob": oob,
    }


def expression(value: Any) -> int | str:
    """An integer, or integer arithmetic over extents as :meth:`LaunchInfo.grid_function` reads it."""
    text = _text(value)
    return int(text) if text.lstrip("-").isdigit() else text


def _text(value: Any) -> str:
    if isinstance(value, (int, tirx.IntImm)):
        return str(int(value))
    if isinstance(value, tirx.Var):
        return text(value.name)
    if isinstance(value, tirx.Cast):
        return _text(value.value)
    symbols = {tirx.Add: "+", tirx.Sub: "-", tirx.Mul: "*", tirx.FloorDiv: "//", tirx.FloorMod: "%"}
    symbol = symbols.get(type(value))
    if symbol is None:
        raise CompileFailed(f"a tensor map's extent is {value}; integer arithmetic over dynamic extents is supported")
    return f"({_text(value.a)} {symbol} {_text(value.b)})"
