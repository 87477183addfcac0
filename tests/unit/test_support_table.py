"""The table of what works on which kernel: made of what is kept, complete, and nothing missing without a reason."""

from __future__ import annotations

import json
import re
from fnmatch import fnmatchcase

import pytest
import support_table
from kernel_pages import Lack
from support_table import DATA, PAGE, lacks, read, reasons, render, short, why

from dmcore.registry import targets

KEPT = json.loads(DATA.read_text(encoding="utf-8"))

JUNIT = """<?xml version="1.0"?><testsuites><testsuite timestamp="2026-11-26T10:00:00">
<testcase classname="tests.targets.test_x" name="test_a[uml-6.1-linear]"><properties>
<property name="dm_seen" value="loads:linear loads:nonsense status:mirror:MirrorStatus message:Check message:Unknown"/>
<property name="dm_read_back" value="linear 500"/><property name="dm_read_back" value="zero 7 all"/>
<property name="dm_read_back" value="mirror 99"/><property name="dm_lines" value="linear 300 200"/>
</properties></testcase>
<testcase classname="tests.targets.test_x" name="test_b[uml-6.1]"><properties>
<property name="dm_kernel" value='{"release": "6.1.176", "targets": {"linear": "1.4.0", "ebs": null}}'/>
</properties></testcase>
<testcase classname="tests.targets.test_x" name="test_c[uml-6.1]"><failure/><properties>
<property name="dm_seen" value="loads:zero"/></properties></testcase>
<testcase classname="tests.targets.test_x" name="test_d[uml-6.1]"><skipped/><properties>
<property name="dm_seen" value="loads:zero"/></properties></testcase>
<testcase classname="tests.unit.test_y" name="test_e"/>
<testcase classname="tests.targets.test_z" name="test_f[uml-6.1-a]"><properties>
<property name="dm_seen" value="loads:linear models:striped"/></properties></testcase>
<testcase classname="tests.differential.test_z" name="test_g[uml-6.1]"><properties>
<property name="dm_seen" value="loads:striped models:striped"/></properties></testcase>
</testsuite></testsuites>"""


@pytest.fixture
def seen(tmp_path):
    path = tmp_path / "junit.xml"
    path.write_text(JUNIT)
    data = {}
    read(path, data)
    return data


def test_only_what_passed_counts(seen):
    assert seen == {
        "uml-6.1": {
            "release": "6.1.176", "date": "2026-11-26", "versions": {"linear": "1.4.0", "ebs": None},
            "ran": [*targets()], "loads": ["linear", "striped"], "read_back": dict.fromkeys(["linear", "zero", "mirror"], "2026-11-26"), "status": {"mirror": ["MirrorStatus"]},
            "messages": {"raid": ["Check"]}, "models": ["striped"], "campaigns": {"linear": [500, "2026-11-26"], "zero": [7, "2026-11-26"]},
            "lines": {"linear": [300, 200, "2026-11-26"]},
        }
    }  # fmt: skip


def test_a_run_of_all_tests_replaces_what_was_seen_before_but_no_campaign(seen, tmp_path):
    path = tmp_path / "again.xml"
    path.write_text(
        '<testsuites><testsuite timestamp="2026-11-27T10:00:00">'
        '<testcase classname="a" name="test_b[uml-6.1]"><properties>'
        '<property name="dm_kernel" value=\'{"release": "6.1.177", "targets": {"linear": "1.4.0"}}\'/>'
        "</properties></testcase></testsuite></testsuites>"
    )
    read(path, seen)
    (kernel,) = seen.values()
    assert (kernel["release"], kernel["loads"], kernel["models"]) == ("6.1.177", [], [])
    assert kernel["campaigns"]["linear"] == [500, "2026-11-26"]


