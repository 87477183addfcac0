"""The reader of the log-writes log, on logs that a kernel (6.12) wrote, and on damaged ones."""

from __future__ import annotations

import contextlib
import os
import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dmcore.errors import FormatError, SpecError
from dmcore.formats.log_writes import END_MARK, LogFlag, LogReader, SuperBlock

DATA = Path(__file__).parents[1] / "data/log_writes"
SIZES = [512, 4096]
RAW = {size: (DATA / f"log-{size}.bin").read_bytes() for size in SIZES}
LOG = RAW[512]
HEADER = struct.Struct("<QQQQ")

sizes = pytest.mark.parametrize("size", SIZES)


def changed(offset: int, data: bytes) -> bytes:
    return LOG[:offset] + data + LOG[offset + len(data) :]


class Source:
    """A device that takes whole sectors only, as direct I/O does."""

    def __init__(self, raw: bytes, sector: int) -> None:
        self.raw, self.sector, self.size = raw, sector, len(raw)

    def read(self, offset: int, length: int) -> bytes:
        assert offset % self.sector == length % self.sector == 0
        return self.raw[offset : offset + length]


@sizes
def test_recorded_log(size):
    reader = LogReader(RAW[size])
    assert reader.super_block == SuperBlock(version=1, nr_entries=9, sector_size=size)
    entries = list(reader)
    assert [entry.index for entry in entries] == list(range(9))
    assert [entry.flags for entry in entries] == [
        LogFlag.MARK, 0, LogFlag.FLUSH, 0, LogFlag.DISCARD, LogFlag.FLUSH, LogFlag.MARK, 0, LogFlag.MARK
    ]  # fmt: skip
    assert [entry.mark for entry in reader.marks()] == ["before flush", "voilà", END_MARK]
    assert [(reader.extent(entry), reader.read(entry)) for entry in entries if entry.has_data] == [
        ((size, size), b"A" * size),
        ((3 * size, 2 * size), b"B" * 2 * size),
        ((0, size), b"C" * size),
    ]
    assert (reader.extent(entries[4]), reader.read(entries[4])) == ((8 * size, 4 * size), b"")
    assert entries[-1].data_offset == len(RAW[size])
    assert list(reader.beyond()) == []


@sizes
def test_every_kind_of_source_reads_the_same(size):
    path = DATA / f"log-{size}.bin"
    want = list(LogReader(RAW[size]))
    with LogReader(path) as reader:
        assert list(reader) == want
        assert reader.read(want[1]) == b"A" * size
    with pytest.raises(ValueError, match="closed"):
        list(reader)
    fd = os.open(path, os.O_RDONLY)
    try:
        with LogReader(fd) as reader:
            assert list(reader) == want
        os.fstat(fd)
        with LogReader(str(path)) as reader:
            assert list(reader) == want
    finally:
        os.close(fd)

    assert list(LogReader(Source(RAW[size], size))) == want


def test_a_stale_super_block_hides_entries():
    stale = changed(16, struct.pack("<Q", 2))
    reader = LogReader(stale)
    whole = list(LogReader(LOG))
    assert list(reader) == whole[:2]
    assert list(reader.beyond()) == whole[2:]
    assert list(LogReader(stale, nr_entries=7)) == whole[:7]


def test_more_entries_than_there_are():
    entries = LogReader(LOG, nr_entries=10).entries()
    for _ in range(9):
        next(entries)
    with pytest.raises(FormatError) as caught:
        next(entries)
    assert caught.value.offset == len(LOG)


@pytest.mark.parametrize(
    ("log", "offset", "words"),
    [
        (b"", 0, "ends"),
        (LOG[:511], 0, "ends"),
        (changed(0, b"x"), 0, "magic"),
        (changed(8, b"\2"), 8, "version"),
        (changed(24, struct.pack("<I", 0)), 24, "sector size"),
        (changed(24, struct.pack("<I", 768)), 24, "sector size"),
        (changed(24, struct.pack("<I", 1 << 17)), 24, "sector size"),
    ],
)
def test_no_log(log, offset, words):
    with pytest.raises(FormatError, match=words) as caught:
        LogReader(log)
    assert caught.value.offset == offset


@pytest.mark.parametrize(
    ("log", "offset", "words"),
    [
        (LOG[:1000], 512, "ends"),
        (LOG[:1600], 1024, "entry 1 has data up to byte 2048"),
        (changed(1024 + 8, struct.pack("<Q", 2**63)), 1024, "which no device has"),
        (changed(1024, struct.pack("<Q", 2**54)), 1024, "which no device has"),
        (changed(1024 + 8, struct.pack("<Q", 2**40)), 1024, "entry 1 has data up to"),
        (changed(1024, HEADER.pack(0, 0, 0, 0)), 1024, "0 sectors"),
        (changed(1024 + 16, struct.pack("<Q", 32)), 1024, "unknown flags"),
        (changed(1024 + 24, struct.pack("<Q", 4)), 1024, "4 bytes of text"),
        (changed(512 + 24, struct.pack("<Q", 481)), 512, "a mark of 481 bytes"),
        (changed(512 + 8, struct.pack("<Q", 1)), 512, "1 sectors"),
    ],
)
def test_damaged_entries_say_where(log, offset, words):
    with pytest.raises(FormatError, match=words) as caught:
        list(LogReader(log))
    assert caught.value.offset == offset


def test_a_mark_that_is_no_utf_8_is_kept():
    reader = LogReader(changed(512 + 32, b"\xff"))
    assert next(reader.marks()).mark == "\udcffefore flush"


def test_data_that_went_away_after_the_header_was_read(tmp_path):
    path = tmp_path / "log"
    path.write_bytes(LOG)
    with LogReader(path) as reader:
        write = list(reader)[1]
        os.truncate(path, 1600)
        with pytest.raises(FormatError) as caught:
            reader.read(write)
        assert caught.value.offset == 1536


def test_refuses_a_negative_count():
    with pytest.raises(SpecError):
        LogReader(LOG, nr_entries=-1)


@given(st.data())
def test_any_damage_is_found_or_harmless(data):
    log = bytearray(LOG)
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, 40) | st.integers(0, len(log) - 8))
        log[at : at + 8] = struct.pack("<Q", data.draw(st.integers(0, 2**64 - 1)))
    del log[data.draw(st.just(len(log)) | st.integers(0, len(log))) :]
    with contextlib.suppress(FormatError):
        reader = LogReader(log)
        assert sum(len(reader.read(entry)) for entry in reader) <= len(log)
