"""The tuning table."""

from __future__ import annotations

import pytest

from kernelforge import backends
from kernelforge.ops.spec import specs
from kernelforge.runtime import schedule, tuning


def test_a_row_that_sets_nothing_is_refused():
    with pytest.raises(ValueError, match="a row is"):
        tuning.load('[{"when": {"M": 1}}]')
    with pytest.raises(ValueError, match="a row is"):
        tuning.load('[{"if": {}, "set": {"x": 1}}]')


@pytest.mark.parametrize(
    ("condition", "value", "matches"),
    [
        ({"max": 16}, 16, True),
        ({"max": 16}, 17, False),
        ({"min": 2, "max": 4}, 1, False),
        (["a", "b"], "b", True),
        (["a", "b"], "c", False),
        (3, 3, True),
        (3, 4, False),
    ],
)
def test_conditions(condition, value, matches):
    assert tuning.matches(condition, value) is matches


@pytest.mark.parametrize("op", [spec for spec in specs().values() if spec.kernels], ids=lambda op: op.name)
@pytest.mark.parametrize("backend", backends.backends())
def test_every_op_has_a_schedule_on_every_backend(op, backend):
    assert op.kernel_specs(backend)


def test_a_schedule_needs_no_device():
    found = schedule("mxfp4_gemm", "cuda", M=512, N=4096, K=4096, experts=0, a_format="bf16")
    assert found["block_K"] % 32 == 0
