"""Every index lies inside, every output element is stored once; and kernels where that is not so are refused."""

from __future__ import annotations

import pytest

from kernelforge.ops.spec import spec
from kernelforge.proofs import ProofError, compress_maps, prove
from kernelforge.proofs.index_bounds import prove_kernel, theorems
from kernelforge.proofs.tile_maps import tile_maps
from kernelforge.runtime import KernelSpec

MAPS = [*tile_maps(), *compress_maps.tile_maps()]


@pytest.mark.parametrize("tile_map", MAPS, ids=[m.name for m in MAPS])
def test_tile_maps_are_proved(tile_map):
    claimed = tile_map.theorems()
    for theorem in claimed:
        prove(theorem)
    kinds = {theorem.name.partition("_")[0] for theorem in claimed}
    written = {theorem.name.partition("_")[2] for theorem in claimed if theorem.name.startswith("once_")}
    complete = {theorem.name.partition("_")[2] for theorem in claimed if theorem.name.startswith("complete_")}
    assert {"inside", "once"} <= kinds
    assert complete == written - set(tile_map.partial)


@pytest.mark.parametrize("op", ["mx_quantize", "sinkhorn"])
def test_the_kernels_at_model_shapes_are_proved(op):
    for kernel in spec(op).kernel_specs("cpu").values():
        assert prove_kernel(kernel)


def refused(builder: str, **parameters: int) -> set[str]:
    """Names of the theorems that do not hold."""
    found = set()
    for theorem in theorems(KernelSpec.of(f"broken_kernels:{builder}", **parameters)):
        try:
            prove(theorem)
        except ProofError as error:
            found.add(theorem.name if "fails for" in str(error) else str(error))
    return found


def test_a_right_map_is_proved():
    assert refused("doubled") == set()


@pytest.mark.parametrize(
    ("parameters", "wrong"),
    [
        ({"step": 12}, {"once_out"}),  # tiles overlap
        ({"step": 20}, {"complete_out"}),  # rows between tiles
        ({"blocks": 4}, {"inside_x", "complete_out"}),  # M is not 64
        ({"last": 39}, {"complete_out"}),  # a column is left out
        ({"last": 41}, {"inside_tile", "inside_out"}),  # a column too many
        ({"lane": 2}, {"once_out", "complete_out"}),  # two indices of a parallel loop store to one element
    ],
)
def test_a_wrong_map_is_refused(parameters, wrong):
    assert refused("doubled", **parameters) == wrong


def test_stores_that_data_decides_are_refused():
    assert refused("scattered") == {"inside_out", "once_out", "complete_out"}


def test_a_missing_guard_is_found():
    assert refused("unguarded") == {"inside_out"}


def test_what_offsets_hold_is_needed():
    grouped = next(m for m in MAPS if m.name.startswith("grouped"))
    with pytest.raises(ProofError, match="inside_"):
        prove_kernel(grouped.spec)


def test_what_sequences_hold_is_needed():
    """Without a sequence's length being at most its rows, a compressor would read another one's tokens, or none."""
    compress = next(m for m in MAPS if m.name == "HCA compress")
    with pytest.raises(ProofError, match="inside_"):
        prove_kernel(compress.spec, premises=compress.premises)
