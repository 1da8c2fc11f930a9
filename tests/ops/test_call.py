"""An op is called without torch's dispatcher only where no one looks on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd import forward_ad
from torch.overrides import BaseTorchFunctionMode

from kernelforge.ops.support import call


def _called(x: torch.Tensor) -> str:
    return str(call(lambda x, k: f"op {k}", lambda x, k: f"implementation {k}", (x,), 3))


def _traced(function: Callable[..., Any]) -> Callable[..., Any]:
    return lambda x: torch.jit.trace(function, x, check_trace=False)


def test_plain_tensors_reach_the_implementation_at_once() -> None:
    assert _called(torch.ones(2)) == "implementation 3"
    assert _called(torch.nn.Parameter(torch.ones(2), requires_grad=False)) == "implementation 3"


def test_a_gradient_that_is_asked_for_goes_through_the_dispatcher() -> None:
    x = torch.ones(2, requires_grad=True)
    assert _called(x) == "op 3"
    with torch.no_grad():
        assert _called(x) == "implementation 3"


def test_subclasses_and_modes_go_through_the_dispatcher() -> None:
    with FakeTensorMode() as mode:
        assert _called(torch.ones(2)) == "op 3"
    assert _called(mode.from_tensor(torch.ones(2))) == "op 3"
    with BaseTorchFunctionMode():
        assert _called(torch.ones(2)) == "op 3"


def test_tangents_go_through_the_dispatcher() -> None:
    with forward_ad.dual_level():
        assert _called(forward_ad.make_dual(torch.ones(2), torch.ones(2))) == "op 3"


@pytest.mark.parametrize("transform", [torch.func.vmap, torch.func.grad, _traced])
def test_transforms_and_traces_go_through_the_dispatcher(transform: Callable[..., Any]) -> None:
    found = []

    def function(x: torch.Tensor) -> torch.Tensor:
        found.append(_called(x))
        return x.sum()

    transform(function)(torch.ones(2))
    assert found[0] == "op 3"


def test_profiles_see_the_dispatcher() -> None:
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]):
        assert _called(torch.ones(2)) == "op 3"
