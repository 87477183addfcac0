"""dm_crash.check and explore on real kernels: planted bugs are found, correct twins are silent, checks may do anything."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest
from crash_programs import SEEDS, newest_only

from dmcore.errors import DmError, SpecError
from pytest_dm import oracles
from pytest_dm.crash.failure import CrashFailure
from pytest_dm.crash.session import DmCrash
from pytest_dm.options import CrashOptions

SIZES = {"ext4": "16M", "xfs": "320M", "btrfs": "128M"}


def replace_file(folder, name, data, *, durable):
    temporary = folder / "new.tmp"
    with temporary.open("wb") as file:
        file.write(data)
        file.flush()
        if durable:
            os.fsync(file.fileno())
    temporary.rename(folder / name)
    if durable:
        sync(folder)


def sync(path):
    fd = os.open(path, os.O_RDONLY)
    os.fsync(fd)
    os.close(fd)


def record_files(dm_crash, filesystem, *, durable, count=2):
    history = oracles.History()
    with dm_crash.record(size=SIZES[filesystem], filesystem=filesystem) as disk:
        (disk.mountpoint / "unrelated.tmp").touch()
        disk.sync()
        for number in range(count):
            name, data = f"f{number}", b"%d" % number * 6000
            with history.put(disk, name, data):
                replace_file(disk.mountpoint, name, data, durable=durable)
            sync(disk.mountpoint / "unrelated.tmp")
    return history


@pytest.mark.parametrize("filesystem", ["ext4", "xfs", "btrfs"])
def test_a_file_is_replaced_as_it_should_be(dm_crash, dm_backend, filesystem):
    newest_only(dm_backend)
    history = record_files(dm_crash, filesystem, durable=True)
    found = dm_crash.check(oracles.Files(history), torn=0, max_states=15 if SEEDS == 1 else 200)
    assert found.findings == []
    assert found.checked > 5


@pytest.mark.parametrize("filesystem", ["ext4", "xfs", "btrfs"])
def test_a_rename_without_fsync(dm_crash, dm_backend, filesystem):
    if filesystem != "ext4":
        newest_only(dm_backend)
    history = record_files(dm_crash, filesystem, durable=False)
    with pytest.raises(CrashFailure) as caught:
        dm_crash.check(oracles.Files(history), torn=0, max_states=40 if filesystem == "ext4" else 20)
    kinds = {case.kind for case in caught.value.cases}
    assert "durability" in kinds
    assert kinds <= {"durability", "integrity"}
    text = str(caught.value)
    assert "acknowledged  1:f0" in text
    assert "the mark" in text
    assert "'f0' is not there, though operation 1:f0 was acknowledged" in text or "'f1'" in text


@pytest.mark.parametrize("filesystem", ["ext4", "xfs"])
def test_the_lost_block_of_a_file_is_named(dm_crash, dm_backend, filesystem):
    """The second of two places in a file was written to, the first not: no flush was between them."""
    newest_only(dm_backend)
    with dm_crash.record(size=SIZES[filesystem], filesystem=filesystem) as disk:
        path = disk.mountpoint / "data"
        path.write_bytes(bytes(128 << 10))
        disk.sync()
        disk.mark("prepared")
        with path.open("r+b", buffering=0) as file:
            for offset in (8192, 65536):
                os.pwrite(file.fileno(), b"x" * 4096, offset)
            os.fdatasync(file.fileno())

    def check(state):
        if "prepared" in state.acknowledged:
            data = (state.mountpoint / "data").read_bytes()
            assert data[8192] or not data[65536], "integrity: the second without the first"

    with pytest.raises(CrashFailure) as caught:
        dm_crash.check(check, torn=0, max_states=40)
    (case,) = caught.value.cases
    assert "file /data, from byte 8192" in str(caught.value)
    assert ["file /data, from byte 8192" in row.words for row in case.rows if row.fate == "missing"] == [True]
    assert "file /data, from byte 65536: pending, and there" in case.picture
    assert case.kind == "integrity"


@pytest.fixture
def recorded(dm_crash):
    """A bare disk with one FUA write that was acknowledged, and one of ordinary kind that was not."""
    with dm_crash.record(size="1M", filesystem=None) as disk:
        with disk.operation("one"):
            disk.write_fua(0, b"1" * 4096)
        disk.mark("seen")
        with disk.operation("two"):
            disk.write(4096, b"2" * 4096)
            disk.flush()
    return dm_crash


def test_what_a_check_is_told(recorded, tmp_path):
    told = tmp_path / "told"

    def check(state):
        data = state.image.read_bytes()
        with told.open("a") as file:
            file.write(f"{state.acknowledged}|{state.started}|{data[:1]}{data[4096:4097]}|{state.torn}\n")
        with pytest.raises(DmError, match="bare disk"):
            _ = state.mountpoint

    recorded.check(check, torn=0)
    lines = told.read_text().splitlines()
    assert "('one', 'seen')|('two',)|b'1'b'\\x00'|False" in lines
    assert "('one', 'seen', 'two')|()|b'1'b'2'|False" in lines


def only(state):
    return state.acknowledged[-1:] == ("two",)


ANSWERS = {
    "check": lambda state: False,
    "durability": lambda state: "durability: it is gone",
    "ZeroDivisionError": lambda state: 1 // 0,
    "AssertionError": lambda state: _assert_false(),
    "Failed": lambda state: pytest.fail("not good"),
    "killed": lambda state: os.kill(os.getpid(), signal.SIGSEGV),
    "exit": lambda state: os._exit(3),
    "SystemExit": lambda state: sys.exit(3),
}


def _assert_false():
    raise AssertionError


def test_answers_that_are_findings(recorded):
    for kind, answer in ANSWERS.items():
        with pytest.raises(CrashFailure, match=kind) as caught:
            recorded.check(lambda state, answer=answer: answer(state) if only(state) else None, torn=0)
        assert [case.kind for case in caught.value.cases] == [kind]


def test_a_check_that_hangs_is_a_finding(recorded):
    began = time.monotonic()
    found = recorded.explore(lambda state: time.sleep(60) if only(state) else None, timeout=3, torn=0)
    assert {finding.problem.kind for finding in found.findings} == {"timeout"}
    assert time.monotonic() - began < 40


def test_answers_that_are_none(recorded):
    for answer in (3, "", [], b""):
        with pytest.raises(DmError, match="return None or True"):
            recorded.check(lambda _state, answer=answer: answer, torn=0)


def test_no_check_but_the_file_systems(dm_crash):
    with dm_crash.record(size="16M", filesystem="ext4") as disk:
        (disk.mountpoint / "f").write_bytes(b"x" * 9000)
        disk.sync()
    assert dm_crash.check(torn=0).checked > 3


def test_a_broken_file_system_is_a_finding(dm_crash):
    """Without barriers a journal's commit may overtake what it commits; but the log has no order at all to go by then."""
    with dm_crash.record(size="16M", filesystem="ext4", mount_options="barrier=0") as disk:
        for number in range(3):
            (disk.mountpoint / f"f{number}").write_bytes(b"x" * 9000)
            sync(disk.mountpoint / f"f{number}")
            disk.mark(f"saved-{number}")

    def check(state):
        for name in state.acknowledged:
            assert (state.mountpoint / name.replace("saved-", "f")).exists(), f"durability: {name}"

    with pytest.raises(CrashFailure) as caught:
        dm_crash.check(check, torn=0, max_states=30)
    assert "durability" in {case.kind for case in caught.value.cases}


