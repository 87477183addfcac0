"""dm_flakey on a real kernel: every verb does the same on every kernel."""

from __future__ import annotations

import errno
import os
import re
from pathlib import Path

import pytest

from dmcore.errors import ParseError, SpecError, TableRejected, Unsupported
from dmcore.targets import Delay, Flakey, Linear

KIB = 1 << 10
MIB = 1 << 20
OLD = b"o" * 4 * KIB
NEW = b"n" * 4 * KIB


def outcome(action, *args):
    """Return "ok", or the name of the error."""
    try:
        action(*args)
    except OSError as error:
        return errno.errorcode[error.errno or 0]
    return "ok"


def outcomes(device):
    """Return what each operation does now."""
    return {
        "read": outcome(device.read, 0, 4 * KIB),
        "write": outcome(device.write, 4 * KIB, NEW),
        "flush": outcome(device.flush),
        "discard": outcome(device.discard, MIB, MIB),
        "zeroes": outcome(device.write_zeroes, 8 * KIB, 4 * KIB),
    }


ALL_OK = dict.fromkeys(("read", "write", "flush", "discard", "zeroes"), "ok")


@pytest.fixture
def flakey(dm_flakey):
    """A flakey disk full of old data, in its first 12 KiB and its second MiB."""
    dm_flakey.write(0, OLD * 3)
    dm_flakey.write(MIB, OLD)
    return dm_flakey


def arrived(device):
    """Return which of the operations of `outcomes` changed the disk below."""
    below = device.lower
    return {
        "write": below.read(4 * KIB, 4 * KIB) == NEW,
        "discard": below.read(MIB, 4 * KIB) == bytes(4 * KIB),
        "zeroes": below.read(8 * KIB, 4 * KIB) == bytes(4 * KIB),
    }


def test_healthy_at_first(flakey):
    assert outcomes(flakey) == ALL_OK
    assert arrived(flakey) == {"write": True, "discard": True, "zeroes": True}


def test_everything_fails(flakey):
    flakey.fail()
    assert outcomes(flakey) == dict.fromkeys(ALL_OK, "EIO")
    assert not any(arrived(flakey).values())
    flakey.heal()
    assert outcomes(flakey) == ALL_OK


def test_fail_both_is_the_same(flakey):
    flakey.fail(reads=True, writes=True)
    assert outcomes(flakey) == dict.fromkeys(ALL_OK, "EIO")


def test_writes_fail(flakey):
    with flakey.fail(writes=True):
        assert outcomes(flakey) == {**dict.fromkeys(ALL_OK, "EIO"), "read": "ok"}
        assert not any(arrived(flakey).values())
        assert flakey.read(0, 4 * KIB) == OLD
    assert outcomes(flakey) == ALL_OK


def test_reads_fail(flakey):
    with flakey.fail(reads=True):
        assert outcomes(flakey) == {**ALL_OK, "read": "EIO"}
        assert all(arrived(flakey).values())
    assert outcomes(flakey) == ALL_OK
    assert flakey.read(4 * KIB, 4 * KIB) == NEW


def test_writes_are_dropped(flakey):
    with flakey.drop_writes():
        assert outcomes(flakey) == ALL_OK
        assert not any(arrived(flakey).values())
        assert flakey.read(4 * KIB, 4 * KIB) == OLD
    flakey.write(0, NEW)
    assert flakey.lower.read(0, 4 * KIB) == NEW


def test_written_data_is_corrupted(flakey):
    with flakey.corrupt(byte=10, value=0xA5):
        flakey.write(0, NEW)
    expected = bytearray(NEW)
    expected[9] = 0xA5
    assert flakey.read(0, 4 * KIB) == expected
    assert flakey.lower.read(0, 4 * KIB) == expected
    flakey.write(0, NEW)
    assert flakey.read(0, 4 * KIB) == NEW


def test_answers_are_corrupted_or_it_says_that_it_cannot(flakey, dm_backend):
    try:
        fault = flakey.corrupt(byte=1, value=0xA5, direction="read")
    except Unsupported:
        assert dm_backend.release.startswith("6.1.")
        assert outcomes(flakey) == ALL_OK
        return
    with fault:
        assert flakey.read(0, 4 * KIB) == b"\xa5" + OLD[1:]
        assert flakey.lower.read(0, 4 * KIB) == OLD
    assert flakey.read(0, 4 * KIB) == OLD


def test_blocks_nest(flakey):
    with flakey.fail(writes=True):
        with flakey.drop_writes():
            assert outcome(flakey.write, 0, NEW) == "ok"
        assert outcome(flakey.write, 0, NEW) == "EIO"
        with flakey.fail(reads=True):
            assert outcome(flakey.read, 0, KIB) == "EIO"
        assert outcome(flakey.read, 0, KIB) == "ok"
        assert outcome(flakey.write, 0, NEW) == "EIO"
    assert outcomes(flakey) == ALL_OK
    assert flakey.lower.read(0, 4 * KIB) == OLD


