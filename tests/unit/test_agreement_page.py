"""How often kernels and models did the same: made of what is kept, complete, and no empty cell without a reason."""

from __future__ import annotations

import json

import agreement_page
import pytest
from agreement_page import COLUMNS, DATA, FINDINGS_TITLE, PAGE, count, gaps, read, reasons, render, why
from kernel_pages import Lack

from dmcore.model.registry import modelled

KEPT = json.loads(DATA.read_text(encoding="utf-8"))


def case(name, targets, inner=""):
    notes = {"dm_pair_kernel": "6.1.176", "dm_pair_targets": json.dumps(targets).replace('"', "&quot;")}
    properties = "".join(f'<property name="{key}" value="{value}"/>' for key, value in notes.items())
    return f'<testcase name="{name}">{inner}<properties>{properties}</properties></testcase>'


@pytest.fixture
def seen(tmp_path):
    path = tmp_path / "junit.xml"
    path.write_text(
        '<testsuites><testsuite timestamp="2026-11-26T10:00:00">'
        + case("test_a[uml-6.1-linear]", {"linear": {"examples": 2, "read": 3, "table": 1, "status": 1}})
        + case("test_b[uml-6.1]", {"linear": {"read": 4, "errors": 1}, "zero": {"zeroout": 1, "discard": 2}})
        + case("test_c[uml-6.1]", {"linear": {"read": 100}}, "<failure/>")
        + case("test_d", {"linear": {"read": 100}})
        + "</testsuite></testsuites>"
    )
    data = {
        "uml-6.1": {"release": "old", "date": "", "targets": {"dust": {"read": 1}}},
        "uml-7.2": {"targets": {}},
    }
    read([path], data)
    return data


def test_what_passed_is_added_up_and_replaces_what_was_kept_of_the_kernel(seen):
    assert seen["uml-6.1"] == {
        "release": "6.1.176", "date": "2026-11-26",
        "targets": {
            "linear": {"examples": 2, "read": 7, "table": 1, "status": 1, "errors": 1},
            "zero": {"zeroout": 1, "discard": 2},
        },
    }  # fmt: skip
    assert seen["uml-7.2"] == {"targets": {}}
    cells = [count(seen, "uml-6.1", "linear", what) for what in ("examples", *COLUMNS)]
    assert cells == [2, 7, 0, 2, 0, 1]
    assert count(seen, "uml-6.1", "zero", "write") == 3


def test_a_gap_without_a_reason_is_an_error(seen, monkeypatch):
    monkeypatch.setattr(agreement_page, "reasons", list)
    with pytest.raises(SystemExit, match=r"linear: no write on uml-6\.1"):
        render(seen)
    assert Lack("linear", "write", "uml-6.1") in set(gaps(seen))


def test_the_page_is_made_of_what_is_kept():
    """But for the list of findings, which grows without a run."""
    page = PAGE.read_text(encoding="utf-8").partition(FINDINGS_TITLE)[0]
    assert page == render(KEPT).partition(FINDINGS_TITLE)[0], "make it again: tests/tools/agreement_page.py"


def test_every_model_and_the_three_kernels_are_there():
    assert {"uml-6.1", "uml-6.12", "uml-7.2"} <= set(KEPT)
    for kernel in ("uml-6.1", "uml-6.12", "uml-7.2"):
        assert set(modelled()) <= set(KEPT[kernel]["targets"])


def test_every_reason_is_of_use():
    """One that fits nothing any more is out of date."""
    fit = {why(gap) for gap in gaps(KEPT)}
    assert {reason["why"] for reason in reasons()} <= fit
