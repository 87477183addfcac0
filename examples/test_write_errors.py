"""A small program meets a disk whose writes fail."""

import errno
import os

import pytest

BLOCK = 4096


class Journal:
    """Appends records to a disk, one block each; a record counts once `append` has returned."""

    def __init__(self, path):
        self.fd = os.open(path, os.O_RDWR)
        self.records = 0

    def append(self, text):
        os.pwrite(self.fd, text.encode().ljust(BLOCK, b"\0"), self.records * BLOCK)
        os.fsync(self.fd)
        self.records += 1

    def read(self, index):
        return os.pread(self.fd, BLOCK, index * BLOCK).rstrip(b"\0").decode()

    def close(self):
        os.close(self.fd)


@pytest.fixture
def journal(dm_flakey):
    journal = Journal(dm_flakey.path)
    yield journal
    journal.close()


def test_a_failed_write_is_reported(dm_flakey, journal):
    journal.append("first")

    with dm_flakey.fail(writes=True), pytest.raises(OSError) as failure:
        journal.append("second")

    assert failure.value.errno == errno.EIO
    assert journal.records == 1


def test_it_goes_on_when_the_disk_does(dm_flakey, journal):
    dm_flakey.fail(writes=True)
    with pytest.raises(OSError):
        journal.append("lost")
    dm_flakey.heal()

    journal.append("kept")

    assert journal.read(0) == "kept"
    assert dm_flakey.lower.read(0, BLOCK).startswith(b"kept")  # the disk below: what really arrived


def test_a_power_cut_takes_what_was_not_synced(dm_flakey, journal):
    journal.append("synced")

    with dm_flakey.power_cut():
        journal.append("the disk says yes, and forgets it")

    assert journal.read(0) == "synced"
    assert journal.read(1) == ""
