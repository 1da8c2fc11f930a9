"""Golden tests of the passes that give attention and the indexer to microkernels, on the ops' own kernels."""

from __future__ import annotations

import re
from typing import Any

import pytest

from kernelforge import lowering
from kernelforge.ops.spec import specs
from kernelforge_cpu.passes.fuse_attention import fuse_attention
from kernelforge_cpu.passes.take_indexer import take_indexer
from kernelforge_cpu.passes.take_rounded_dot import take_rounded_dot
from kernelforge_cpu.passes.take_weighted_mean import take_weighted_mean


def _traced(op: str, variant: str, **changes: Any) -> Any:
    spec = specs()[op].kernel_specs("cpu")[variant]
    return lowering.trace(spec.builder, {**dict(spec.parameters), **changes})


def _lines(function: Any) -> list[str]:
    return [line.strip() for line in function.script().splitlines() if line.strip()]


def _calls(function: Any) -> list[str]:
    """Microkernel and arguments of each call."""
    found = re.findall(r'"kf_checked", T\.call_extern\("int32", "(kf_\w+)", (.*)\)\)', function.script())
    return [f"{name}: {arguments}" for name, arguments in found]


@pytest.mark.parametrize("variant", ["csa", "hca"])
def test_fuse_attention_golden(variant: str) -> None:
    before = _traced("compressed_attention", variant)
    after = fuse_attention(before)
    assert any('"kf.composite"' in line for line in _lines(before))
    cut, chunk = _calls(after)
    assert cut == (
        "kf_cut_rows: T.address_of(tile_1[0, 0]), T.address_of(q_high[0, 0]), T.address_of(q_low[0, 0]), "
        "T.address_of(q_exponent[0]), 64, 512"
    )
    assert chunk.startswith(
        "kf_attention_chunk: T.address_of(m[0]), T.address_of(l[0]), T.address_of(tile[0, 0]), T.int64(512), "
        "T.address_of(q_high[0, 0]), T.address_of(q_low[0, 0]), T.address_of(q_exponent[0]), T.address_of(kv[0, 0]), "
        "T.address_of(entries[0, 0]), T.address_of(segment[0]), T.address_of(rows[0]), 64, 512, "
    )
    assert not any("T.gemm" in line for line in _lines(after)), "the products are inside the microkernel"


def test_fuse_attention_golden_in_native_mode() -> None:
    (chunk,) = _calls(fuse_attention(_traced("compressed_attention", "csa", native=True)))
    assert chunk.startswith(
        "kf_attention_chunk_native: T.address_of(m[0]), T.address_of(l[0]), T.address_of(tile[0, 0]), T.int64(512), "
        "T.address_of(q_rows[0, 0]), T.address_of(kv[0, 0]), T.address_of(entries[0, 0]), T.address_of(segment[0]), "
        "T.address_of(rows[0]), 64, 512, "
    )


def test_take_rounded_dot_golden() -> None:
    before = _traced("lightning_indexer", "logits-bf16", native=True)
    after = take_rounded_dot(before)
    assert sum('"rounded_dot"' in line for line in _lines(before)) == 1
    assert not any('"rounded_dot"' in line for line in _lines(after))
    (call,) = _calls(after)
    tile = r"T\.address_of\(\w+\[0, 0\]\)"
    assert re.fullmatch(rf"kf_rounded_dot: {tile}, {tile}, {tile}, \d+, 64, 128", call), call


def test_take_rounded_dot_leaves_other_kernels_alone() -> None:
    before = _traced("lightning_indexer", "logits")
    assert _lines(take_rounded_dot(before)) == _lines(before)


def test_fuse_attention_leaves_other_kernels_alone() -> None:
    before = _traced("compressed_attention", "products")
    assert _lines(fuse_attention(before)) == _lines(before)


