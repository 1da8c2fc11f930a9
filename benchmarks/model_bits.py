"""Digests of every op's bits at DeepSeek-V4-Flash's shapes, for comparing machines where conformance cases are small.

``python benchmarks/model_bits.py --device cuda`` writes ``benchmarks/results/model_bits-cuda.json``; with ``--against``
another machine's file it names the calls whose bits differ, and ends with exit code 1 where any do. Operands are drawn
by NumPy, whose streams are the same everywhere.
"""

from __future__ import annotations

import argparse
import datetime
import hashlib
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

import kernelforge as kf
from kernelforge.ops.support import home_of

RESULTS = Path(__file__).resolve().parent / "results"
Call = Callable[[], Any]


class Draw:
    """Operands on ``home``, from a seed."""

    def __init__(self, home: str, seed: int) -> None:
        self.home, self.numbers = home, np.random.default_rng(seed)

    def normal(self, *shape: int, scale: float = 1.0) -> torch.Tensor:
        found = self.numbers.standard_normal(shape, np.float32) * np.float32(scale)
        return torch.from_numpy(found).to(self.home)

    def put(self, array: np.ndarray[Any, Any]) -> torch.Tensor:
        return torch.from_numpy(np.ascontiguousarray(array)).to(self.home)


def gemm(device: str, draw: Draw) -> Iterator[tuple[str, Call]]:
    N = K = 4096
    w, w_scale = kf.quantize_mxfp4(draw.normal(N, K, scale=K**-0.5), backend=device)
    yield "quantize_mxfp4", lambda: (w, w_scale)
    for M in (1, 512):
        x = draw.normal(M, K)
        for name, quantize in (("W4A4", kf.quantize_mxfp4), ("W4A8", kf.quantize_mxfp8)):
            a, a_scale = quantize(x, backend=device)
            yield f"mxfp4_gemm {name} M={M}", lambda a=a, s=a_scale: kf.mxfp4_gemm(a, s, w, w_scale, backend=device)
        wide = x.bfloat16()
        yield f"mxfp4_gemm W4A16 M={M}", lambda a=wide: kf.mxfp4_gemm(a, None, w, w_scale, backend=device)


def experts(device: str, draw: Draw) -> Iterator[tuple[str, Call]]:
    count, hidden, inter, slots = 16, 4096, 2048, 6
    weights = [
        packed
        for rows, columns in ((2 * inter, hidden), (hidden, inter))
        for packed in kf.quantize_mxfp4(draw.normal(count, rows, columns, scale=columns**-0.5), backend=device)
    ]
    for tokens in (64, 1024):
        x = draw.normal(tokens, hidden).bfloat16()
        chosen = draw.put(draw.numbers.random((tokens, count)).argsort(1)[:, :slots].astype(np.int32))
        weight = draw.put(draw.numbers.random((tokens, slots), np.float32))
        yield (
            f"mega_moe T={tokens}",
            lambda given=(x, chosen, weight): kf.mega_moe(*given, *weights, swiglu_limit=10.0, backend=device),
        )


