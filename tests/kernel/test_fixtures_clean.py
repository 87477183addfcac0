"""`pytest-dm clean` and the sweep at a session's start: what a killed process left goes, and nothing else."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from dmcore.table import Table
from dmcore.targets import Zero
from pytest_dm import clean
from pytest_dm.runtime import KEPT

pytestmark = pytest.mark.dm(size="16M")

VICTIM = """
import sys, time
from pytest_dm.factory import Dm
from pytest_dm.kernel_runtime import KernelRuntime

dm = Dm(KernelRuntime())
disk = dm.linear(dm.flakey(size="16M"))
disk.lower.fail(reads=True); disk.lower.heal()
dm.mkfs(disk, "ext4")
dm.mount(disk, fs="ext4")
if "keep" in sys.argv:
    dm.keep()
print(dm.runtime.folder, flush=True)
time.sleep(600)
"""


@pytest.fixture
def killed():
    """Return a function that makes devices in a process, kills it, and returns its folder."""

    def run(*arguments):
        process = subprocess.Popen(
            [sys.executable, "-c", VICTIM, *arguments], stdout=subprocess.PIPE, text=True
        )
        assert process.stdout is not None
        folder = Path(process.stdout.readline().strip())
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
        return folder

    return run


@pytest.fixture
def others(dm, dm_backend):
    """Return a check that what lives, and what is not ours, is untouched."""
    mine = dm.linear()
    mine.write(0, b"x" * 512)
    control = dm_backend.runtime.control
    control.create("somebody-elses", "LVM-0123456789")
    control.load("somebody-elses", Table.of(Zero(), 8).encode(str))
    control.resume("somebody-elses")

    def check():
        assert mine.read(0, 512) == b"x" * 512
        assert dm_backend.runtime.folder.is_dir()
        assert control.exists("somebody-elses")

    yield check
    control.remove("somebody-elses")


def cleaned(**given):
    lines: list[str] = []
    return clean.clean(lines.append, **given), lines


def test_what_a_killed_process_left_goes(killed, others, dm_backend):
    folder = killed()
    found = [str(leftover) for leftover in clean.find(dm_backend.runtime.control)]
    kinds = [what.partition(" pytest-dm")[0].partition(" /")[0] for what in found]
    assert kinds[0] == "mount"
    assert kinds.count("device") >= 2
    assert kinds[-1] == "folder"

    failures, lines = cleaned(dry_run=True)
    assert (failures, len(lines)) == (0, len(found))
    assert folder.is_dir()

    failures, lines = cleaned()
    assert failures == 0, lines
    assert not folder.exists()
    assert list(clean.find(dm_backend.runtime.control)) == []
    assert str(folder) not in Path("/proc/mounts").read_text()
    assert not any(
        str(folder) in path.read_text() for path in Path("/sys/block").glob("loop*/loop/backing_file")
    )
    assert cleaned() == (0, ["nothing of ours is left behind"])
    others()


def test_the_next_session_sweeps(killed, others, dm_backend):
    folder = killed()
    assert clean.sweep(dm_backend.runtime.control) == []
    assert not folder.exists()
    assert list(clean.find(dm_backend.runtime.control)) == []
    others()


def test_what_was_kept_is_left_to_the_command(killed, others, dm_backend):
    folder = killed("keep")
    assert (folder / KEPT).exists()
    assert clean.sweep(dm_backend.runtime.control) == []
    assert folder.is_dir()
    assert [leftover.what for leftover in clean.find(dm_backend.runtime.control)].count("device") >= 2
    assert cleaned()[0] == 0
    assert not folder.exists()
    others()


def test_what_cannot_be_removed_is_said(killed, dm_backend):
    killed()
    (device,) = (item for item in clean.find(dm_backend.runtime.control) if item.name.endswith("-linear"))
    with Path("/dev/mapper", device.name).open("rb"):
        problems = clean.sweep(dm_backend.runtime.control)
    assert any(device.name in line and "EBUSY" in line for line in problems), problems
    assert cleaned()[0] == 0
