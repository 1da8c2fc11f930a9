"""The conformance suite must see what is wrong, not only pass what is right."""

from __future__ import annotations

import functools
import json
import time
from collections.abc import Iterator
from xml.etree import ElementTree

import numpy as np
import pytest

from kernelforge.conformance import choose, compare, digest, plan, reports, run
from kernelforge.ops.spec import Case, OpSpec, specs


def _array(*values: float) -> dict[str, np.ndarray]:
    return {"out": np.array(values, np.float32)}


class _Op(OpSpec):
    """Three cases: right, one wrong bit, an error."""

    def conformance_cases(self, seed: int, size: str) -> Iterator[Case]:
        def broken(device: str) -> dict[str, np.ndarray]:
            raise RuntimeError(f"{device} \x1b[31mfell over")

        yield Case("right", lambda: _array(1, 2), lambda device: _array(1, 2))
        yield Case("wrong", lambda: _array(1, 0.0), lambda device: _array(1, -0.0))
        yield Case("raises", lambda: _array(1), broken)


@pytest.fixture
def outcome():
    op = _Op("fake", "", (), frozenset())
    return run(plan([op], ["here", "there"], 0, "ci"), 0, "ci")


def test_equal_bits_are_equal():
    assert compare(_array(1, float("nan")), _array(1, float("nan"))) == []


def test_one_bit_is_a_difference_that_says_where():
    (difference,) = compare(_array(1, 0.0), _array(1, -0.0))
    assert difference.count == 1
    assert "[1]" in str(difference)
    assert "0x80000000" in str(difference)


@pytest.mark.parametrize("given", [_array(1), {"out": np.zeros(2)}, {"other": np.zeros(2, np.float32)}])
def test_shape_dtype_and_name_are_compared(given):
    assert compare(_array(0, 0), given)


def test_digest_depends_on_bits_shape_and_dtype():
    base = np.arange(6, dtype=np.uint8)
    digests = {digest({"x": a}) for a in (base, base.reshape(2, 3), base.view(np.int8), base[::-1].copy())}
    assert len(digests) == 4


def test_results_tell_right_from_wrong_from_raised(outcome):
    assert [(r.case, r.equal) for r in outcome.of("here")] == [("right", True), ("wrong", False), ("raises", False)]
    assert "fell over" in outcome.of("there")[2].problems[0]
    assert outcome.device_digest("here", "fake") != outcome.expected_digest("fake")


def test_a_reference_is_computed_once_and_while_other_ops_run(monkeypatch):
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    computed: list[str] = []

    class Slow(OpSpec):
        def conformance_cases(self, seed: int, size: str) -> Iterator[Case]:
            def expected(case: str) -> dict[str, np.ndarray]:
                time.sleep(0.02)
                computed.append(case)
                return _array(1)

            for number in range(2):
                case = f"{self.name}/{number}"
                yield Case(case, functools.partial(expected, case), lambda device: computed.append(device) or _array(1))

    ops = [Slow(name, "", (), frozenset()) for name in ("first", "second", "third")]
    devices = ["here", "there", "elsewhere"]
    found = run(plan(ops, devices, 0, "ci"), 0, "ci")
    assert not found.failures
    assert len(found.results) == 18
    assert sorted(step for step in computed if "/" in step) == sorted(f"{op.name}/{i}" for op in ops for i in range(2))
    assert computed.index("third/0") > computed.index("here"), "no device waits for all references"


def test_cases_that_share_a_name_are_refused():
    op = _Op("fake", "", (), frozenset())
    with pytest.raises(ValueError, match="share a name"):
        plan([op, op], ["here"], 0, "ci")


def test_junit_counts_failures_and_is_xml(outcome, tmp_path):
    reports.write_junit(outcome, tmp_path / "new" / "junit.xml")
    suites = ElementTree.parse(tmp_path / "new" / "junit.xml").getroot().findall("testsuite")
    assert [suite.get("name") for suite in suites] == ["fake@here", "fake@there"]
    assert [suite.get("failures") for suite in suites] == ["2", "2"]
    assert len(suites[0].findall("testcase/failure")) == 2


def test_html_names_every_difference(outcome, tmp_path):
    reports.write_html(outcome, tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text()
    assert page.count("differs") == 4
    assert outcome.expected_digest("fake") in page


def test_digests_of_two_machines_are_compared(outcome, tmp_path):
    reports.write_digests(outcome, tmp_path / "d.json")
    written = json.loads((tmp_path / "d.json").read_text())
    same = run(plan([_Op("fake", "", (), frozenset())], ["here"], 0, "ci"), 0, "ci")
    found = reports.against(same, written)
    assert {line.split()[1] for line in found} == {"wrong:", "raises:"}
    written["seed"] = 1
    assert "cannot be compared" in reports.against(same, written)[0]
    written.update(seed=0, ops={})
    assert "no case in common" in reports.against(same, written)[0]


def test_a_backend_that_is_not_installed_is_missing():
    chosen = choose(["cpu", "nowhere"])
    assert chosen.devices == ("cpu",)
    assert [name for name, _ in chosen.missing] == ["nowhere"]


def test_a_device_can_be_named_alone():
    assert choose(["cpu"]).devices == ("cpu",)
    assert choose(["cpu:virtual"]).missing[0][0] == "cpu:virtual"


@pytest.mark.parametrize("op", specs().values(), ids=lambda op: op.name)
@pytest.mark.parametrize("size", ["ci", "full"])
def test_cases_have_names_of_their_own_and_repeatable_data(op, size):
    first, again = (list(op.conformance_cases(3, size)) for _ in range(2))
    names = [case.name for case in first]
    assert len(set(names)) == len(names)
    assert names == [case.name for case in again]
    if first:
        assert digest(first[0].expected()) == digest(again[0].expected())


@pytest.mark.parametrize("op", specs().values(), ids=lambda op: op.name)
def test_public_functions_of_a_spec_exist(op):
    import kernelforge

    assert op.functions
    for name in op.functions:
        assert callable(getattr(kernelforge, name))
        assert name in kernelforge.__all__


def test_gemm_cases_cover_formats_forms_outputs_and_data():
    from kernelforge.ops.mxfp4_gemm import conformance

    names = [case.name.split("/") for case in specs()["mxfp4_gemm"].conformance_cases(0, "ci")]
    assert {name[1] for name in names} == set(conformance.A_FORMATS)
    assert {name[0] for name in names} == {"dense", "grouped3"}
    assert {name[2] for name in names} == set(conformance.OUT_DTYPES)
    for a_format in conformance.A_FORMATS:
        assert {name[4] for name in names if name[1] == a_format} == set(conformance.DATA)


def test_spec_and_op_name_the_same_needs():
    from kernelforge.ops.mxfp4_gemm import op

    assert specs()["mxfp4_gemm"].needs == op.NEEDS


def test_virtual_devices_are_checked_while_they_run_a_case():
    from kernelforge.backends import execution

    seen = []

    class _Watched(OpSpec):
        def conformance_cases(self, seed: int, size: str) -> Iterator[Case]:
            def watch(device: str) -> dict[str, np.ndarray]:
                seen.append(execution.current())
                return _array(1)

            for name in ("a", "b", "c"):
                yield Case(name, lambda: _array(1), watch)

    run(plan([_Watched("fake", "", (), frozenset())], ["here"], 5, "ci"), 5, "ci")
    assert [one.order for one in seen] == list(execution.ORDERS)
    assert all(one.check for one in seen)
