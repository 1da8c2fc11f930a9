"""Ragged batches and pages: what the attentions read has the bits of one sequence alone, side by side."""

from __future__ import annotations

import ctypes
import functools

import numpy as np
import pytest
import torch

import kernelforge as kf
from kernelforge.cache import CompressedKV

B, H, D, ROPE, RATIO, WINDOW, TOPK, TOTAL = 3, 2, 64, 32, 4, 32, 12, 160
LENGTHS = (151, 96, 9)
SINK = torch.tensor([0.5, float("-inf")])


@functools.cache
def tokens() -> dict[str, torch.Tensor]:
    draw = torch.Generator().manual_seed(5)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=draw).bfloat16()

    indices = torch.full((B, TOTAL, TOPK), -1, dtype=torch.int32)
    for b in range(B):
        for s in range(TOTAL):
            n = min((s + 1) // RATIO, TOPK)
            indices[b, s, :n] = torch.randperm((s + 1) // RATIO, generator=draw)[:n].int()
    return {
        "q": normal(B, TOTAL, H, D),
        "raw": normal(B, TOTAL, D),
        "entries": normal(B, TOTAL // RATIO, D),
        "keys": normal(B, TOTAL // RATIO, 32),
        "indices": indices,
    }


def made(storage: str, page: int | None, batch: int = B) -> CompressedKV:
    options = {"D": D, "rope": ROPE, "ratio": RATIO, "window": WINDOW, "storage": storage, "index_D": 32}
    return CompressedKV(batch, TOTAL, page=page, **options)


def attend(cache, take, lengths, sequences=None):
    """Feed the next ``lengths`` tokens of chosen sequences; the outputs of both attentions, without padding."""
    chosen = range(B) if sequences is None else sequences
    S = max(lengths)
    before = [cache.lengths[b] for b in chosen]
    done = [length // RATIO for length in before]
    n = max((x + y) // RATIO - z for x, y, z in zip(before, lengths, done, strict=True))

    def piece(name, starts, count):
        rows = [take[name][b][start : start + count] for b, start in zip(chosen, starts, strict=True)]
        # Beyond a sequence's tokens stand others, that must not matter.
        return torch.stack(
            [torch.cat((row, torch.full((count - len(row), *row.shape[1:]), 7).to(row))) for row in rows]
        )

    ragged = None if min(lengths) == S else torch.tensor(lengths, dtype=torch.int32)
    q, raw, indices = (piece(name, before, S) for name in ("q", "raw", "indices"))
    positions = cache.positions(S, ragged, sequences)
    kv, kv_start = cache.with_window(raw, sequences)
    cache.append(raw, piece("entries", done, n), piece("keys", done, n), ragged, sequences)
    indices = torch.where((positions >= 0)[..., None], indices, -1)
    chosen_entries, every = cache.attended(indices, sequences), cache.attended(None, sequences)
    options = {"window": WINDOW, "kv_start": kv_start}
    csa = kf.csa_attention(
        q, kv, chosen_entries.entries, chosen_entries.indices, SINK, positions,
        block_table=chosen_entries.block_table, **options,
    )  # fmt: skip
    hca = kf.hca_attention(q, kv, every.entries, SINK, positions, ratio=RATIO, block_table=every.block_table, **options)
    return [(csa[i, :length], hca[i, :length]) for i, length in enumerate(lengths)]


@functools.cache
def alone(storage: str) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Each sequence at once, in a cache of its own without pages."""
    found = []
    for b, length in enumerate(LENGTHS):
        take = {name: x[b : b + 1] for name, x in tokens().items()}
        found += attend(made(storage, None, 1), take, [length], [0])
    return found


def cuts(seed: int) -> list[tuple[list[int], list[int] | None]]:
    """Random pieces: of the whole batch with different lengths, or of some sequences alone."""
    draw, left, found = np.random.default_rng(seed), list(LENGTHS), []
    while any(left):
        alone = draw.random() < 0.3
        sequences = draw.permutation(B)[: draw.integers(1, B)].tolist() if alone else None
        most = int(draw.choice([1, 1, 5, 17, 64]))
        lengths = [min(left[b], int(draw.integers(0, most + 1))) for b in sequences or range(B)]
        if not any(lengths):
            continue
        for b, length in zip(sequences or range(B), lengths, strict=True):
            left[b] -= length
        found.append((lengths, sequences))
    return found


@pytest.mark.parametrize("storage", ["bfloat16", "float8_e4m3fn"])
@pytest.mark.parametrize("page", [None, 3, 16])
def test_bits_do_not_depend_on_pages_and_appends(page, storage):
    for seed in range(2):
        cache = made(storage, page)
        found = [[] for _ in range(B)]
        for lengths, sequences in cuts(10 * seed + (page or 0)):
            pieces = attend(cache, tokens(), lengths, sequences)
            for b, piece in zip(sequences or range(B), pieces, strict=True):
                found[b].append(piece)
        assert cache.lengths == LENGTHS
        for pieces, wanted in zip(found, alone(storage), strict=True):
            for parts, whole in zip(zip(*pieces, strict=True), wanted, strict=True):
                assert torch.equal(torch.cat(parts).view(torch.int16), whole.view(torch.int16))
        expected = tokens()["entries"]
        kept, (packed, scale) = cache.entries(), cache.index_keys()
        keys, key_scale = kf.quantize_mxfp4(tokens()["keys"])
        for b, length in enumerate(LENGTHS):
            n = length // RATIO
            assert torch.equal(packed[b, :n], keys[b, :n])
            assert torch.equal(scale[b, :n], key_scale[b, :n])
            if storage == "bfloat16":
                assert torch.equal(kept[b, :n], expected[b, :n])
            assert not kept[b, n:].any()


def test_pages_come_back_and_are_given_again():
    """Two sequences that fit the pool only one after the other; what the first left there does not matter."""
    cache = CompressedKV(2, 64, D=D, rope=ROPE, ratio=RATIO, window=WINDOW, storage="bfloat16", page=3, pages=6)
    raw, entries = tokens()["raw"][:1, :64], tokens()["entries"][:1]
    cache.append(raw, torch.full_like(entries[:, :16], float("nan")), sequences=[0])
    assert cache.describe()["pages used"] == 6
    with pytest.raises(ValueError, match="pages: 1 more are needed and 0 of 6 are free"):
        cache.append(raw[:, :4].contiguous(), entries[:, :1].contiguous(), sequences=[1])
    assert cache.lengths == (64, 0)
    cache.reset([0])
    cache.append(raw[:, :40].contiguous(), entries[:, :10].contiguous(), sequences=[1])
    assert cache.describe()["pages used"] == 4
    assert torch.equal(cache.entries([1]), entries[:, :10])
    assert cache.lengths == (0, 40)
    assert cache.state.position.tolist() == [0, 0]


def test_one_sequences_compressor_goes_on_alone():
    draw = torch.Generator().manual_seed(0)
    kv, gate = (torch.randn(2, 13, 2 * D, generator=draw) for _ in range(2))
    bias, weight = torch.randn(RATIO, 2 * D, generator=draw), torch.ones(D)
    cos, sin = torch.ones(16, 16), torch.zeros(16, 16)
    cache = CompressedKV(2, 64, D=D, rope=ROPE, window=WINDOW, state_dtype=torch.float32)
    whole, _ = kf.csa_compress(kv, gate, bias, weight, cos, sin)
    for b, cut in ((1, 5), (0, 2)):
        found = []
        for piece in (slice(0, cut), slice(cut, 13)):
            of_piece = (x[b : b + 1, piece].contiguous() for x in (kv, gate))
            found.append(kf.csa_compress(*of_piece, bias, weight, cos, sin, state=cache.state.rows(b, b + 1))[0])
        assert torch.equal(torch.cat(found, 1), whole[b : b + 1])
    assert cache.state.position.tolist() == [13, 13]


@pytest.mark.parametrize("page", [None, 64])
@pytest.mark.parametrize(
    ("layer", "per_entry"),
    [
        (dict(ratio=4, overlap=True, index_D=128), 448 + 14 + 128 + 64 + 4),
        (dict(ratio=128, overlap=False), 448 + 14 + 128),
        (dict(ratio=4, overlap=True, storage="bfloat16"), 1024),
    ],
    ids=["csa", "hca", "bfloat16"],
)
def test_a_million_tokens_fit_the_computed_bytes(layer, per_entry, page):
    """What is allocated, against the formula: entries, the raw window, and the compressors' unfinished windows."""
    tokens = 1 << 20
    cache = CompressedKV(1, tokens, page=page, **layer)
    ratio, series = layer["ratio"], 3 if layer["overlap"] else 1
    states = sum(2 * 2 * ratio * series * width for width in (512, layer.get("index_D", 0)))
    computed = per_entry * (tokens // ratio) + 2 * 128 * 512 + states
    assert cache.bytes_per_token == per_entry / ratio
    assert computed <= cache.nbytes <= 1.02 * computed


@pytest.mark.slow
@pytest.mark.parametrize("page", [None, 64])
def test_a_million_tokens_take_the_computed_memory(page):
    """Fed in random pieces: growth of the process's resident memory, not the sum of what was asked for."""
    million, draw = 1 << 20, np.random.default_rng(0)
    rows = torch.randn(1, 1 << 14, 512).bfloat16()
    keys = torch.randn(1, 1 << 12, 128)

    def feed(cache: CompressedKV, upto: int) -> None:
        while cache.lengths[0] < upto:
            S = min(int(draw.integers(1, 1 << 14)), upto - cache.lengths[0])
            n = (cache.lengths[0] + S) // 4 - cache.counts[0]
            cache.append(rows[:, :S], rows[:, :n], keys[:, :n])

    small = CompressedKV(1, 1 << 16, index_D=128, page=page)
    feed(small, 1 << 16)  # compiles kernels; stays, so that its memory is not given again
    before = resident()
    cache = CompressedKV(1, million, index_D=128, page=page)
    feed(cache, million)
    assert resident() - before == pytest.approx(cache.bytes_per_token * million, rel=0.02)
    assert cache.nbytes == pytest.approx(cache.bytes_per_token * million, rel=0.02)


def resident() -> int:
    ctypes.CDLL(None).malloc_trim(0)  # what temporaries left behind
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096


def test_mistakes_are_named():
    options = {"D": D, "rope": ROPE, "ratio": RATIO, "storage": "bfloat16"}
    with pytest.raises(ValueError, match="pages: given 4 without page"):
        CompressedKV(1, 16, pages=4, **options)
    with pytest.raises(ValueError, match="page, pages: given 0 and None"):
        CompressedKV(1, 16, page=0, **options)
    cache = CompressedKV(2, 16, page=2, **options)
    raw, entries = torch.zeros(2, 4, D).bfloat16(), torch.zeros(2, 1, D).bfloat16()
    with pytest.raises(ValueError, match=r"sequences: given \[0, 0\], wanted different ones of 0 to 1"):
        cache.append(raw, entries, sequences=[0, 0])
    with pytest.raises(ValueError, match=r"lengths: given \[5, 0\], wanted 0 to 4"):
        cache.append(raw, entries, lengths=torch.tensor([5, 0], dtype=torch.int32))
    with pytest.raises(ValueError, match=r"index_keys: this cache has no indexer"):
        cache.index_keys()
    cache.append(raw.repeat(1, 4, 1), entries.repeat(1, 4, 1))
    with pytest.raises(ValueError, match=r"raw: 4 tokens after 16 exceed the capacity of 16 \(sequence 0\)"):
        cache.append(raw, entries)
