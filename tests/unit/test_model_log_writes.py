"""log-writes: what stands on the log, in which order, and what ends the logging."""

from __future__ import annotations

import errno
import struct

import pytest

from dmcore import open_volume
from dmcore.formats.log_writes import LogReader
from dmcore.model.block import META, SYNC
from dmcore.model.stores import MemoryStore
from dmcore.table import Table

FLUSH, FUA, DISCARD, MARK, METADATA = 1, 2, 4, 8, 16


class Disks:
    def __init__(self, log=1 << 20, block_size=512):
        self.data = MemoryStore(1 << 20, word="d", block_size=block_size)
        self.log = MemoryStore(log, word="l")

    def open(self, table="0 64 log-writes d l"):
        return open_volume(table, {"d": self.data, "l": self.log})

    def bytes(self):
        return bytes(self.log.read(0, self.log.sectors))

    def entries(self, nr_entries=None):
        """Return `(sector, sectors, flags, first byte of the data or the mark)` of each entry."""
        reader = LogReader(self.bytes(), nr_entries=nr_entries)
        return [(e.sector, e.nr_sectors, e.flags, e.mark or reader.read(e)[:1]) for e in reader]


def test_writes_are_logged_by_the_next_flush_and_the_rest_at_the_end():
    disks = Disks()
    with disks.open() as volume:
        volume.write(512, b"a" * 1024)
        volume.message("mark one")
        volume.write(0, b"b" * 512, fua=True)
        volume.discard(4096, 8192)
        volume.flush()
        volume.write_zeroes(0, 4096)
        volume.read(0, 512)
        assert volume.status_text() == "0 64 log-writes 5 8"
        volume.device.suspend()
    assert disks.entries() == [
        (0, 0, MARK, "one"),
        (0, 1, FUA, b"b"),
        (1, 2, 0, b"a"),
        (8, 16, DISCARD, b""),
        (0, 0, FLUSH, b""),
        (0, 8, 0, b"\0"),
        (0, 0, MARK, "dm-log-writes-end"),
    ]


def test_the_super_block_counts_when_a_mark_or_a_fua_write_is_logged():
    disks = Disks()
    with disks.open() as volume:
        assert disks.bytes() == bytes(1 << 20)
        volume.write(0, b"a" * 512)
        volume.flush()
        assert disks.bytes()[:512] == bytes(512)
        volume.write(0, b"a" * 512, fua=True)
        assert LogReader(disks.bytes()).super_block == (1, 3, 512)
        volume.flush()
        assert LogReader(disks.bytes()).super_block == (1, 3, 512)
        volume.message("mark x")
        assert LogReader(disks.bytes()).super_block == (1, 5, 512)


def test_log_sectors_are_the_data_device_s_blocks_whatever_the_log_has():
    disks = Disks(block_size=4096)
    disks.log.block_size = 512
    with disks.open() as volume:
        assert volume.block_size == 4096
        assert volume.status_text() == "0 64 log-writes 0 7"
        volume.write(8192, b"a" * 8192, fua=True)
        volume.message("mark " + "m" * 5000)
    reader = LogReader(disks.bytes())
    assert reader.sector_size == 4096
    assert disks.entries()[:2] == [(2, 2, FUA, b"a"), (0, 0, MARK, "m" * (4096 - 33))]
    assert struct.unpack_from("<QQQQ", disks.bytes(), 4096) == (2, 2, 2, 0)


def test_a_log_of_larger_blocks_does_not_limit_the_device():
    disks = Disks()
    disks.log.block_size = 4096
    with disks.open() as volume:
        assert volume.block_size == 512


def test_marks_are_cut_and_other_messages_refused():
    disks = Disks()
    with disks.open() as volume:
        volume.message("MARK " + "x" * 600)
        volume.message("mark a\\ b")
        for text in ("mark", "mark a b", "note a", "mark a b c"):
            with pytest.raises(OSError) as caught:
                volume.message(text)
            assert caught.value.errno == errno.EINVAL
        volume.device.suspend()
    assert [entry[3] for entry in disks.entries()] == ["x" * 479, "a b", "dm-log-writes-end"]


