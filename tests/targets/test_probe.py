"""Probing a real kernel."""

from __future__ import annotations

import pytest

from dmcore import targets
from dmcore.errors import IoctlError, Unsupported
from dmcore.kernel import probe
from dmcore.ref import Ref
from dmcore.registry import targets as all_targets
from dmcore.table import Table
from dmcore.target import Feature, Requirement

pytestmark = pytest.mark.dm


def _devices(lab) -> list[str]:
    return [entry.name for entry in lab.control.list_devices()]


def test_leaves_nothing_and_asks_once(lab, monkeypatch):
    monkeypatch.setattr(probe, "_known", {})
    before = _devices(lab)
    found = probe.features(lab.control)
    assert found <= {name for kind in all_targets().values() for name in kind.features}
    assert _devices(lab) == before
    monkeypatch.setattr(probe, "_probed", None)
    assert probe.features(lab.control) == found
    assert probe.features(lab.control, [targets.Linear]) == frozenset()


@pytest.mark.parametrize(
    ("feature", "there"),
    [
        (Feature("{dev} 0 0 1"), True),
        (Feature("{dev} 0 0 1", refuses="{dev} 0 0 0"), True),
        (Feature("{dev} 0 0 1", refuses="{dev} 0 0 2"), False),
        (Feature("{dev} 0 0 0"), False),
        (Feature("{dev} 0 0 1 1 drop_writes", prints="{dev} 0 0 1 1 drop_writes"), True),
        (Feature("{dev} 0 0 1 1 drop_writes", prints="{dev} 0 0 1"), False),
        (Feature("{dev} 0 0 1", limit="logical_block_size"), True),
        (Feature("{dev} 0 0 1", limit="discard_zeroes_data"), False),
    ],
)
def test_what_a_feature_can_ask(lab, monkeypatch, feature, there):
    monkeypatch.setattr(targets.Flakey, "features", {"flakey.test": feature})
    monkeypatch.setattr(probe, "_known", {})
    before = _devices(lab)
    assert ("flakey.test" in probe.features(lab.control, [targets.Flakey])) is there
    assert _devices(lab) == before


def test_a_failure_that_is_no_answer_is_raised_and_leaves_nothing(lab, monkeypatch):
    monkeypatch.setattr(targets.Flakey, "features", {"flakey.test": Feature("1048576:0 0 0 1")})
    monkeypatch.setattr(probe, "_known", {})
    before = _devices(lab)
    with pytest.raises(IoctlError):
        probe.features(lab.control, [targets.Flakey])
    assert _devices(lab) == before


def test_requirements(lab):
    probe.require(lab.control, Requirement("linear"))
    probe.require_table(lab.control, Table.of(targets.Linear(dev=Ref("7:0")), 8))
    for requirement, need in [
        (Requirement("linear", version=(99, 0, 0)), "dm target linear 99.0.0"),
        (Requirement("no-such-target"), "dm target no-such-target"),
        (Requirement("linear", features=frozenset({"linear.magic"})), "linear.magic"),
    ]:
        with pytest.raises(Unsupported) as caught:
            probe.require(lab.control, requirement)
        assert need in caught.value.need


def test_what_a_kernel_does_not_have_says_what_would(lab, monkeypatch):
    monkeypatch.setattr(probe, "find", lambda _name: targets.Zero)
    with pytest.raises(Unsupported) as missing:
        probe.require(lab.control, Requirement("nothing-of-the-kind", (1, 0, 0)))
    assert missing.value.hint == "a kernel with the module dm-zero"
    monkeypatch.setattr(probe, "find", lambda _name: targets.Vdo)
    with pytest.raises(Unsupported, match=r"dm-vdo \(Linux 6\.9 and newer\)"):
        probe.require(lab.control, Requirement("nothing-of-the-kind", (1, 0, 0)))
