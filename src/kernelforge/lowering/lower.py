"""From a traced kernel to a backend's source."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from ..backends.interface import Backend
from ..backends.launch import Argument, LaunchInfo, Parameter, Workspace
from .artifact_lint import lint_artifact
from .rounded_dots import rounds_dots
from .solver import lowering_context
from .tir import functions, post_order, target_of, text, tilelang, tirx
from .verify import verify


@dataclass(frozen=True)
class Lowered:
    """A kernel in a backend's source language."""

    source: str
    info: LaunchInfo


def trace(builder: str, parameters: Mapping[str, Any]) -> Any:
    """Run a kernel builder, ``"package.module:function"``, and return the portable ``PrimFunc`` it makes."""
    module, _, function = builder.partition(":")
    return getattr(importlib.import_module(module), function)(**parameters)


def lower(
    portable: Any, backend: Backend, arch: str, observe: Callable[[str, Any], None] = lambda name, function: None
) -> Lowered:
    """Verify a portable function, run the backend's passes and TileLang's pipeline.

    Args:
        portable: a traced ``PrimFunc``.
        backend: whose passes and target.
        arch: one of the backend's architectures.
        observe: called with ``("portable", function)`` and with each pass's name and result.

    Raises:
        NotPortable: the function leaves the portable subset; the message gives file, line and what to use.
        ForbiddenArithmetic: a compiler on the way made arithmetic that exact mode forbids.
    """
    verify(portable)
    observe("portable", portable)
    function = portable
    target = target_of(backend.target(arch))
    with target:
        for step in backend.passes(arch):
            function = step(function)
            observe(step.__name__, function)
        with lowering_context(backend.pass_configs(arch, function), backend.proving_passes):
            artifact = tilelang.lower(function, target=target)
    lint_artifact(artifact)
    info = backend.finish(artifact, _launch_info(portable, function, artifact))
    return Lowered(backend.source(artifact), info)


def _launch_info(portable: Any, function: Any, artifact: Any) -> LaunchInfo:
    (device,) = functions(artifact.device_mod)
    arguments = tuple(
        _argument(portable.buffer_map[param]) for param in portable.params if param in portable.buffer_map
    )
    tensors = {argument.name for argument in arguments}
    blocks = {"kf_block_x": 0, "kf_block_y": 1, "kf_block_z": 2}
    parameters, workspaces = [], []
    shapes = {buffer.name: buffer for buffer in function.buffer_map.values()}
    for param in device.params:
        name, dtype = text(param.name), text(param.dtype)
        if name in tensors:
            parameters.append(Parameter(name, "tensor", dtype))
        elif name in blocks:
            parameters.append(Parameter(name, "block", dtype, blocks[name]))
        elif dtype == "handle" and name in shapes:
            parameters.append(Parameter(name, "workspace", dtype))
            buffer = shapes[name]
            workspaces.append(Workspace(name, str(buffer.dtype), tuple(int(extent) for extent in buffer.shape)))
        elif dtype == "handle":
            parameters.append(Parameter(name, "descriptor", dtype))
        else:
            parameters.append(Parameter(name, "extent", dtype))
    return LaunchInfo(
        entry=text(device.attrs["global_symbol"]),
        arguments=arguments,
        parameters=tuple(parameters),
        grid=_grid(portable),
        workspaces=tuple(workspaces),
        rounded=rounds_dots(portable),
    )


def _argument(buffer: Any) -> Argument:
    shape = tuple(int(e) if isinstance(e, (int, tirx.IntImm)) else text(e) for e in buffer.shape)
    return Argument(text(buffer.name), text(buffer.dtype), shape)


def _grid(portable: Any) -> tuple[str, ...]:
    """Extents of the portable kernel's block axes, x first."""
    extents: dict[str, str] = {}

    def visit(node: Any) -> None:
        if isinstance(node, tirx.For) and node.thread_binding is not None:
            tag = text(node.thread_binding.thread_tag)
            if tag.startswith("blockIdx."):
                extents[tag] = text(node.extent)

    post_order(portable.body, visit)
    return tuple(extents[tag] for tag in sorted(extents))
