"""The indexer in native mode: the bound of docs/numerics.md against float64, and the matrix units in the code."""

from __future__ import annotations

import re

import pytest
import torch
from indexer_data import TOPK, D, H, values_of_kind
from own_process import printed

import kernelforge as kf
from kernelforge import backends, lowering
from kernelforge.ops.lightning_indexer.conformance import kernels

FORMATS = ("e2m1", "bf16")


def operands(kind: str, qk_format: str) -> tuple[tuple[torch.Tensor | None, ...], torch.Tensor, torch.Tensor]:
    """What the indexer takes, and queries and keys in float64."""
    q, k, weights = values_of_kind(kind)
    if qk_format == "bf16":
        return (q, None, k, None, weights), q.double(), k.double()
    (q4, q_scale), (k4, k_scale) = kf.quantize_mxfp4(q), kf.quantize_mxfp4(k)
    values = kf.dequantize_mxfp4(q4, q_scale).double(), kf.dequantize_mxfp4(k4, k_scale).double()
    return (q4, q_scale, k4, k_scale, weights), *values


def require_the_bound(qk_format: str, kind: str, device: str) -> None:
    given, q, k = operands(kind, qk_format)
    weights = given[-1].double()
    wanted = torch.einsum("sht,sh->st", torch.einsum("shd,td->sht", q, k).relu(), weights)
    magnitude = torch.einsum("sht,sh->st", torch.einsum("shd,td->sht", q.abs(), k.abs()), weights.abs())
    found = kf.indexer_logits(*given, out_dtype=torch.float32, numerics="native", backend=device)
    assert ((found.double() - wanted).abs() <= (D + H) * 2**-23 * magnitude).all()


@pytest.mark.parametrize("kind", ["normal", "student", "outliers", "crossed_outliers"])
@pytest.mark.parametrize("qk_format", FORMATS)
def test_errors_stay_within_the_bound(qk_format, kind, device):
    require_the_bound(qk_format, kind, device)


def test_cpus_without_bfloat16_dots_stay_within_the_bound():
    run = "from test_indexer_native import require_the_bound; require_the_bound('bf16', 'student', 'cpu'); print('ok')"
    assert printed(run, __file__, KERNELFORGE_CPU_ISA="portable") == "ok"


def require_the_selection_of_native_scores(qk_format: str, device: str) -> None:
    given, *_ = operands("normal", qk_format)
    kv_len = torch.tensor([0, 1, 5, 130, 199, 200], dtype=torch.int32)
    index, scores = kf.lightning_indexer(*given, TOPK, kv_len, True, numerics="native", backend=device)
    logits = kf.indexer_logits(*given, kv_len, numerics="native", backend=device)
    for s, visible in enumerate(kv_len.tolist()):
        order = sorted(range(visible), key=lambda t, s=s: (-float(logits[s, t]), t))[:TOPK]
        assert index[s].tolist() == order + [-1] * (TOPK - len(order))
        assert torch.equal(scores[s, : len(order)], logits[s, order])


@pytest.mark.parametrize("qk_format", FORMATS)
def test_the_cpu_selects_by_native_scores(qk_format):
    require_the_selection_of_native_scores(qk_format, "cpu")


@pytest.mark.slow
@pytest.mark.parametrize("qk_format", FORMATS)
def test_virtual_devices_select_by_native_scores(qk_format, device):
    require_the_selection_of_native_scores(qk_format, device)


WARP_GROUPS = """
from test_indexer_native import FORMATS, require_the_bound, require_the_selection_of_native_scores
for qk_format in FORMATS:
    require_the_bound(qk_format, "student", "cuda:virtual")
    require_the_selection_of_native_scores(qk_format, "cuda:virtual")
print("ok")
"""


@pytest.mark.slow
def test_warp_groups_stay_within_the_bound_and_select_by_their_scores():
    assert printed(WARP_GROUPS, __file__, KERNELFORGE_CUDA_VIRTUAL_ARCH="sm_90a") == "ok"


def test_what_is_not_finite_shows(device):
    (q, q_scale, k, k_scale, weights), *_ = operands("normal", "e2m1")
    k_scale[3, 1] = 0xFF
    logits = kf.indexer_logits(q, q_scale, k, k_scale, weights, numerics="native", backend=device)
    assert logits[:, 3].isnan().all()
    assert logits.isnan().sum() == len(weights)


def test_gradients_after_native_logits_are_the_exact_ones():
    (q, _, k, _, weights), *_ = operands("normal", "bf16")
    found = []
    for numerics in ("exact", "native"):
        leaves = [x.clone().requires_grad_() for x in (q, k, weights)]
        kf.indexer_logits(leaves[0], None, leaves[1], None, leaves[2], numerics=numerics).sum().backward()
        found.append([x.grad for x in leaves])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def lowered(variant: str, backend: str, arch: str) -> lowering.Lowered:
    """A kernel at V4-Flash's shapes in native mode."""
    spec = kernels(f"{backend}:virtual")[variant]
    portable = lowering.trace(spec.builder, {**dict(spec.parameters), "native": True})
    return lowering.lower(portable, backends.backend(backend), arch)


@pytest.mark.parametrize("variant", ["logits", "logits-bf16"])
@pytest.mark.parametrize(("arch", "unit"), [("sm_80", "mma_sync"), ("sm_90a", "wgmma_ss")])
def test_tensor_cores_multiply_bfloat16(arch, unit, variant):
    kernel = lowered(variant, "cuda", arch)
    products = set(re.findall(r"tl::(\w*mma\w*)<tl::DataType::(\w+), \S+ tl::DataType::(\w+)", kernel.source))
    assert products == {(unit, "kBFloat16", "kFloat32")}
    assert kernel.info.rounded


@pytest.mark.parametrize("variant", ["logits", "logits-bf16"])
def test_the_cube_unit_multiplies_bfloat16(variant):
    kernel = lowered(variant, "ascend", backends.backend("ascend").archs()[0])
    types = set(re.findall(r"ascend_gemm_l1<[^>]*, (\w+)>\(\(\(__cc__ (\w+)\*\)", kernel.source))
    assert types == {("bfloat16_t", "float")}
    assert kernel.info.rounded
