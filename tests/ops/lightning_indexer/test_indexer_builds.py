"""The indexer's kernels at DeepSeek-V4's shapes compile to machine code that keeps everything in registers."""

from __future__ import annotations

import json

import pytest

from kernelforge import backends
from kernelforge.ops.lightning_indexer.conformance import kernels
from kernelforge.runtime import artifact


@pytest.mark.slow
@pytest.mark.parametrize("arch", ["sm_80", "sm_90a"])
@pytest.mark.parametrize("variant", sorted(kernels("cuda")))
def test_machine_code_does_not_spill(variant, arch):
    directory, _ = artifact(kernels("cuda")[variant], backends.backend("cuda"), arch)
    report = json.loads((directory / "resources.json").read_text())
    assert report["warnings"] == []
    for used in report["kernels"].values():
        assert 0 < used["registers"] <= 255
        assert used["spill_store_bytes"] == used["spill_load_bytes"] == used["stack_bytes"] == 0