def test_take_indexer_golden_for_scores() -> None:
    before = _traced("lightning_indexer", "logits")
    after = take_indexer(before)
    removed = [line for line in _lines(before) if line.startswith("T.copy") and line not in _lines(after)]
    assert len(removed) == 4, "queries, keys and their scales are read where they lie"
    (call,) = _calls(after)
    where = r"T\.address_of\({0}\[row\w*\[0\], T\.call_pure_extern\(\"int64\", \"kf_index\", 0\)\]\)"
    stored = [where.format(name) for name in ("Q", "Q_scale", "K", "K_scale")]
    assert re.fullmatch(
        r"kf_indexer_scores: T\.address_of\(scores\[0, 0\]\), T\.int64\(\d+\), "
        rf"{stored[0]}, T\.Cast\(\"int64\", 64\), {stored[1]}, T\.Cast\(\"int64\", 4\), "
        rf"{stored[2]}, T\.Cast\(\"int64\", 64\), {stored[3]}, T\.Cast\(\"int64\", 4\), "
        r"T\.address_of\(weight\[0, 0\]\), T\.int64\(64\), T\.address_of\(visible\[0\]\), \d+, \d+, 64, 128",
        call,
    ), call


def test_take_indexer_golden_for_selection() -> None:
    after = take_indexer(_traced("lightning_indexer", "flash"))
    assert [call.partition(":")[0] for call in _calls(after)] == [
        "kf_indexer_scores",
        "kf_select_append",
        "kf_select_reduce",
        "kf_select_sort",
    ]
    assert not any('"kf.composite"' in line for line in _lines(after))


def test_take_indexer_leaves_other_kernels_alone() -> None:
    before = _traced("compressed_attention", "rotate")
    assert take_indexer(before).same_as(before)


def test_take_weighted_mean_golden() -> None:
    before = _traced("compress", "csa", D=96, block_C=96)
    after = take_weighted_mean(before)
    place = 'T.call_pure_extern("int64", "kf_index", first_column[0])'
    assert _calls(after) == [
        f"kf_weighted_mean: T.address_of(mean[0]), T.address_of(kv[0, {place}]), T.address_of(gate[0, {place}]), "
        f'T.address_of(position_bias[0, {place}]), T.Cast("int64", 192), T.Cast("int64", first_row_1[0]), '
        'T.Cast("int64", rows), 4, 8, 96, 96, 0',
        'kf_finish_entry: T.address_of(entries[row[0], T.call_pure_extern("int64", "kf_index", 0)]), '
        "T.address_of(entry[0, 0]), T.address_of(norm_weight[0]), T.address_of(cos[0, 0]), T.address_of(sin[0, 0]), "
        'T.Cast("int64", positions), T.Cast("int64", at[0]), 4, 96, 32, 897988541, 0',
    ]
    plain = _traced("compress", "csa_state")
    assert take_weighted_mean(plain).same_as(plain)


def test_take_weighted_mean_golden_for_gradients() -> None:
    def at(buffer: str) -> str:
        return f'T.address_of({buffer}[0, T.call_pure_extern("int64", "kf_index", column[0])])'

    (mean,) = _calls(take_weighted_mean(_traced("compress", "csa_entry_gradient")))
    assert mean == (
        f"kf_known_mean: T.address_of(mean[0]), T.address_of(top[0]), T.address_of(share[0]), {at('kv')}, "
        f'{at("gate")}, {at("position_bias")}, T.Cast("int64", 1024), '
        'T.Cast("int64", first_row[0] + window[0] * 4 - 4), T.Cast("int64", rows), '
        "T.max(4 - window[0] * 4, 0), 4, 8, 512, 512, 0"
    )
    (gradient,) = _calls(take_weighted_mean(_traced("compress", "hca_token_gradient", block_C=128)))
    assert gradient == (
        f"kf_mean_gradient: T.address_of(acc[0, 0]), {at('kv_grad')}, {at('gate_grad')}, T.address_of(top[0]), "
        f"T.address_of(share[0]), T.address_of(mean[0]), T.address_of(slope[0]), {at('kv')}, {at('gate')}, "
        f'{at("position_bias")}, T.Cast("int64", 512), T.Cast("int64", first_row[0] + window[0] * 128), '
        'T.Cast("int64", rows), T.max(0 - window[0] * 128, 0), 128, 128, 512, 128, 0'
    )


def test_take_weighted_mean_leaves_other_numbers_of_slots_alone() -> None:
    before = _traced("compress", "hca_entry_gradient", ratio=100)
    assert not _calls(take_weighted_mean(before))
