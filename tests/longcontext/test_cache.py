"""kf.cache.CompressedKV holds what was appended, in the bytes that were computed."""

from __future__ import annotations

import pytest
import torch

import kernelforge as kf
from kernelforge.cache import CompressedKV, entry_bytes


def filled(storage: str, steps: list[int], index_D: int = 32):
    torch.manual_seed(0)
    cache = CompressedKV(2, 64, D=96, rope=32, ratio=4, window=8, storage=storage, index_D=index_D)
    raw, entries = torch.randn(2, 64, 96, dtype=torch.bfloat16), torch.randn(2, 16, 96, dtype=torch.bfloat16)
    keys = torch.randn(2, 16, 32)
    fed = 0
    for step in steps:
        done, after = fed // 4, (fed + step) // 4
        cache.append(
            raw[:, fed : fed + step].contiguous(),
            entries[:, done:after].contiguous(),
            keys[:, done:after].contiguous() if index_D else None,
        )
        fed += step
    return cache, raw[:, :fed], entries[:, : fed // 4], keys[:, : fed // 4]


@pytest.mark.parametrize("steps", [[23], [1] * 23, [7, 0, 9, 7]], ids=str)
def test_entries_come_back_however_they_were_appended(steps):
    cache, raw, entries, keys = filled("bfloat16", steps)
    assert torch.equal(cache.entries(), entries)
    assert torch.equal(cache.window, raw[:, -8:])
    packed, scale = kf.quantize_mxfp4(keys.contiguous())
    kept = cache.index_keys()
    assert torch.equal(kept[0][:, : packed.shape[1]], packed)
    assert torch.equal(kept[1][:, : packed.shape[1]], scale)


def test_eight_bit_storage_rounds_what_is_not_rotary():
    cache, _, entries, _ = filled("float8_e4m3fn", [20])
    codes, scale = kf.quantize_mxfp8(entries[..., :64].contiguous())
    values = codes.float() * torch.exp2(scale.float() - 127).repeat_interleave(32, -1)
    assert torch.equal(cache.entries()[..., :64].float(), values)
    assert torch.equal(cache.entries()[..., 64:], entries[..., 64:])


def test_a_window_that_is_not_full_holds_what_there_is():
    cache, raw, _, _ = filled("bfloat16", [3])
    assert torch.equal(cache.window, raw)
    assert cache.entries().shape == (2, 0, 96)


def test_compressors_and_cache_share_their_state():
    torch.manual_seed(1)
    cache = CompressedKV(1, 32, D=64, rope=32, ratio=4, window=8, storage="bfloat16", state_dtype=torch.float32)
    kv, gate = torch.randn(1, 32, 128), torch.randn(1, 32, 128)
    bias, weight = torch.randn(4, 128), torch.ones(64)
    cos, sin = torch.ones(32, 16), torch.zeros(32, 16)
    whole, _ = kf.csa_compress(kv, gate, bias, weight, cos, sin)
    for t in range(32):
        token = (x[:, t : t + 1].contiguous() for x in (kv, gate))
        entries, _ = kf.csa_compress(*token, bias, weight, cos, sin, state=cache.state)
        cache.append(torch.randn(1, 1, 64, dtype=torch.bfloat16), entries)
    assert torch.equal(cache.entries(), whole.bfloat16())
    assert cache.describe()["entries"] == 8


def test_mistakes_are_named():
    with pytest.raises(ValueError, match="storage: given 'int8'"):
        CompressedKV(1, 16, storage="int8")
    with pytest.raises(ValueError, match="D: given 100"):
        CompressedKV(1, 16, D=100)
    cache, *_ = filled("bfloat16", [60])
    raw = torch.zeros(2, 8, 96, dtype=torch.bfloat16)
    with pytest.raises(ValueError, match="exceed the capacity of 64"):
        cache.append(raw, raw[:, :2])
    with pytest.raises(ValueError, match=r"entries: given bfloat16\[2, 2, 96\]"):
        cache.append(raw[:, :4].contiguous(), raw[:, :2].contiguous(), torch.zeros(2, 2, 32))
    with pytest.raises(TypeError, match="index_entries: missing"):
        cache.append(raw[:, :4].contiguous(), raw[:, :1].contiguous())
    alone, *_ = filled("bfloat16", [4], index_D=0)
    with pytest.raises(ValueError, match="has no indexer"):
        alone.append(raw[:, :4].contiguous(), raw[:, :1].contiguous(), torch.zeros(2, 1, 32))


def test_bytes_of_an_entry():
    assert entry_bytes(512, 64, "float8_e4m3fn", 128) == 448 + 14 + 128 + 64 + 4
    assert entry_bytes(512, 64, "bfloat16") == 1024