def test_files_left_open_by_a_check(dm_crash):
    with dm_crash.record(size="16M", filesystem="ext4") as disk:
        (disk.mountpoint / "f").write_bytes(b"x" * 9000)
        disk.sync()
    kept = []

    def check(state):
        subprocess.Popen(["sleep", "100"], cwd=state.mountpoint)
        kept.append(os.open(state.mountpoint, os.O_RDONLY))

    assert dm_crash.check(check, torn=0, max_states=12).checked > 3
    assert kept == []


def test_seeds_budgets_and_levels(recorded):
    assert 1 <= recorded.explore(max_states=2, torn=0).generated <= 2
    assert recorded.explore(level="L0").timeline.level == "L0"
    lying = recorded.explore(
        lambda state: "one" not in state.acknowledged or state.image.read_bytes()[:1] == b"1",
        level="L3",
        torn=0,
    )
    assert [finding.problem.kind for finding in lying.findings] == ["check"] * len(lying.findings) != []
    with pytest.raises(SpecError, match="L0, L1, L2, L3"):
        recorded.explore(level="L9")


def test_seeds_that_share_what_was_found_sound(recorded):
    def check(state):
        return bool(state.image.read_bytes())

    found = recorded.explore(check)
    assert found.checked == found.distinct == len(found.sound) > 0
    again = recorded.explore(check, seed=1, known=found)
    assert (again.checked, again.distinct, again.sound) == (0, 0, found.sound)
    with pytest.raises(SpecError, match="no exploration of this recording with this check"):
        recorded.explore(lambda _state: True, known=found)


