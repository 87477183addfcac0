from __future__ import annotations

import time

import pytest

from dmcore import targets
from dmcore.errors import IoctlError, ParseError, SpecError
from dmcore.formats.log_writes import END_MARK, LogFlag, LogReader
from dmcore.params import split_words
from dmcore.ref import Ref
from dmcore.table import Table
from dmcore.target import NO_FEATURES
from dmcore.targets.log_writes import LogWritesStatus, Mark

DEV, LOG = Ref("7:0"), Ref("7:1")
VALUE = targets.LogWrites(dev=DEV, log=LOG)


@pytest.mark.parametrize("words", ["7:0 7:1", "7:0 7:1 ", "7:0 7:1 more words"])
def test_reads_what_the_kernel_reads(words):
    assert Table.parse(f"0 8 log-writes {words}") == Table.of(VALUE, 8)


@pytest.mark.parametrize(("words", "index"), [("", 3), ("7:0", 4)])
def test_refuses_what_the_kernel_refuses_and_names_the_word(words, index):
    with pytest.raises(ParseError) as caught:
        Table.parse(f"0 8 log-writes {words}")
    assert caught.value.index == index


def test_value():
    assert VALUE.refs() == (DEV, LOG)
    assert str(Table.of(VALUE, 8)) == "0 8 log-writes 7:0 7:1"
    assert VALUE.readback(NO_FEATURES) == VALUE
    for field in ("dev", "log"):
        with pytest.raises(SpecError) as caught:
            targets.LogWrites(**{"dev": DEV, "log": LOG, field: "7:0"})
        assert caught.value.field == field


def test_status():
    assert VALUE.parse_status("0 7") == LogWritesStatus(0, 7, disabled=False)
    assert VALUE.parse_status("12 345 logging_disabled") == LogWritesStatus(12, 345, disabled=True)
    for bad in ["", "1", "1 2 off", "1 2 logging_disabled x", "x 1"]:
        with pytest.raises(ParseError):
            VALUE.parse_status(bad)


@pytest.mark.parametrize("label", ["put-1", "two words", "back\\slash", "tab\tnewline\n", "à", "x" * 479])
def test_mark_is_two_words_for_the_kernel(label):
    assert split_words(Mark(label).encode()) == ["mark", label]


@pytest.mark.parametrize("label", ["", "a\0b", "x" * 480, "é" * 240])
def test_mark_that_would_not_arrive_whole(label):
    with pytest.raises(SpecError) as caught:
        Mark(label)
    assert caught.value.field == "label"


def test_mark_on_larger_sectors():
    assert Mark("x" * 4063, sector_size=4096).encode().endswith("x" * 4063)
    with pytest.raises(SpecError):
        Mark("x" * 4064, sector_size=4096)


def _await_entries(device, count: int) -> LogWritesStatus:
    """Wait until the log has `count` entries: marks are written in the background."""
    deadline = time.monotonic() + 5
    while True:
        (status,) = device.status()
        if status.entries >= count or time.monotonic() > deadline:
            return status
        time.sleep(0.01)


LABELS = ["begin", "two words", "back\\slash", "voilà", "x" * 479]


@pytest.mark.dm
def test_log_of_a_device(lab):
    value = targets.LogWrites(dev=lab.refs[0], log=lab.refs[1])
    with lab.open(value, 1024) as (device, file):
        assert device.table() == Table.of(value, 1024)
        assert device.status() == [LogWritesStatus(0, 0, disabled=False)]
        file.write(4096, b"w" * 1024)
        for label in LABELS:
            device.send(Mark(label))
        file.flush()
        file.discard(8192, 4096)
        file.write(0, b"v" * 512)
        status = _await_entries(device, len(LABELS) + 2)
        assert (status.entries, status.disabled) == (len(LABELS) + 2, False)
        with LogReader(lab.disks[1].path, nr_entries=status.entries) as reader:
            live = list(reader)
            assert reader.super_block.nr_entries <= status.entries
    with LogReader(lab.disks[1].path) as reader:
        entries = list(reader)
        assert entries[: len(live)] == live
        assert [entry.mark for entry in reader.marks()] == [*LABELS, END_MARK]
        write, flush, discard, last = (entry for entry in entries if entry.mark is None)
        assert (reader.extent(write), reader.read(write)) == ((4096, 1024), b"w" * 1024)
        assert (flush.flags, flush.nr_sectors, reader.read(flush)) == (LogFlag.FLUSH, 0, b"")
        assert (discard.flags, reader.extent(discard)) == (LogFlag.DISCARD, (8192, 4096))
        assert (reader.extent(last), reader.read(last)) == ((0, 512), b"v" * 512)
        assert entries[-1].mark == END_MARK


@pytest.mark.dm
def test_a_full_log_is_told_by_the_status(lab):
    with (
        lab.device(targets.Linear(dev=lab.refs[1]), 8) as small,
        lab.open(targets.LogWrites(dev=lab.refs[0], log=small.ref)) as (device, file),
    ):
        file.write(0, b"x" * 8192)
        file.flush()
        deadline = time.monotonic() + 5
        while not device.status()[0].disabled and time.monotonic() < deadline:
            time.sleep(0.01)
        assert device.status()[0].disabled
        assert file.read(0, 8192) == b"x" * 8192


@pytest.mark.dm
@pytest.mark.parametrize("text", ["mark", "mark a b", "other x"])
def test_the_kernel_takes_one_word_only(lab, text):
    with lab.device(targets.LogWrites(dev=lab.refs[0], log=lab.refs[1])) as device, pytest.raises(IoctlError):
        device.message(text)
