"""The long-context report: computed from shapes, close to what was published."""

from __future__ import annotations

import pytest
from click.testing import CliRunner

from kernelforge.cli import main
from kernelforge.longcontext.chain import CSA, PARTS, Shape
from kernelforge.longcontext.measure import constant, decode_costs, report, slope
from kernelforge.longcontext.model import FLASH, MODELS, PRO, V32
from kernelforge.longcontext.plot import plot_measured

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


SMALL = dict(heads=4, D=64, rope=32, window=32, index_heads=4, index_channels=64, groups=2, rank=32, hidden=64)


class Ticks:
    """A clock that counts its readings."""

    def __init__(self) -> None:
        self.read = 0

    def __call__(self) -> float:
        self.read += 1
        return self.read / 1e3


def test_a_measured_token_is_the_sum_of_its_parts():
    shape = Shape("CSA", 4, 16, **SMALL)
    costs = decode_costs(shape, contexts=(40, 80), groups=2, clock=Ticks())
    assert [cost.context for cost in costs] == [40, 80]
    for cost in costs:
        # One reading after each part: each took a tick.
        assert all(cost.of(part) == pytest.approx(1e-3) for part in PARTS)
        assert cost.total == pytest.approx(len(PARTS) * 1e-3)


def test_the_slope_is_what_an_entry_adds():
    costs = decode_costs(Shape("CSA", 4, 16, **SMALL), contexts=(40, 80), groups=1, clock=Ticks())
    costs[1].seconds["index and select"] = [21e-3]
    assert slope(costs, 4) == pytest.approx(20e-3 / 10)
    assert constant(costs, "index and select") == pytest.approx((4e-3, 4e-3))


def test_measured_rows_are_reported_and_plotted(tmp_path):
    shapes = (Shape(CSA.name, 4, 16, **SMALL), Shape("HCA", 8, 0, **SMALL))
    told: list[str] = []
    made = report("typed", shapes=shapes, contexts=(40, 80), groups=1, observe=told.append)
    assert told == ["CSA layer after 40 to 80 tokens", "HCA layer after 40 to 80 tokens"]
    assert [row.name for row in made.rows] == [f"{name}, {n} tokens" for name in ("CSA", "HCA") for n in (40, 80)]
    assert sum("adds" in note for note in made.notes) == 2
    plot_measured(made, tmp_path / "measured.svg")
    assert "<svg" in (tmp_path / "measured.svg").read_text()