def test_requests_that_fail_below_are_logged_like_all_others():
    disks = Disks()
    stack = "low: 0 64 flakey d 0 0 1 1 error_writes\ntop: 0 64 log-writes low l"
    with disks.open(stack) as volume:
        for request in (
            lambda: volume.write(0, b"w" * 512),
            lambda: volume.write(512, b"f" * 512, fua=True),
            volume.flush,
            lambda: volume.discard(0, 512),
        ):
            with pytest.raises(OSError) as caught:
                request()
            assert caught.value.errno == errno.EIO
        volume.device.suspend()
    assert [entry[:3] for entry in disks.entries()] == [
        (1, 1, FUA),
        (0, 1, 0),
        (0, 0, FLUSH),
        (0, 1, DISCARD),
        (0, 0, MARK),
    ]


@pytest.mark.parametrize(("sectors", "entries"), [(1, 0), (2, 0), (3, 0), (4, 1), (5, 2), (9, 4)])
def test_a_full_log_stops_the_logging_and_nothing_else(sectors, entries):
    disks = Disks(log=sectors * 512)
    with disks.open() as volume:
        for number in range(4):
            volume.write(number * 512, b"w" * 512)
            volume.flush()
        assert volume.read(0, 2048) == b"w" * 2048
        assert volume.status()[0].entries == entries
        assert volume.status()[0].disabled
        volume.message("mark lost")
        assert volume.status()[0].entries == entries
    assert len(list(LogReader(b"".join((_super(entries), disks.bytes()[512:]))))) == entries


def _super(entries):
    return struct.pack("<QQQI", 0x6A736677736872, 1, entries, 512).ljust(512, b"\0")


def test_the_entry_that_does_not_fit_takes_its_room_all_the_same():
    disks = Disks(log=8 * 512)
    with disks.open() as volume:
        volume.write(0, bytes(16 * 512), fua=True)
        assert volume.status_text() == "0 64 log-writes 0 17 logging_disabled"


def test_a_log_that_cannot_be_written_stops_the_logging():
    disks = Disks()
    stack = "log: 0 64 flakey l 0 0 1 1 error_writes\ntop: 0 64 log-writes d log"
    with disks.open(stack) as volume:
        volume.write(0, b"w" * 512, fua=True)
        assert volume.status_text() == "0 64 log-writes 1 2 logging_disabled"
        volume.write(0, b"x" * 512, fua=True)
        assert volume.status()[0].entries == 1
        volume.device.suspend()


def test_a_line_that_begins_later_uses_the_device_s_sectors():
    disks = Disks()
    with disks.open("0 8 zero\n8 64 log-writes d l") as volume:
        volume.write(8 * 512, b"w" * 512)
        volume.flush()
    assert disks.data.read(8, 1) == b"w" * 512
    assert disks.entries()[0] == (8, 1, 0, b"w")


def test_a_line_past_the_end_of_its_device_fails_there():
    disks = Disks()
    disks.data = MemoryStore(16 * 512, word="d")
    with disks.open("0 8 zero\n8 16 log-writes d l") as volume:
        volume.write(8 * 512, b"w" * 8 * 512)
        for request in (lambda: volume.read(16 * 512, 512), lambda: volume.write(15 * 512, bytes(1024))):
            with pytest.raises(OSError) as caught:
                request()
            assert caught.value.errno == errno.EIO


def test_metadata_of_a_file_system_is_marked_as_such():
    disks = Disks()
    with disks.open() as volume:
        volume.device.write(0, memoryview(b"m" * 512), SYNC | META)
    assert disks.entries()[0] == (0, 1, METADATA, b"m")


def test_a_data_device_without_discards_gets_none_and_the_log_does():
    disks = Disks()
    stack = "low: 0 8 linear d 0\nlow: 8 56 zero\ntop: 0 64 log-writes low l"
    with disks.open(stack) as volume:
        volume.write(0, b"w" * 512)
        volume.discard(0, 4096)
        assert volume.read(0, 512) == b"w" * 512
    assert (0, 8, DISCARD, b"") in disks.entries()


def test_a_table_that_never_went_live_leaves_the_mark_of_its_end():
    disks = Disks()
    with open_volume("0 64 linear d 0", {"d": disks.data, "l": disks.log}) as volume:
        volume.device.load(Table.parse("0 64 log-writes d l"))
        volume.device.clear()
    assert disks.entries() == [(0, 0, MARK, "dm-log-writes-end")]


def test_a_swap_to_another_table_ends_the_log():
    disks = Disks()
    with disks.open() as volume:
        volume.write(0, b"w" * 512)
        volume.device.load(Table.parse("0 64 linear d 0"))
        volume.device.resume()
        volume.write(0, b"x" * 512)
        assert disks.entries() == [(0, 1, 0, b"w"), (0, 0, MARK, "dm-log-writes-end")]
