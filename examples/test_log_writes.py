"""What does a program write, in which order, and where are its flushes? dm-log-writes knows."""

import os

import pytest

from dmcore.formats.log_writes import LogFlag

BLOCK = 4096
pytestmark = pytest.mark.dm(size="16M")


def save(path, offset, data):
    """Write data, then a commit block behind it: the data must be on the disk before the commit block is."""
    fd = os.open(path, os.O_WRONLY)
    try:
        os.pwrite(fd, data, offset)
        os.fsync(fd)
        os.pwrite(fd, b"commit".ljust(BLOCK, b"\0"), offset + len(data))
        os.fsync(fd)
    finally:
        os.close(fd)


def test_the_commit_block_comes_after_a_flush(dm_log_writes):
    dm_log_writes.mark("begin")
    save(dm_log_writes.path, 0, b"d" * 2 * BLOCK)
    dm_log_writes.mark("saved")

    log = dm_log_writes.entries()
    marks = {entry.mark: entry.index for entry in log if entry.mark}
    between = log[marks["begin"] + 1 : marks["saved"]]
    data, commit = (
        next(entry for entry in between if entry.has_data and dm_log_writes.data(entry).startswith(start))
        for start in (b"ddd", b"commit")
    )

    assert dm_log_writes.marks() == ["begin", "saved"]
    assert any(entry.flags & LogFlag.FLUSH for entry in log[data.index : commit.index])
    assert b"".join(dm_log_writes.data(entry) for entry in between)[: 2 * BLOCK] == b"d" * 2 * BLOCK


def test_what_is_not_flushed_comes_last(dm_log_writes):
    dm_log_writes.write(0, b"x" * BLOCK)
    assert dm_log_writes.entries() == []

    dm_log_writes.stop()

    write, end = dm_log_writes.entries()
    assert dm_log_writes.data(write) == b"x" * BLOCK
    assert end.mark == "dm-log-writes-end"
