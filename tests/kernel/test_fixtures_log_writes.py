"""dm_log_writes on a real kernel."""

from __future__ import annotations

import os
import time

import pytest

from dmcore.errors import DmError, SpecError
from dmcore.formats.log_writes import LogFlag

BLOCK = 4096
pytestmark = pytest.mark.dm(size="4M")


def kinds(device):
    """Return the log as short words."""

    def word(entry):
        if entry.mark is not None:
            return f"mark {entry.mark}"
        if entry.flags & LogFlag.DISCARD:
            return "discard"
        if entry.has_data:
            return f"write {entry.sector}+{entry.nr_sectors}"
        assert entry.flags & LogFlag.FLUSH
        return "flush"

    return [word(entry) for entry in device.entries()]


def test_an_empty_log(dm_log_writes):
    assert dm_log_writes.entries() == []
    assert dm_log_writes.marks() == []
    assert dm_log_writes.logging


def test_a_write_is_there_after_a_flush(dm_log_writes):
    dm_log_writes.write(0, b"a" * BLOCK)
    assert kinds(dm_log_writes) == []
    dm_log_writes.flush()
    assert kinds(dm_log_writes) == ["write 0+8", "flush"]
    (write, _) = dm_log_writes.entries()
    assert dm_log_writes.data(write) == b"a" * BLOCK
    assert dm_log_writes.lower.read(0, BLOCK) == b"a" * BLOCK


def test_marks_stand_between(dm_log_writes):
    dm_log_writes.mark("begin")
    dm_log_writes.write(BLOCK, b"b" * BLOCK)
    dm_log_writes.flush()
    dm_log_writes.mark("two words \\ and ü")
    dm_log_writes.discard(0, BLOCK)
    dm_log_writes.flush()
    dm_log_writes.mark("begin")
    assert kinds(dm_log_writes) == [
        "mark begin", "write 8+8", "flush", "mark two words \\ and ü", "discard", "flush", "mark begin",
    ]  # fmt: skip
    assert dm_log_writes.marks() == ["begin", "two words \\ and ü", "begin"]


def test_a_fua_write_needs_no_flush(dm_log_writes):
    fd = os.open(dm_log_writes.path, os.O_WRONLY | os.O_DSYNC)
    try:
        os.pwrite(fd, b"f" * BLOCK, 0)
    finally:
        os.close(fd)
    first = dm_log_writes.entries()[0]
    assert dm_log_writes.data(first) == b"f" * BLOCK


def test_stop_logs_the_rest(dm_log_writes):
    dm_log_writes.write(0, b"a" * BLOCK)
    dm_log_writes.stop()
    assert kinds(dm_log_writes) == ["write 0+8", "mark dm-log-writes-end"]
    assert not dm_log_writes.logging
    dm_log_writes.write(0, b"b" * BLOCK)
    dm_log_writes.flush()
    dm_log_writes.stop()
    assert len(dm_log_writes.entries()) == 2
    assert dm_log_writes.read(0, BLOCK) == b"b" * BLOCK
    with pytest.raises(DmError, match="no longer logs"):
        dm_log_writes.mark("late")


def test_a_power_cut_ends_the_log(dm_log_writes):
    dm_log_writes.write(0, b"a" * BLOCK)
    dm_log_writes.flush()
    with dm_log_writes.power_cut():
        dm_log_writes.write(0, b"b" * BLOCK)
    assert kinds(dm_log_writes) == ["write 0+8", "flush", "mark dm-log-writes-end"]
    assert dm_log_writes.read(0, BLOCK) == b"a" * BLOCK
    assert not dm_log_writes.logging


def test_marks_that_cannot_be(dm_log_writes):
    for name in ("", "x" * 480, "a\0b"):
        with pytest.raises(SpecError):
            dm_log_writes.mark(name)
    dm_log_writes.mark("x" * 479)
    assert dm_log_writes.marks() == ["x" * 479]


def test_a_full_log(dm):
    device = dm.log_writes(size="4M", log_size="64K")
    device.write(0, bytes(1 << 17))
    device.flush()
    deadline = time.monotonic() + 5
    while device.logging and time.monotonic() < deadline:  # the kernel's log thread finds out after the flush
        time.sleep(0.01)
    assert not device.logging
    with pytest.raises(DmError, match="full"):
        device.mark("too late")
    assert device.read(0, BLOCK) == bytes(BLOCK)


@pytest.mark.dm(size="4M", block_size=4096)
def test_larger_sectors(dm_log_writes):
    dm_log_writes.write(BLOCK, b"x" * BLOCK)
    dm_log_writes.flush()
    assert kinds(dm_log_writes) == ["write 1+1", "flush"]
    dm_log_writes.mark("m" * 4000)
    assert dm_log_writes.marks() == ["m" * 4000]
    assert dm_log_writes.data(dm_log_writes.entries()[0]) == b"x" * BLOCK


def test_a_log_disk_of_ones_own(dm):
    data, log = dm.loop("1M"), dm.loop("8M")
    device = dm.log_writes(data, log)
    assert (device.lower, device.log) == (data, log)
    device.mark("here")
    assert device.marks() == ["here"]


@pytest.mark.dm(size="16M", filesystem="ext4")
def test_a_file_system_in_the_log(dm_log_writes):
    assert dm_log_writes.marks() == ["mkfs"]
    (dm_log_writes.mountpoint / "f").write_bytes(b"secret" * 1000)
    os.sync()
    dm_log_writes.mark("synced")
    log = dm_log_writes.entries()
    assert any(b"secret" * 100 in dm_log_writes.data(entry) for entry in log)
