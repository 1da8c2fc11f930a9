"""kernelforge moe-plan: the plan, its chart, and what it says when something is missing."""

from __future__ import annotations

import sys

import pytest
from click.testing import CliRunner

from kernelforge.cli import main

CLUSTER = ["--tokens", "512", "--ranks", "8", "--tflops", "1000", "--bandwidth", "100"]


def _run(*arguments: str):
    return CliRunner().invoke(main, ["moe-plan", *arguments])


def test_the_plan_names_every_schedule_and_its_gain():
    result = _run("--model", "v4-flash", *CLUSTER)
    assert result.exit_code == 0, result.output
    assert all(schedule in result.output for schedule in ("serial", "two_stage", "waves"))
    assert "no overlap can gain more than" in result.output


def test_sizes_of_ones_own_with_a_wave_count():
    sizes = ["--hidden", "1024", "--inter", "512", "--experts", "64", "--topk", "4"]
    result = _run(*sizes, *CLUSTER, "--waves", "3")
    assert result.exit_code == 0, result.output
    assert "us by wave count: 3:" in result.output


@pytest.mark.parametrize("ending", ["svg", "png"])
def test_the_chart_is_saved(tmp_path, ending):
    chart = tmp_path / f"plan.{ending}"
    result = _run("--model", "v4-pro", *CLUSTER, "--chart", str(chart))
    assert result.exit_code == 0, result.output
    assert chart.stat().st_size > 1000
    if ending == "svg":
        assert "waves: link" in chart.read_text()


def test_a_chart_without_matplotlib_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    result = _run("--model", "v4-pro", *CLUSTER, "--chart", str(tmp_path / "plan.svg"))
    assert result.exit_code == 1
    assert "pip install 'kernelforge[docs]'" in result.output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--hidden", "64", *CLUSTER], "give --model, or --inter, --experts, --topk"),
        (["--model", "v4-flash", *CLUSTER, "--ranks", "7"], "multiple of ranks"),
        (["--model", "v4-flash", *CLUSTER, "--bandwidth", "0"], "bandwidth: given 0.0"),
    ],
)
def test_wrong_input_is_answered_in_one_message(arguments, message):
    result = _run(*arguments)
    assert result.exit_code == 2
    assert message in " ".join(result.output.split())