def test_the_command_line_wins(recorded):
    other = DmCrash(recorded._dm, "test", CrashOptions(seed=7, states=3))
    other.recording = recorded.recording
    found = other.check(max_states=1, seed=1, torn=0)
    assert found.seed == 7
    assert found.generated == recorded.explore(max_states=3, torn=0).generated


def test_one_state_alone(recorded, tmp_path):
    asked = []
    other = DmCrash(recorded._dm, "test", CrashOptions(state="e0:0"))
    other.recording = recorded.recording
    other.check(asked.append, torn=0)
    assert [(state.id, state.acknowledged) for state in asked] == [("e0:0", ())]
    with pytest.raises(ZeroDivisionError):
        other.check(lambda _state: 1 // 0, torn=0)
    with pytest.raises(CrashFailure, match="gone"):
        other.check(lambda _state: "it is gone", torn=0)
    other = DmCrash(recorded._dm, "test", CrashOptions(state="e99:0"))
    other.recording = recorded.recording
    with pytest.raises(SpecError, match="epochs"):
        other.check(asked.append)


def test_a_failing_recording_is_kept_and_explored_again(recorded, tmp_path):
    keeping = DmCrash(recorded._dm, "a::b[c]", CrashOptions(), artifacts=tmp_path)
    keeping.recording = recorded.recording
    with pytest.raises(CrashFailure) as caught:
        keeping.check(lambda state: not only(state), torn=0)
    (case,) = caught.value.cases
    folder = tmp_path / "crash" / "a-b-c-"
    assert f"--dm-crash-recording={folder} --dm-crash-state={case.state}" in str(caught.value)
    again = DmCrash(recorded._dm, "a::b[c]", CrashOptions(state=case.state, recording=folder))
    with pytest.raises(CrashFailure):
        again.check(lambda state: not only(state), torn=0)
    whole = DmCrash(recorded._dm, "a::b[c]", CrashOptions(recording=folder))
    assert whole.explore(torn=0).generated == recorded.explore(torn=0).generated
    with pytest.raises(DmError, match="no kept recording"):
        DmCrash(recorded._dm, "x", CrashOptions(recording=tmp_path)).check()


def test_nothing_is_recorded(dm_crash):
    with pytest.raises(DmError, match="record"):
        dm_crash.check()


def test_what_the_page_is_told(recorded):
    with pytest.raises(CrashFailure):
        recorded.check(lambda state: "integrity: <odd> & so" if only(state) else None, torn=0)
    from pytest_dm.crash.page import page

    html = page({"test_x.py::test_it": ("failed", recorded.results)})
    assert "integrity: &lt;odd&gt; &amp; so" in html
    assert "<svg" in html
    assert "http" not in html
    assert "<script" not in html


@pytest.mark.dm(timeout=300)
@pytest.mark.parametrize("filesystem", ["ext4", "xfs", "btrfs"])
def test_a_power_cut_during_recovery(dm_crash, dm_backend, filesystem):
    newest_only(dm_backend)
    history = record_files(dm_crash, filesystem, durable=True)
    dm_crash.check(oracles.Files(history), torn=0, max_states=8, recovery=2)
    recoveries = [
        result["numbers"] for result in dm_crash.results if result["numbers"].startswith("recovery from e")
    ]
    assert len(recoveries) == 2
    assert "0 fail" in recoveries[0]


def test_a_failure_during_recovery_says_so(dm_crash):
    record_files(dm_crash, "ext4", durable=True)
    with pytest.raises(CrashFailure, match="a second power cut, during the recovery from e"):
        dm_crash.check(lambda state: "/" not in state.id, torn=0, max_states=5, recovery=1)
