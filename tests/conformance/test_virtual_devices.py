"""Every public function that takes a backend runs on both virtual devices."""

from __future__ import annotations

import inspect
import sys
from types import FrameType
from typing import Any

import pytest
import torch

import kernelforge as kf
from kernelforge.ops.spec import Case, specs

DEVICES = ("cuda:virtual", "ascend:virtual")
ELSEWHERE = {"fake_quant_mxfp4", "mhc_head", "mhc_post", "mhc_pre"}
"""Public functions that no conformance case of size ``ci`` calls by name: the tests at the end of this file do."""


def public_functions() -> set[str]:
    """Names in ``kf.__all__`` of functions with an argument ``backend``."""
    functions = {name: getattr(kf, name) for name in kf.__all__ if inspect.isfunction(getattr(kf, name))}
    return {name for name, function in functions.items() if "backend" in inspect.signature(function).parameters}


def functions_of(op: str) -> set[str]:
    """Those of one op."""
    return {name for name in specs()[op].functions if name in public_functions()} - ELSEWHERE


def called(case: Case, device: str, names: set[str]) -> set[str]:
    """Which of ``names`` a case calls with this device as their backend."""
    by_code = {inspect.unwrap(getattr(kf, name)).__code__: name for name in names}
    found: set[str] = set()

    def watch(frame: FrameType, event: str, argument: Any) -> None:
        if event == "call" and frame.f_code in by_code and frame.f_locals["backend"] == device:
            found.add(by_code[frame.f_code])

    sys.setprofile(watch)
    try:
        case.run(device)
    finally:
        sys.setprofile(None)
    return found


def test_every_function_with_a_backend_belongs_to_an_op():
    listed = {name for op in specs().values() for name in op.functions}
    assert public_functions() <= listed | ELSEWHERE


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("op", [name for name in specs() if functions_of(name)])
def test_functions_run_on_virtual_devices(op, device):
    missing = functions_of(op)
    for case in specs()[op].conformance_cases(0, "ci"):
        missing -= called(case, device, missing)
        if not missing:
            break
    assert not missing


@pytest.mark.parametrize("device", DEVICES)
def test_fake_quantization_has_the_cpus_bits(device):
    w = torch.randn(5, 96)
    assert torch.equal(kf.fake_quant_mxfp4(w, backend=device), kf.fake_quant_mxfp4(w, backend="cpu"))


@pytest.mark.parametrize("device", DEVICES)
def test_hyper_connections_have_the_cpus_bits(device):
    draw = torch.Generator().manual_seed(3)
    x, *given = (torch.randn(*shape, generator=draw) for shape in ((19, 4, 32), (24, 128), (3,), (24,)))

    def block(backend: str) -> tuple[torch.Tensor, ...]:
        collapsed, post, comb = kf.mhc_pre(x, *given, backend=backend)
        return collapsed, post, comb, kf.mhc_post(collapsed, x, post, comb, backend=backend)

    assert all(torch.equal(*both) for both in zip(block(device), block("cpu"), strict=True))


@pytest.mark.parametrize("device", DEVICES)
def test_the_head_of_hyper_connections_has_the_cpus_bits(device):
    draw = torch.Generator().manual_seed(3)
    given = [torch.randn(*shape, generator=draw) for shape in ((19, 3, 32), (3, 96), (1,), (3,))]
    assert torch.equal(kf.mhc_head(*given, backend=device), kf.mhc_head(*given, backend="cpu"))