def _told(folder, *, seen="loads:zero", target="mirror"):
    path = folder / "one.xml"
    path.write_text(
        '<testsuites><testsuite timestamp="2026-11-27T10:00:00">'
        '<testcase classname="a" name="test_b[debian-6.1]"><properties>'
        '<property name="dm_kernel" value=\'{"release": "6.1.178", "targets": {"linear": "1", "zero": "1", "mirror": "1"}}\'/>'
        f'<property name="dm_seen" value="{seen}"/>'
        f'<property name="dm_read_back" value="{target} 12"/>'
        "</properties></testcase></testsuite></testsuites>"
    )
    return path


@pytest.fixture
def agreement(tmp_path, monkeypatch):
    """Let nothing be known of the differential tests; gives the file for what is."""
    path = tmp_path / "agreement.json"
    path.write_text("{}")
    monkeypatch.setattr(support_table, "AGREEMENT", path)
    return path


@pytest.mark.usefixtures("agreement")
def test_a_run_of_one_target_replaces_its_part_and_says_nothing_of_the_others(tmp_path):
    data = {}
    read(_told(tmp_path, seen="loads:zero", target="zero"), data, "zero")
    read(_told(tmp_path, seen="loads:mirror status:mirror:MirrorStatus models:mirror"), data, "mirror")
    (kernel,) = data.values()
    assert (kernel["ran"], kernel["loads"]) == (["mirror", "zero"], ["mirror", "zero"])
    read(_told(tmp_path, seen="loads:mirror"), data, "mirror")
    assert (kernel := data["debian-6.1"])["loads"] == ["mirror", "zero"]
    assert (kernel["status"], kernel["models"]) == ({}, [])
    found = lacks(data)
    assert Lack("linear", "run", "debian-6.1") in found
    assert [lack.what for lack in found if lack.target == "linear"] == ["run"], "no need to tell the rest"
    assert Lack("zero", "model", "debian-6.1") in found
    assert Lack("zero", "loads", "debian-6.1") not in found


def test_what_is_missing_is_told(seen, agreement):
    found = lacks(seen)
    assert Lack("ebs", "target", "uml-6.1") in found
    assert Lack("linear", "model", "uml-6.1") in found
    assert not any(lack.target == "linear" and lack.what != "model" for lack in found)
    assert not any(lack.target == "ebs" and lack.what != "target" for lack in found), (
        "no need to tell the rest"
    )


def test_what_the_differential_tests_held_against_a_kernel_has_a_model(seen, agreement):
    agreement.write_text('{"uml-6.1": {"targets": {"linear": {"examples": 1}, "zero": {}}}}')
    assert Lack("linear", "model", "uml-6.1") not in lacks(seen)
    agreement.write_text('{"uml-6.1": {"targets": {"linear": {"examples": 0}}}}')
    assert Lack("linear", "model", "uml-6.1") in lacks(seen)


def test_a_lack_without_a_reason_is_an_error(seen, monkeypatch):
    monkeypatch.setattr(support_table, "reasons", list)
    with pytest.raises(SystemExit, match=r"ebs: target on uml-6\.1"):
        render(seen)


def test_the_page_is_made_of_what_is_kept():
    assert PAGE.read_text(encoding="utf-8") == render(KEPT), "make it again: tests/tools/support_table.py"


def test_every_target_and_the_three_kernels_are_there():
    assert {"uml-6.1", "uml-6.12", "uml-7.2"} <= set(KEPT)
    rows = re.findall(r"^\| ([a-z-]+) \| (.*) \|$", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    cells = {name: row.split(" | ") for name, row in rows if len(row.split(" | ")) == 5}
    assert set(targets()) <= set(cells)
    for name in targets():
        for seen in KEPT.values():
            assert name in seen["versions"], f"{name}: the run is from before it was written"


def test_every_reason_is_of_use():
    """One that fits nothing any more is out of date; those of kernels that did not run yet wait for them."""
    found = lacks(KEPT)
    for reason in reasons():
        if not any(
            fnmatchcase(kernel, one) for kernel in KEPT for one in reason.get("kernel", "*").split(", ")
        ):
            continue
        fits = [lack for lack in found if why(lack) == reason["why"]]
        assert fits, reason
        assert all(short(lack.kernel) for lack in fits)
