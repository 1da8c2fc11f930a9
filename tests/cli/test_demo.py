"""What `kernelforge demo` says follows from what it measured."""

from __future__ import annotations

import dataclasses
import io

import pytest
from click.testing import CliRunner

from kernelforge.cli import main
from kernelforge.cli.demo_command import _show
from kernelforge.conformance import Chosen
from kernelforge.demo.run import DeviceResult, ModeResult, Outcome, Times

MODES = ("W4A4", "W4A8", "W4A16")


def _outcome(**changes) -> Outcome:
    made = Outcome(
        model="a model",
        sentences=16,
        tokens=240,
        shape=(240, 1536, 384),
        float_bytes=64_000_000,
        packed_bytes=8_000_000,
        layer_bytes=1_000_000,
        torch_dtype="bf16",
        kept_bytes=32_000_000,
        chosen=Chosen(("cpu", "acme:virtual"), absent=(("acme", "no such card"),)),
        devices=[
            DeviceResult(device, "virtual" in device, mode, (32, 1536, 384), f"{mode}digest", True)
            for mode in MODES
            for device in ("cpu", "acme:virtual")
        ],
        modes=[ModeResult(mode, 0.05, 0.98, 0.97, 15) for mode in MODES],
        times=(
            Times("one sentence", 15, {"W4A4": 0.5, "W4A8": 1.0, "W4A16": 2.0}, dequantize=4.0, torch=1.0),
            Times("16 sentences", 240, {"W4A4": 2.0, "W4A8": 5.0, "W4A16": 4.0}, dequantize=20.0, torch=4.0),
        ),
    )
    return dataclasses.replace(made, **changes)


def _shown(outcome: Outcome) -> str:
    from rich.console import Console

    text = io.StringIO()
    _show(Console(file=text, width=120), outcome)
    return text.getvalue()


def test_the_verdict_is_what_the_tables_say() -> None:
    text = " ".join(_shown(_outcome()).split())
    assert "the same bits on 2 devices, equal to the reference" in text
    assert "2.0 to 10.0 times as fast as torch with the same weights (dequantize + matmul)" in text
    assert "W4A4 2.00, W4A8 0.80 to 1.00, W4A16 0.50 to 1.00 times as fast as torch with bf16 weights kept" in text
    assert "not here: acme: no such card" in text


def test_times_stand_beside_the_memory_that_each_way_keeps() -> None:
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in _shown(_outcome()).splitlines() if "│" in line]
    timed = [row for row in rows if len(row) == 6]
    assert timed[0] == ["15, one sentence", "kernelforge W4A4", "1.00", "0.500", "8.0", "2.00"]
    assert timed[3] == ["", "torch dequantize + matmul", "1.00", "4.000", "", ""]
    assert timed[4] == ["", "torch bf16 weights kept", "4.00", "1.000", "", ""]


def test_one_wrong_bit_is_the_verdict() -> None:
    right = _outcome()
    wrong = dataclasses.replace(right.devices[0], equal=False)
    text = _shown(dataclasses.replace(right, devices=[wrong, *right.devices[1:]]))
    assert "not every device has the bits of the reference" in text
    assert "the same bits" not in text


@pytest.mark.slow
def test_the_demo_runs_on_every_device() -> None:
    """The model itself; every kernel is compiled for every device."""
    result = CliRunner().invoke(main, ["demo"])
    assert result.exit_code == 0, result.output
    assert "equal to the reference" in result.output
