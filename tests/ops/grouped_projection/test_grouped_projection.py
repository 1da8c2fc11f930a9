"""The grouped output projection: bits of the reference, of the GEMMs it is made of, and of any batch."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from own_process import printed

import kernelforge as kf
from kernelforge.conformance.compare import compare
from kernelforge.ops.grouped_projection import conformance

GROUPS, RANK, K, HIDDEN = conformance.SHAPE.values()


def operands(M: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    x = conformance.draw(M, "normal", np.random.default_rng(M))
    o, wa, wb = (torch.from_numpy(x[name]).bfloat16() for name in ("o", "wa", "wb"))
    return o.view(M, 2 * GROUPS, K // 2), wa, wb


@pytest.mark.parametrize("data", conformance.DATA)
def test_bits_and_gradients_are_the_references(data, device):
    x = conformance.draw(5, data, np.random.default_rng(7))
    expected, found = conformance.expected(x), conformance.run(x, device)
    assert not compare(expected, found)


@pytest.mark.parametrize("M", [1, 131, 300])
def test_any_number_of_tokens_has_the_references_bits(M):
    x = conformance.draw(M, "wide", np.random.default_rng(M))
    assert not compare(conformance.expected(x), conformance.run(x, "cpu"))


PORTABLE = """
import numpy as np
from kernelforge.conformance.compare import compare
from kernelforge.ops.grouped_projection import conformance
x = conformance.draw(31, "wide", np.random.default_rng(31))
assert not compare(conformance.expected(x), conformance.run(x, "cpu"))
print("same bits")
"""


def test_the_portable_engine_has_the_references_bits():
    assert printed(PORTABLE, __file__, KERNELFORGE_CPU_ISA="portable") == "same bits"


def test_no_tokens_give_no_result():
    o, wa, wb = operands(1)
    assert kf.grouped_output_projection(o[:0], wa, wb).shape == (0, HIDDEN)


def test_bits_do_not_depend_on_the_batch():
    o, wa, wb = operands(9)
    whole = kf.grouped_output_projection(o, wa, wb)
    for rows in (slice(1), slice(4, 9)):
        assert torch.equal(kf.grouped_output_projection(o[rows].contiguous(), wa, wb), whole[rows])
    assert torch.equal(kf.grouped_output_projection(o.view(3, 3, *o.shape[1:]), wa, wb), whole.view(3, 3, -1))


def test_mxfp4_weights_give_the_bits_of_one_gemm_per_group():
    o, wa, wb = operands(6)
    (qa, sa), (qb, sb) = kf.quantize_mxfp4(wa.float()), kf.quantize_mxfp4(wb.float())
    rows = o.view(6, GROUPS, K)
    middle = [kf.mxfp4_gemm(rows[:, g].contiguous(), None, qa[g], sa[g]) for g in range(GROUPS)]
    wanted = kf.mxfp4_gemm(torch.cat(middle, 1), None, qb, sb)
    assert torch.equal(kf.grouped_output_projection(o, qa, qb, sa, sb), wanted)


def test_results_are_as_close_to_float64_as_their_roundings_allow():
    o, wa, wb = operands(64)
    middle = torch.einsum("mgk,grk->mgr", o.view(64, GROUPS, K).double(), wa.double())
    exact = middle.flatten(1) @ wb.double().T
    error = (kf.grouped_output_projection(o, wa, wb).double() - exact).norm() / exact.norm()
    assert error < 2**-8  # two roundings to bfloat16, each at most 2^-9 of an element


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"o": torch.zeros(2, 4, 80)}, TypeError, "o: given float32"),
        ({"o": torch.zeros(2, 3, 80, dtype=torch.bfloat16)}, ValueError, "wa: .*3 heads do not make 2 groups"),
        ({"wa": torch.zeros(2, 48, 96, dtype=torch.bfloat16)}, ValueError, r"wa: .*wanted bfloat16\[2, 48, 160\]"),
        ({"wb": torch.zeros(40, 64, dtype=torch.bfloat16)}, ValueError, r"wb: .*wanted bfloat16\[hidden, 96\]"),
        ({"wa_scale": torch.zeros(1, dtype=torch.uint8)}, ValueError, "wa_scale: .*bfloat16"),
        ({"wb": torch.zeros(40, 48, dtype=torch.uint8)}, TypeError, "wb_scale: missing"),
        ({"numerics": "native"}, ValueError, "numerics"),
    ],
)
def test_bad_arguments_are_named(change, error, words):
    o, wa, wb = operands(2)
    with pytest.raises(error, match=words):
        kf.grouped_output_projection(**{"o": o, "wa": wa, "wb": wb, **change})


def test_torch_registration_is_complete():
    o, wa, _ = operands(3)
    arguments = (o.view(3, -1).requires_grad_(), wa.view(-1, K).requires_grad_(), GROUPS, None)
    torch.library.opcheck(torch.ops.kernelforge.sliced_gemm.default, arguments)
