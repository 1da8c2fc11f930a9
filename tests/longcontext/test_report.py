"""The long-context report: computed from shapes, close to what was published."""

from __future__ import annotations

import pytest
from click.testing import CliRunner

from kernelforge.cli import main
from kernelforge.longcontext.model import FLASH, MODELS, PRO, V32

MILLION = 1 << 20


@pytest.mark.parametrize("model", [PRO, FLASH], ids=lambda model: model.name)
def test_the_cache_is_the_published_share_of_v32s(model):
    share = model.cache_bytes(MILLION) / V32.cache_bytes(MILLION)
    assert share == pytest.approx(model.published_cache, abs=0.01)


def test_operations_are_near_the_published_shares():
    assert PRO.operations(MILLION) / V32.operations(MILLION) == pytest.approx(PRO.published_operations, abs=0.01)
    # Operations of every precision count alike here; the published shares count in FP8 operations.
    assert 0.08 < FLASH.operations(MILLION) / V32.operations(MILLION) < 0.13


def test_short_contexts_cost_what_the_weights_cost():
    for model in MODELS:
        assert model.operations(1024) == pytest.approx(2 * model.activated, rel=0.25)


def test_the_command_prints_a_row_per_model_and_plots(tmp_path):
    picture = tmp_path / "longcontext.svg"
    done = CliRunner().invoke(main, ["report", "longcontext", "--plot", str(picture)], env={"COLUMNS": "140"})
    assert done.exit_code == 0, done.output
    assert all(model.name in done.output for model in MODELS)
    assert "<svg" in picture.read_text()