def test_a_block_heals_after_a_failure_too(flakey):
    with pytest.raises(ZeroDivisionError), flakey.fail():
        raise ZeroDivisionError
    assert outcomes(flakey) == ALL_OK


def test_one_verb_replaces_the_other(flakey):
    flakey.fail(reads=True)
    flakey.drop_writes()
    assert outcomes(flakey) == ALL_OK
    assert not any(arrived(flakey).values())
    flakey.fail(writes=True)
    assert outcome(flakey.read, 0, KIB) == "ok"
    flakey.heal()
    flakey.heal()
    assert outcomes(flakey) == ALL_OK


@pytest.mark.parametrize(
    ("verb", "arguments"),
    [
        ("fail", {"reads": False}),
        ("fail", {"reads": False, "writes": False}),
        ("corrupt", {"byte": 0, "value": 1}),
        ("corrupt", {"byte": 1, "value": 256}),
        ("corrupt", {"byte": 1, "value": 1, "direction": "sideways"}),
    ],
)
def test_what_means_nothing_is_refused_and_changes_nothing(flakey, verb, arguments):
    before = flakey.table()
    with pytest.raises(SpecError):
        getattr(flakey, verb)(**arguments)
    assert flakey.table() == before


def test_a_program_that_read_before_meets_the_fault(flakey):
    fd = os.open(flakey.path, os.O_RDONLY)
    try:
        assert os.pread(fd, 4 * KIB, 0) == OLD
        with flakey.fail(reads=True), pytest.raises(OSError, match="Input/output error"):
            os.pread(fd, 4 * KIB, 0)
        assert os.pread(fd, 4 * KIB, 0) == OLD
    finally:
        os.close(fd)


def test_a_buffered_write_fails_at_fsync(flakey):
    fd = os.open(flakey.path, os.O_RDWR)
    try:
        os.pwrite(fd, NEW, 0)
        flakey.fail(writes=True)
        with pytest.raises(OSError, match="Input/output error"):
            os.fsync(fd)
    finally:
        os.close(fd)
    assert flakey.lower.read(0, 4 * KIB) == OLD


def test_the_table_says_which_fault_it_is(flakey):
    def target():
        (line,) = flakey.table().lines
        return line.target

    assert isinstance(target(), Flakey)
    assert target().down == 0
    with flakey.fail(writes=True):
        assert target().error_writes
    with flakey.drop_writes():
        assert target().drop_writes
    with flakey.fail(reads=True):
        assert isinstance(target(), Delay) or target().error_reads


def test_the_way_without_error_reads_is_the_same(flakey, monkeypatch):
    """Kernels that have the feature can go the other kernels' way too: I/O must not show the difference."""
    with flakey.fail(reads=True):
        native = outcomes(flakey)
    monkeypatch.setattr(flakey, "_errors_reads", lambda: False)
    with flakey.fail(reads=True):
        assert isinstance(flakey.table().lines[0].target, Delay)
        assert outcomes(flakey) == native
    assert outcomes(flakey) == ALL_OK


def test_a_lower_of_ones_own(dm):
    disk = dm.loop("2M", block_size=4096)
    piece = dm.linear(disk, start="1M")
    flakey = dm.flakey(piece)
    assert (flakey.size, flakey.block_size) == (MIB, 4096)
    flakey.write(0, NEW)
    with flakey.fail(reads=True), pytest.raises(OSError, match="Input/output error"):
        flakey.read(0, 4 * KIB)
    assert disk.read(MIB, 4 * KIB) == NEW


def test_swap_takes_a_target_a_table_or_text(flakey):
    ref = flakey.lower.ref
    flakey.swap(Linear(dev=ref))
    assert isinstance(flakey.table().lines[0].target, Linear)
    assert flakey.read(0, 4 * KIB) == OLD
    flakey.swap(f"0 8 linear {ref} 0\n8 {flakey.sectors - 8} error")
    assert flakey.read(0, 4 * KIB) == OLD
    assert outcome(flakey.read, 4 * KIB, 4 * KIB) == "EIO"
    flakey.heal()
    assert outcomes(flakey) == ALL_OK


@pytest.mark.parametrize("bad", ["0 8 nonsense", "0 131072 linear {ref} 8", "0 131072 linear {ref}"])
def test_a_swap_that_the_kernel_refuses_changes_nothing(flakey, bad):
    before = flakey.table()
    with pytest.raises((TableRejected, ParseError)):
        flakey.swap(bad.format(ref=flakey.lower.ref))
    assert flakey.table() == before
    assert not flakey.device.info().suspended
    assert outcomes(flakey) == ALL_OK


def test_nothing_of_the_second_way_is_left(dm, dm_backend):
    with dm.scope() as scope:
        scope.flakey(size="1M").fail(reads=True)
    left = [entry.name for entry in dm_backend.runtime.control.list_devices("pytest-dm-")]
    assert [name for name in left if re.search("flakey|bad-reads", name)] == []
    assert not list(Path("/dev/mapper").glob("*bad-reads"))
