"""A tensor with gaps is refused by name, or gives the bits of the same values without gaps: never other ones.

What an op of ``torch.ops`` does not check itself is refused by the kernel's launcher, under the kernel's name for it.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from kernelforge.ops.spec import specs

REFUSAL = re.compile(r"([\w.]+): given .*; pass \1\.contiguous\(\)")


def spread(tensor: torch.Tensor) -> torch.Tensor:
    """The same values in every second place of memory."""
    wide = torch.zeros((*tensor.shape, 2), dtype=tensor.dtype, device=tensor.device)
    wide[..., 0] = tensor
    return wide[..., 0]


def outcome(call: Callable[[], Any]) -> list[bytes]:
    return [bytes(leaf.contiguous().view(-1).view(torch.uint8).numpy()) for leaf in tree_leaves(call())]


class Spreading(TorchDispatchMode):
    """Calls every op of kernelforge once more for each of its tensors, which has gaps then.

    Attributes:
        refused: pairs of op and argument that ended in the wanted error.
        wrong: what else came of it.
    """

    def __init__(self) -> None:
        super().__init__()
        self.refused: set[tuple[str, str]] = set()
        self.wrong: list[str] = []
        self._seen: set[tuple[Any, str]] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        if func.namespace == "kernelforge":
            names = [argument.name for argument in func._schema.arguments]
            given = dict(zip(names, args, strict=False)) | kwargs
            for name, value in given.items():
                if isinstance(value, torch.Tensor) and (func, name) not in self._seen and value.numel() > 1:
                    self._seen.add((func, name))
                    self._try(func, given, name, result)
        return result

    def _try(self, func: Any, given: dict[str, Any], name: str, result: Any) -> None:
        op = func._schema.name
        try:
            found = outcome(lambda: func(**{**given, name: spread(given[name])}))
        except ValueError as error:
            if REFUSAL.match(str(error)):
                self.refused.add((op, name))
            else:
                self.wrong.append(f"{op}({name}): {error}")
            return
        if found != outcome(lambda: result):
            self.wrong.append(f"{op}({name}): other bits")


@pytest.mark.parametrize("op", specs().values(), ids=lambda op: op.name)
def test_no_op_reads_a_tensor_with_gaps_as_if_it_had_none(op):
    mode = Spreading()
    cases = list(op.conformance_cases(0, "ci"))
    with mode:
        for case in cases:
            case.run("cpu")
    assert mode.refused
    assert mode.wrong == []
