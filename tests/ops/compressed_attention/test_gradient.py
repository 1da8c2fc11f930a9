"""Gradients of CSA and HCA attention: the reference's bits, what must not change a bit, float64."""

from __future__ import annotations

import functools

import numpy as np
import pytest
import torch

import kernelforge as kf
from kernelforge.ops.compressed_attention import conformance, conformance_backward, gradient
from kernelforge.ops.compressed_attention.conformance_backward import output_gradient
from kernelforge.ops.compressed_attention.conformance_data import csa, hca, operands, tensor

SEED = 3
to_torch = functools.partial(tensor, home="cpu")


def dense(seed: int, data: str = "normal", **changes) -> conformance.Problem:
    """HCA without pages, which have no gradient."""
    return hca(seed, data, page=0, **changes)


def small(seed: int, data: str = "normal", **changes) -> conformance.Problem:
    return csa(seed, data, S=5, **changes)


@functools.cache
def want(problem: conformance.Problem) -> dict[str, np.ndarray]:
    return dict(conformance_backward.expected(problem))


def check(found, problem: conformance.Problem) -> None:
    assert list(found) == ["q", "kv", "entries", "sink"]
    for name, expected in want(problem).items():
        np.testing.assert_array_equal(found[name].view(np.uint8), expected.view(np.uint8), err_msg=name)


@pytest.mark.parametrize("data", conformance.DATA)
@pytest.mark.parametrize("problem", [small, dense])
def test_gradients_are_the_references(problem, data, device):
    case = problem(SEED, data)
    check(conformance_backward.run(case, device), case)


@pytest.mark.parametrize("changes", [{"S": 0}, {"N": 0}, {"S": 17, "first": 0, "T": 17}])
def test_gradients_of_edge_shapes(changes):
    case = csa(SEED, **changes)
    check(conformance_backward.run(case, "cpu"), case)


@pytest.mark.parametrize("problem", [small, dense])
def test_gradients_do_not_depend_on_tiles(problem, monkeypatch):
    tiles = {
        "cut_matrix": {"block_M": 16},
        "rotate_gradient": {"block_M": 3},
        "attention_products": {"block_E": 64, "block_D": 32},
        "query_gradient": {"block_D": 16},
        "entry_gradient": {"block_D": 32},
    }
    monkeypatch.setattr(gradient, "schedule", lambda op, device, kernel: {"threads": 64, **tiles.get(kernel, {})})
    monkeypatch.setattr(gradient, "_kernel", gradient._kernel.__wrapped__)
    case = problem(SEED, "student")
    check(conformance_backward.run(case, "cpu"), case)


@pytest.mark.parametrize("queries", [1, 2])
def test_gradients_do_not_depend_on_how_many_queries_go_at_once(queries, monkeypatch):
    case = small(SEED, "outlier")
    monkeypatch.setattr(gradient, "WORKSPACE", queries * 14 * case.B * 4 * 128 * 32)
    check(conformance_backward.run(case, "cpu"), case)


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_gradients_do_not_depend_on_threads(threads):
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        check(conformance_backward.run(small(SEED), "cpu"), small(SEED))
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("problem", [small, dense])
def test_gradients_of_a_batch_row_are_the_same_alone(problem):
    """And so are the queries' one by one; the sinks' are sums over the batch."""
    case = problem(SEED)
    x, grad = operands(case), output_gradient(case)

    def alone(b: int, queries: slice) -> tuple[torch.Tensor, ...]:
        at = np.s_[b : b + 1, queries]
        rows = [None if y is None else y[at] for y in (grad, x.q)]
        index = None if x.indices is None else x.indices[at]
        angles = [None if y is None else to_torch(y[at]) for y in (x.cos, x.sin)]
        return gradient.backward(
            *map(to_torch, (*rows, x.kv[b : b + 1], x.entries[b : b + 1], index, x.sink, x.positions[at])),
            case.window,
            x.scale,
            case.ratio,
            to_torch(x.kv_start[b : b + 1]),
            *angles,
            "cpu",
        )

    whole = alone(1, np.s_[:])
    for name, found in zip(("q", "kv", "entries"), whole, strict=False):
        np.testing.assert_array_equal(conformance_backward.as_arrays(found), want(case)[name][1:2])
    for s in range(case.S):
        found = conformance_backward.as_arrays(alone(1, np.s_[s : s + 1])[0])
        np.testing.assert_array_equal(found, want(case)["q"][1:2, s : s + 1])


def call(problem: conformance.Problem, tensors: list[torch.Tensor], scale: float) -> torch.Tensor:
    """The op on q, kv, entries and sink."""
    x = operands(problem)
    q, kv, entries, sink = tensors
    options = {"scale": scale, "kv_start": to_torch(x.kv_start), "cos": to_torch(x.cos), "sin": to_torch(x.sin)}
    if x.indices is None:
        return kf.hca_attention(q, kv, entries, sink, to_torch(x.positions), ratio=problem.ratio, **options)
    return kf.csa_attention(q, kv, entries, to_torch(x.indices), sink, to_torch(x.positions), **options)


