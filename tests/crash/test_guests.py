"""Exploration in guests, which mount each state: shares add up to the whole, and a kernel's recovery says what e2fsck's does."""

from __future__ import annotations

import json
import lzma
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from crash_programs import SEEDS
from log_maker import LogMaker, judge_slots, two_slots

from dmcore.crash.explore import explore
from dmcore.crash.log import CrashLog
from dmcore.crash.oracles import CallableOracle
from dmcore.crash.report import to_json
from dmcore.errors import SpecError
from pytest_dm.cli import main as pytest_dm
from pytest_dm.crash.guests import merged

HERE = Path(__file__).parent
DATA = HERE.parent / "data/crash"
COUNTS = ("generated", "distinct", "checked", "violating", "violating_torn", "exhaustive", "truncated")


def share(log, number, count, **options):
    def judge(state):
        return (
            judge_slots(state.image.read_bytes(), len(state.acknowledged), sectors=1, checksum=True) or None
        )

    found = explore(log, oracle=CallableOracle(judge), share=(number, count), workers=0, **options)
    return to_json(log, found)


@pytest.mark.parametrize("bug", [None, "no-flush", "pointer-first", "early-ack"])
@pytest.mark.parametrize("count", [2, 5])
@pytest.mark.parametrize("budget", [None, 90])
def test_shares_add_up_to_the_whole(tmp_path, bug, count, budget):
    with CrashLog(two_slots(9, *([bug] if bug else [])).save(tmp_path / "log"), size=1 << 18) as log:
        whole = share(log, 0, 1, max_states=budget)
        parts = [share(log, number, count, max_states=budget) for number in range(count)]
    assert all(part["checked"] < whole["checked"] for part in parts)
    together = merged(parts)
    assert [together[name] for name in COUNTS] == [whole[name] for name in COUNTS]
    assert together["violations"] == whole["violations"]
    assert {(one["kind"], one["torn"]) for one in together["minimal"]} == {
        (one["kind"], one["torn"]) for one in whole["minimal"]
    }
    assert [one["id"] for one in together["minimal"]] == [one["id"] for one in whole["minimal"]]


@pytest.mark.parametrize("bad", [(1, 1), (-1, 2), (0, 0)])
def test_shares_that_are_none(tmp_path, bad):
    with CrashLog(two_slots(2).save(tmp_path / "log")) as log, pytest.raises(SpecError, match="share="):
        explore(log, share=bad, workers=0)


@pytest.mark.parametrize(
    "words",
    [
        ["--kernel", "uml-7.2"],
        ["--fs", "none", "--mount-options", "x"],
        ["--fs", "ext4", "--mount-options", "data=journal"],
        ["--fs", "xfs", "--workers", "0"],
    ],
)
def test_guests_and_nothing_for_them_to_do(tmp_path, words, capsys):
    log = two_slots(2).save(tmp_path / "log")
    assert pytest_dm(["explore", str(log), *words]) == 2
    assert "=" in capsys.readouterr().err


def found_by(tmp_path, *words):
    out = tmp_path / "out.json"
    status = pytest_dm(["explore", *map(str, words), "--torn", "no", "--quiet", "--json", str(out)])
    return status, json.loads(out.read_text())


def violations(found):
    return [(one["id"], one["kind"], one["reason"], one["acknowledged"]) for one in found["violations"]]


def test_a_guests_mounts_say_what_e2fsck_says(tmp_path, capfd):
    """Files replaced without fsync, read by debugfs here and where they are mounted there."""
    log = tmp_path / "log"
    log.write_bytes(lzma.decompress((DATA / "ext4-renamebad.log.xz").read_bytes()))
    oracle = f"{sys.executable} {HERE / 'program_oracle.py'} rename {{image}} {{acknowledged}}"
    words = [log, "--fs", "ext4", "--max-states", "12", "--oracle"]
    _, here = found_by(tmp_path, *words, oracle)
    status, there = found_by(
        tmp_path,
        *words,
        f"{oracle} {{mountpoint}}",
        "--kernel",
        "uml-7.2",
        "--workers",
        "1" if SEEDS == 1 else "2",
    )
    assert there["error"] is None
    assert status == 1
    assert [there[name] for name in COUNTS] == [here[name] for name in COUNTS]
    assert violations(there) == violations(here) != []
    first = there["violations"][0]
    if SEEDS > 1:
        assert pytest_dm(["replay", first["id"], "--run", str(tmp_path / "out.json")]) == 1
        assert first["reason"] in capfd.readouterr().err


@pytest.mark.skipif(SEEDS == 1, reason="left to make crash-campaign")
@pytest.mark.parametrize("filesystem", ["xfs", "btrfs"])
def test_file_systems_that_only_a_kernel_recovers(tmp_path, filesystem):
    """In two guests at once; the log ends with a write that no file system stands."""
    base = tmp_path / "base"
    with base.open("wb") as file:
        file.truncate(320 << 20)
    path = "/sbin:/usr/sbin:/usr/bin"
    subprocess.run([shutil.which(f"mkfs.{filesystem}", path=path), "-q", base], check=True)
    maker = LogMaker()
    for number in range(40):  # where nothing is
        maker.write((200 << 20) + number * 4096, bytes([number + 1]) * 4096)
        maker.flush()
    log = maker.save(tmp_path / "log")
    words = [log, "--base", base, "--fs", filesystem]
    status, found = found_by(tmp_path, *words)
    assert (status, found["error"]) == (0, None)
    assert found["checked"] == found["distinct"] > 30
    maker.write(0 if filesystem == "xfs" else 64 << 10, b"\xee" * 4096)
    maker.flush()
    maker.save(log)
    status, found = found_by(tmp_path, *words, "--workers", "2")
    assert status == 1
    assert {one["kind"] for one in found["violations"]} == {"fs"}
    said = "cannot be mounted" if filesystem == "xfs" else "No valid Btrfs found"
    assert said in found["minimal"][0]["reason"]


def test_a_guest_that_does_not_come_up_is_an_error(tmp_path, capsys):
    log = two_slots(2).save(tmp_path / "log")
    status, found = found_by(
        tmp_path, log, "--fs", "xfs", "--kernel", str(tmp_path / "no-kernel"), "--workers", "1"
    )
    assert status == 2
    assert "there is no guest" in found["error"]
    assert found["violations"] == []
