"""f2fs, which Debian's kernels have: a checkpoint that was being written is no damage, the older one stands in for it."""

from __future__ import annotations

import os

import pytest

pytestmark = pytest.mark.dm(size="64M", filesystem="f2fs", timeout=600)


@pytest.fixture(autouse=True)
def _there(dm_backend):
    if dm_backend.machine == "uml":
        pytest.skip("user-mode Linux has no f2fs")


def _put(disk, name):
    with disk.operation(name):
        with (disk.mountpoint / name).open("wb") as file:
            file.write(name.encode() * 1000)
            file.flush()
            os.fsync(file.fileno())
        folder = os.open(disk.mountpoint, os.O_RDONLY)
        os.fsync(folder)
        os.close(folder)


def _kept(state):
    for name in state.acknowledged:
        path = state.mountpoint / name
        assert path.exists(), f"durability: {name}"
        assert path.read_bytes() == name.encode() * 1000, f"durability: {name}"


def test_what_was_synced_is_there_whatever_the_checkpoint(dm_crash):
    with dm_crash.record() as disk:
        for number in range(5):
            _put(disk, f"put-{number}")
    assert dm_crash.check(_kept, max_states=40, max_seconds=300).checked > 10


def test_what_was_not_is_missed(dm_crash):
    with dm_crash.record() as disk:
        for number in range(3):
            with disk.operation(f"put-{number}"):
                (disk.mountpoint / f"put-{number}").write_bytes(f"put-{number}".encode() * 1000)
        disk.sync()
    found = dm_crash.explore(_kept, max_states=20, max_seconds=200)
    assert {finding.problem.kind for finding in found.findings} == {"durability"}