def leaves(problem: conformance.Problem) -> list[torch.Tensor]:
    x = operands(problem)
    return [to_torch(array).requires_grad_() for array in (x.q, x.kv, x.entries, x.sink)]


@pytest.mark.parametrize("problem", [small, dense])
def test_autograd_gives_these_gradients(problem):
    case = problem(SEED)
    inputs = leaves(case)
    call(case, inputs, operands(case).scale).backward(to_torch(output_gradient(case)))
    grads = [conformance_backward.as_arrays(x.grad) for x in inputs]
    check(dict(zip(("q", "kv", "entries", "sink"), grads, strict=True)), case)


def eager(problem: conformance.Problem, inputs: list[torch.Tensor], scale: float) -> torch.Tensor:
    """Attention in the inputs' type, query by query; unseen queries are 0."""
    x, p = operands(problem), problem
    q, kv, entries, sink = inputs
    rows = []
    for b, s in np.ndindex(p.B, p.S):
        at, start = int(x.positions[b, s]), int(x.kv_start[b])
        if at < 0:
            rows.append(torch.zeros_like(q[b, s]))
            continue
        raw = kv[b, max(at - p.window + 1, start, 0) - start : min(at + 1, start + p.T) - start]
        if x.indices is None:
            known = entries[b, : min(p.N, (at + 1) // p.ratio)]
        else:
            known = entries[b, torch.from_numpy(x.indices[b, s][x.indices[b, s] >= 0]).long()]
        keys = torch.cat([raw, known])
        logits = torch.cat([(q[b, s] @ keys.T) * scale, sink[:, None].to(q.dtype)], 1)
        out = logits.softmax(1)[:, :-1] @ keys
        if x.cos is not None:
            c, t = (torch.from_numpy(y[b, s]).to(q.dtype) for y in (x.cos, x.sin))
            even, odd = out[:, p.D - p.rope :: 2], out[:, p.D - p.rope + 1 :: 2]
            turned = torch.stack([even * c + odd * t, odd * c - even * t], -1).flatten(1)
            out = torch.cat([out[:, : p.D - p.rope], turned], 1)
        rows.append(out)
    return torch.stack(rows).view(p.B, p.S, p.H, p.D)


def relative(found: torch.Tensor, exact: torch.Tensor) -> float:
    return float((found.double() - exact).norm() / exact.norm())


@pytest.mark.parametrize("data", ["normal", "student", "outlier"])
@pytest.mark.parametrize("problem", [small, dense])
def test_closer_to_float64_autograd_than_bfloat16_autograd(problem, data):
    case = problem(SEED, data)
    scale = 2.0**-12 if data == "outlier" else operands(case).scale  # else one entry has all the weight
    grad = to_torch(output_gradient(case))
    exact = [x.detach().double().requires_grad_() for x in leaves(case)]
    eager(case, exact, scale).backward(grad.double())
    narrow, ours = leaves(case), leaves(case)
    eager(case, narrow, scale).backward(grad)
    call(case, ours, scale).backward(grad)
    for name, x, other, wide in zip(("q", "kv", "entries", "sink"), ours, narrow, exact, strict=True):
        error = relative(x.grad, wide.grad)
        assert error < relative(other.grad, wide.grad), name
        assert error < 2.5e-3, name


def test_what_a_query_cannot_see_has_no_gradient():
    case = dense(SEED, S=1)
    found = want(case)
    x = operands(case)
    for b in range(case.B):
        complete = (int(x.positions[b, 0]) + 1) // case.ratio
        assert not found["entries"][b, complete:].any()
        assert found["entries"][b, : min(complete, case.N)].any() or x.positions[b, 0] < 0


def test_a_paged_cache_has_no_gradient():
    case = hca(SEED)
    x = operands(case)
    cache = conformance.paged(x.entries, x.pages, case.page)
    inputs = [to_torch(y) for y in (x.q, x.kv, cache, x.sink, x.positions)]
    inputs[0].requires_grad_()
    with pytest.raises(NotImplementedError, match="block_table: a paged cache has no gradient"):
        kf.hca_attention(*inputs, ratio=case.ratio, block_table=to_torch(x.pages))
    with torch.no_grad():
        kf.hca_attention(*inputs, ratio=case.ratio, block_table=to_torch(x.pages))


def test_torch_checks_the_gradients():
    case = small(SEED)
    x = operands(case)
    inputs = leaves(case)
    given = (*inputs[:3], to_torch(x.indices), inputs[3], to_torch(x.positions), 128, x.scale, to_torch(x.kv_start))
    rotation = (to_torch(x.cos), to_torch(x.sin))
    checks = ("test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_static")
    torch.library.opcheck(
        torch.ops.kernelforge.csa_attention.default, (*given, None, *rotation, "exact", None), test_utils=checks
    )
    plain = (
        to_torch(output_gradient(case)),
        *(y.detach() if y.is_floating_point() else y for y in given[:6]),
        *given[6:8],
    )
    torch.library.opcheck(
        torch.ops.kernelforge.compressed_attention_backward.default,
        (*plain, 1, given[8], *rotation, None),
        test_utils=("test_schema", "test_faketensor"),
    )
