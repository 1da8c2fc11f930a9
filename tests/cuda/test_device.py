"""What only a GPU can show beside ``kernelforge conform --backends cuda``."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

import kernelforge as kf
from kernelforge.ops.mx_quantize import reference as quantization
from kernelforge.ops.mxfp4_gemm import reference

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
N, K = 70, 160  # those of conformance cases


def operands(M: int, seed: int) -> tuple[torch.Tensor, ...]:
    draw = np.random.default_rng(seed)
    codes = [draw.integers(0, 256, (rows, K // 2), np.uint8) for rows in (M, N)]
    scales = [draw.integers(120, 134, (rows, K // 32), np.uint8) for rows in (M, N)]
    return tuple(torch.from_numpy(x).cuda() for x in (codes[0], scales[0], codes[1], scales[1]))


def wanted(given: tuple[torch.Tensor, ...]) -> torch.Tensor:
    bits = reference.mxfp4_gemm(*(x.cpu().numpy() for x in given), "e2m1", "bfloat16")
    return torch.from_numpy(bits.view(np.int16)).view(torch.bfloat16)


def equal(out: torch.Tensor, given: tuple[torch.Tensor, ...]) -> bool:
    return torch.equal(out.cpu().view(torch.int16), wanted(given).view(torch.int16))


def test_replays_of_a_graph_read_what_is_there_then():
    given = operands(7, 0)
    kf.mxfp4_gemm(*given)  # loads the kernel
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = kf.mxfp4_gemm(*given)
    for seed in (1, 2):
        for old, new in zip(given, operands(7, seed), strict=True):
            old.copy_(new)
        graph.replay()
        assert equal(out, given)


def test_the_current_stream_is_used():
    stream, given = torch.cuda.Stream(), operands(7, 3)
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        torch.cuda._sleep(100_000_000)  # what is on another stream would run before
        later = [torch.zeros_like(x) for x in given]
        for old, new in zip(later, given, strict=True):
            old.copy_(new)
        out = kf.mxfp4_gemm(*later)
    stream.synchronize()
    assert equal(out, given)


def test_slices_between_multiples_of_16_bytes():
    a, a_scale, w, w_scale = operands(7, 4)
    odd = torch.cat([a.view(-1)[:1], a.view(-1)])[1:].view_as(a)
    assert odd.data_ptr() % 16 == 1
    assert equal(kf.mxfp4_gemm(odd, a_scale, w, w_scale), (a, a_scale, w, w_scale))


def test_more_rows_than_a_grid_is_high():
    x = np.random.default_rng(5).standard_normal((70_000, 32), np.float32)
    codes, scale = kf.quantize_mxfp4(torch.from_numpy(x).cuda())
    again = quantization.quantize_mxfp4(x)
    assert np.array_equal(codes.cpu().numpy(), again[0])
    assert np.array_equal(scale.cpu().numpy(), again[1])


def test_compiled_whole():
    given = operands(7, 6)
    compiled = torch.compile(lambda *x: kf.mxfp4_gemm(*x) + 0, fullgraph=True)
    assert equal(compiled(*given), given)


def test_threads_launch_side_by_side():
    many = [operands(7, seed) for seed in range(7, 23)]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda given: kf.mxfp4_gemm(*given), many * 4))
    assert all(equal(out, given) for out, given in zip(found, many * 4, strict=True))