def attention(device: str, draw: Draw) -> Iterator[tuple[str, Call]]:
    H, D, window = 64, 512, 128
    sink = draw.normal(H)
    for S, first in ((1, 65535), (1024, 0)):
        q = draw.normal(1, S, H, D).bfloat16()
        kv = draw.normal(1, window if first else S, D).bfloat16()
        positions = np.arange(first, first + S)
        at = draw.put(positions[None])
        for kind, ratio in (("csa", 4), ("hca", 128)):
            count = max((first + S) // ratio, 1)
            entries = draw.normal(1, count, D).bfloat16()
            if kind == "hca":
                yield (
                    f"hca_attention S={S}",
                    lambda g=(q, kv, entries, at): kf.hca_attention(*g[:3], sink, g[3], window, backend=device),
                )
                continue
            complete = ((positions + 1) // ratio)[:, None]
            ranks = np.where(np.arange(count) < complete, draw.numbers.random((S, count)), 2.0)
            picked = ranks.argsort(1, kind="stable")[:, :512]
            indices = draw.put(np.where(picked < complete, picked, -1)[None].astype(np.int32))
            yield (
                f"csa_attention S={S}",
                lambda g=(q, kv, entries, indices, at): kf.csa_attention(*g[:4], sink, g[4], window, backend=device),
            )


def indexer(device: str, draw: Draw) -> Iterator[tuple[str, Call]]:
    H, D = 64, 128
    for S, T in ((1, 1 << 14), (4096, 1024)):
        q = kf.quantize_mxfp4(draw.normal(S, H, D), backend=device)
        k = kf.quantize_mxfp4(draw.normal(T, D), backend=device)
        weights = draw.normal(S, H, scale=(H * D) ** -0.5)
        seen = draw.put(((np.arange(S) + 1) // 4 if S > 1 else np.full(1, T)).astype(np.int32))
        yield (
            f"lightning_indexer S={S} T={T}",
            lambda g=(*q, *k, weights), n=seen: kf.lightning_indexer(*g, 512, n, backend=device),
        )


def compression(device: str, draw: Draw) -> Iterator[tuple[str, Call]]:
    tokens, D, pairs = 4096, 512, 32
    angles = np.outer(np.arange(tokens, dtype=np.float64), 1e4 ** (-np.arange(pairs) / pairs))
    # Rounded to few bits, so that machines whose cosines differ in the last place draw the same.
    turns = [draw.put(np.round(f(angles) * 2**16).astype(np.float32) / np.float32(2**16)) for f in (np.cos, np.sin)]
    for kind, op, ratio, series in (("csa", kf.csa_compress, 4, 2), ("hca", kf.hca_compress, 128, 1)):
        for dtype in (torch.float32, torch.bfloat16):
            kv, gate = (draw.normal(1, tokens, series * D).to(dtype) for _ in range(2))
            rest = (draw.normal(ratio, series * D), draw.normal(D), *turns)
            name = str(dtype).removeprefix("torch.")
            yield (
                f"{kind}_compress {name}",
                lambda op=op, g=(kv, gate, *rest), r=ratio: op(*g, r, backend=device)[0],
            )


def streams(device: str, draw: Draw) -> Iterator[tuple[str, Call]]:
    tokens, n, C = 4096, 4, 4096
    x = draw.normal(1, tokens, n, C).bfloat16()
    outputs = n * (n + 2)
    pre = (x, draw.normal(outputs, n * C, scale=0.02), draw.normal(3, scale=0.1), draw.normal(outputs))
    yield "mhc_pre", lambda: kf.mhc_pre(*pre, backend=device)
    y, gates, comb = (draw.normal(1, tokens, *shape) for shape in ((C,), (n,), (n, n)))
    yield "mhc_post", lambda: kf.mhc_post(y.bfloat16(), x, gates, comb, backend=device)
    logits = draw.normal(tokens, n, n)
    yield "sinkhorn", lambda: kf.sinkhorn(logits, backend=device)


def projection(device: str, draw: Draw) -> Iterator[tuple[str, Call]]:
    heads, width, groups, rank, hidden = 64, 512, 8, 1024, 4096
    K = heads // groups * width
    wa = draw.normal(groups, rank, K, scale=K**-0.5).bfloat16()
    wb = draw.normal(hidden, groups * rank, scale=(groups * rank) ** -0.5).bfloat16()
    (qa, sa), (qb, sb) = (kf.quantize_mxfp4(w, backend=device) for w in (wa, wb))
    for tokens in (1, 512):
        o = draw.normal(tokens, heads, width).bfloat16()
        yield (
            f"grouped_output_projection BF16 {tokens}",
            lambda o=o: kf.grouped_output_projection(o, wa, wb, backend=device),
        )
        yield (
            f"grouped_output_projection MXFP4 {tokens}",
            lambda o=o: kf.grouped_output_projection(o, qa, qb, sa, sb, backend=device),
        )


def gradients(device: str, draw: Draw) -> Iterator[tuple[str, Call]]:
    """What training adds, on fewer tokens or experts than a layer has."""

    def leaf(*shape: int, scale: float = 1.0, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
        return draw.normal(*shape, scale=scale).to(dtype).requires_grad_()

    def of(call: Call, leaves: list[torch.Tensor]) -> Call:
        """The gradients of ``leaves`` from one drawn for the call's results."""

        def backward() -> tuple[torch.Tensor, ...]:
            found = call()
            results = found if isinstance(found, tuple) else (found,)
            numbers = np.random.default_rng(1)
            grads = [
                torch.from_numpy(numbers.standard_normal(tuple(r.shape), np.float32)).to(r.device, r.dtype)
                for r in results
            ]
            return torch.autograd.grad(results, leaves, grads)

        return backward

    f32 = torch.float32
    logits = leaf(4096, 4, 4, dtype=f32)
    yield "sinkhorn gradient", of(lambda: kf.sinkhorn(logits, backend=device), [logits])
    tokens, n, C = 512, 4, 4096
    pre = [
        leaf(1, tokens, n, C),
        leaf(24, n * C, scale=0.02, dtype=f32),
        leaf(3, scale=0.1, dtype=f32),
        leaf(24, dtype=f32),
    ]
    yield "mhc_pre gradient", of(lambda: kf.mhc_pre(*pre, backend=device), pre)
    post = [leaf(1, tokens, C), leaf(1, tokens, n, C), leaf(1, tokens, n, dtype=f32), leaf(1, tokens, n, n, dtype=f32)]
    yield "mhc_post gradient", of(lambda: kf.mhc_post(*post, backend=device), post)
    angles = draw.numbers.integers(-(2**16), 2**16, (2, 4096, 32)).astype(np.float32) / np.float32(2**16)
    turns = [draw.put(angles[0]), draw.put(angles[1])]
    for kind, op, ratio, series in (("csa", kf.csa_compress, 4, 2), ("hca", kf.hca_compress, 128, 1)):
        width = series * 512
        given = [leaf(1, 4096, width), leaf(1, 4096, width), leaf(ratio, width, dtype=f32), leaf(512, dtype=f32)]
        yield (
            f"{kind}_compress gradient",
            of(lambda op=op, g=given, r=ratio: op(*g, *turns, r, backend=device)[0], given),
        )
    q, kv, sink = leaf(1, 256, 64, 512), leaf(1, 256, 512), leaf(64, dtype=f32)
    positions = draw.put(np.arange(256)[None])
    entries = leaf(1, 2, 512)
    yield (
        "hca_attention gradient",
        of(lambda: kf.hca_attention(q, kv, entries, sink, positions, 128, backend=device), [q, kv, entries, sink]),
    )
    wide = [leaf(64, 64, 512), leaf(8, 1024, 4096, scale=2**-6), leaf(4096, 8192, scale=2**-7)]
    yield (
        "grouped_output_projection gradient",
        of(lambda: kf.grouped_output_projection(*wide, backend=device), wide),
    )
    scored = [leaf(256, 64, 128), leaf(1024, 128), leaf(256, 64, scale=2**-6, dtype=f32)]
    yield (
        "indexer_logits gradient",
        of(
            lambda: kf.indexer_logits(scored[0], None, scored[1], None, scored[2], quantize=True, backend=device),
            scored,
        ),
    )
    experts = kf.nn.MXFP4Experts.from_dense(
        draw.normal(4, 1024, 1024, scale=2**-5), draw.normal(4, 1024, 512, scale=2**-5), trainable=True, backend=device
    ).to(draw.home)
    x, weight = leaf(256, 1024), leaf(256, 2, dtype=f32)
    chosen = draw.put(draw.numbers.random((256, 4)).argsort(1)[:, :2].astype(np.int32))
    yield (
        "MXFP4Experts gradient",
        of(lambda: experts(x, chosen, weight), [x, weight, experts.gate_up, experts.down]),
    )


GROUPS = (gemm, experts, attention, indexer, compression, streams, projection, gradients)


def digest(found: Any) -> str:
    """SHA-256 of a result's bytes."""
    state = hashlib.sha256()
    for tensor in found if isinstance(found, tuple) else (found,):
        state.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return state.hexdigest()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu", help="a device of kernelforge")
    parser.add_argument("--only", default="", help="one of " + ", ".join(group.__name__ for group in GROUPS))
    parser.add_argument("--repeats", type=int, default=1, help="calls, which must all have the same bits")
    parser.add_argument("--against", type=Path, help="what another machine wrote")
    parser.add_argument("--out", type=Path, default=RESULTS)
    given = parser.parse_args()
    other = json.loads(given.against.read_text())["digests"] if given.against else {}
    digests, differ = {}, []
    for number, group in enumerate(GROUPS):
        if given.only not in ("", group.__name__):
            continue
        for name, call in group(given.device, Draw(home_of(given.device), number)):
            begun = time.perf_counter()
            found = {digest(call()) for _ in range(given.repeats)}
            digests[name] = min(found)
            same = len(found) == 1 and other.get(name, digests[name]) == digests[name]
            differ += [] if same else [name]
            verdict = "differs" if not same else "same bits" if name in other else "no other to compare with"
            print(f"{name}: {digests[name][:16]} {verdict}, {time.perf_counter() - begun:.2f} s", flush=True)
    given.out.mkdir(parents=True, exist_ok=True)
    report = {"date": datetime.date.today().isoformat(), "device": given.device, "digests": digests}
    (given.out / f"model_bits-{given.device}.json").write_text(json.dumps(report, indent=1) + "\n")
    if differ:
        raise SystemExit(f"{len(differ)} of {len(digests)} differ: {', '.join(differ)}")


if __name__ == "__main__":
    main()
