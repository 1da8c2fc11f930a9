"""How a compiled kernel is called: plain data, stored beside the compiled code."""

from __future__ import annotations

import ast
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

_DTYPE_BYTES = {"uint8": 1, "int8": 1, "uint16": 2, "int16": 2, "float16": 2, "bfloat16": 2}


def dtype_bytes(dtype: str) -> int:
    """Bytes of one element."""
    return _DTYPE_BYTES.get(dtype) or int("".join(c for c in dtype if c.isdigit())) // 8


@dataclass(frozen=True)
class Argument:
    """A tensor of the kernel's signature; ``shape`` entries are integers or names of dynamic extents."""

    name: str
    dtype: str
    shape: tuple[int | str, ...]


@dataclass(frozen=True)
class Parameter:
    """A parameter of the compiled function, in its own order.

    ``kind`` is ``"tensor"`` (an argument's pointer), ``"extent"`` (a dynamic extent), ``"block"`` (the block index
    along grid axis ``axis``), ``"workspace"`` (scratch memory) or ``"descriptor"`` (a tensor map).
    """

    name: str
    kind: str
    dtype: str
    axis: int = 0


@dataclass(frozen=True)
class Workspace:
    """Scratch memory that the launcher provides, one slot per block in flight."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        size = dtype_bytes(self.dtype)
        for extent in self.shape:
            size *= extent
        return size


@dataclass(frozen=True)
class LaunchInfo:
    """Everything a launcher needs besides the code.

    Attributes:
        entry: name of the compiled function.
        arguments: the kernel's signature, in the order in which tensors are passed.
        parameters: the compiled function's parameters, in its order.
        grid: up to three extents as expressions over the dynamic extents, e.g. ``"(M + 63) // 64"``.
        threads: threads per block (1 on devices without them).
        shared_bytes: dynamic shared memory per block.
        workspaces: scratch memory.
        rounded: some products are rounded as the device likes (native mode); virtual devices then do not hold sums of
            matrix units to be exact.
        extra: what only the backend reads (JSON values).
    """

    entry: str
    arguments: tuple[Argument, ...]
    parameters: tuple[Parameter, ...]
    grid: tuple[str, ...]
    threads: tuple[int, int, int] = (1, 1, 1)
    shared_bytes: int = 0
    workspaces: tuple[Workspace, ...] = ()
    rounded: bool = False
    extra: dict[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> LaunchInfo:
        return cls(
            entry=data["entry"],
            arguments=tuple(Argument(a["name"], a["dtype"], tuple(a["shape"])) for a in data["arguments"]),
            parameters=tuple(Parameter(**p) for p in data["parameters"]),
            grid=tuple(data["grid"]),
            threads=(data["threads"][0], data["threads"][1], data["threads"][2]),
            shared_bytes=data["shared_bytes"],
            workspaces=tuple(Workspace(w["name"], w["dtype"], tuple(w["shape"])) for w in data["workspaces"]),
            rounded=data["rounded"],
            extra=dict(data["extra"]),
        )

    def check(self, tensors: Sequence[torch.Tensor]) -> None:
        """What every launcher asks of its tensors: one for each argument, without gaps or permuted strides.

        Raises:
            TypeError: another number of tensors than the kernel takes.
            ValueError: a tensor that is not contiguous; the message names the argument.
        """
        if len(tensors) != len(self.arguments):
            raise TypeError(f"{self.entry} takes {len(self.arguments)} tensors, given {len(tensors)}")
        for argument, tensor in zip(self.arguments, tensors, strict=True):
            if not tensor.is_contiguous():
                raise ValueError(
                    f"{argument.name}: given {list(tensor.shape)} with strides {list(tensor.stride())}, wanted it "
                    f"contiguous; pass {argument.name}.contiguous()"
                )

    def extents(self) -> dict[str, tuple[int, int]]:
        """Where each dynamic extent is read: name -> (argument, axis)."""
        found: dict[str, tuple[int, int]] = {}
        for position, argument in enumerate(self.arguments):
            for axis, extent in enumerate(argument.shape):
                if isinstance(extent, str):
                    found.setdefault(extent, (position, axis))
        return found

    def grid_function(self) -> Callable[..., tuple[int, ...]]:
        """The grid as a function of the dynamic extents, in the order of :meth:`extents`."""
        names = list(self.extents())
        for expression in self.grid:
            _check_expression(expression, names)
        body = ", ".join(self.grid)
        code = compile(f"lambda {', '.join(names)}: ({body},)", "<grid>", "eval")
        return eval(code, {"__builtins__": {}})  # every node was checked above


def _check_expression(expression: str, names: list[str]) -> None:
    allowed = (
        ast.Expression,
        ast.BinOp,
        ast.Add,
        ast.Sub,
        ast.Mult,
        ast.FloorDiv,
        ast.Mod,
        ast.Constant,
        ast.Name,
        ast.Load,
    )
    for node in ast.walk(ast.parse(expression, mode="eval")):
        known = not isinstance(node, ast.Name) or node.id in names
        integer = not isinstance(node, ast.Constant) or isinstance(node.value, int)
        if not (isinstance(node, allowed) and known and integer):
            raise ValueError(f"grid: {expression!r} is not integer arithmetic over {names}")
