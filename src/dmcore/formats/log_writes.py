"""The log that the log-writes target keeps: a super block, then entries one behind the other.

Sources: drivers/md/dm-log-writes.c (log_super, log_one_block, write_inline_data, write_metadata), version 1.

All numbers are little-endian. The super block takes one log sector: magic, version, number of entries, sector size. An
entry is one log sector of header (sector, sectors, flags, length of the mark's text, then that text), followed by its
data, which a discard has none of. A log sector is the logical block size of the data device when the table was loaded.
"""

from __future__ import annotations

import io
import os
import struct
from dataclasses import dataclass
from enum import IntFlag
from typing import TYPE_CHECKING, NamedTuple, Protocol

from dmcore.errors import FormatError, SpecError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import TracebackType
    from typing import Self

__all__ = [
    "BARRIER",
    "END_MARK",
    "MAGIC",
    "VERSION",
    "Entry",
    "LogFlag",
    "LogReader",
    "Readable",
    "SuperBlock",
    "header_problem",
    "pack_entry",
]

MAGIC = 0x6A736677736872
VERSION = 1
END_MARK = "dm-log-writes-end"
"""The mark that the target writes when its table is destroyed, behind all that was not flushed."""
BARRIER = "pytest-dm-barrier-"
"""What marks begin with that `dm_log_writes` makes for itself, to see that the log is written."""

_SUPER = struct.Struct("<QQQI")
_HEADER = struct.Struct("<QQQQ")
_KNOWN_FLAGS = 31
_MAX_BYTES = 2**63 - 1


class LogFlag(IntFlag):
    """What an entry is."""

    FLUSH = 1
    FUA = 2
    DISCARD = 4
    MARK = 8
    METADATA = 16


class SuperBlock(NamedTuple):
    """The start of a log.

    Attributes:
        version: Format version, 1.
        nr_entries: Entries at the time the super block was written: after each mark or FUA write, and at the end. Behind
            a mere flush it is stale; `LogWritesStatus.entries` is the live number.
        sector_size: Bytes of a log sector: a power of two, 512..65536.
    """

    version: int
    nr_entries: int
    sector_size: int

    def pack(self) -> bytes:
        """Return the log's first sector."""
        return _SUPER.pack(MAGIC, *self).ljust(self.sector_size, b"\0")


@dataclass(frozen=True, slots=True)
class Entry:
    """One entry of a log.

    Attributes:
        index: Its number, from 0.
        sector: First sector of the data device, in log sectors.
        nr_sectors: How many log sectors were written or discarded; 0 for a mark and a mere flush.
        flags: `LogFlag` bits.
        data_offset: Byte of the log where its data begins; where the next header is, if it has none.
        mark: A mark's text (bytes that are no UTF-8 as `surrogateescape` writes them); None for all else.
    """

    index: int
    sector: int
    nr_sectors: int
    flags: int
    data_offset: int
    mark: str | None

    @property
    def has_data(self) -> bool:
        """Whether the log holds data of it."""
        return bool(self.nr_sectors) and not self.flags & LogFlag.DISCARD


class Readable(Protocol):
    """Where a log can be read from; `dmcore.kernel.block.BlockFile` is one."""

    @property
    def size(self) -> int:
        """Bytes there are."""
        ...

    def read(self, offset: int, length: int, /) -> bytes:
        """Return `length` bytes from `offset`."""
        ...


class _Buffer:
    """A log in memory."""

    def __init__(self, data: bytes | bytearray | memoryview) -> None:
        self._data = memoryview(data).cast("B")
        self.size = len(self._data)

    def read(self, offset: int, length: int, /) -> bytes:
        return bytes(self._data[offset : offset + length])


class _File:
    """A log in a file or on a block device. The kernel writes logs past the page cache, which is dropped first."""

    def __init__(self, file: io.FileIO) -> None:
        self._file = file
        self.size = file.seek(0, os.SEEK_END)
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)

    def read(self, offset: int, length: int, /) -> bytes:
        fd = self._file.fileno()
        data = os.pread(fd, length, offset)
        while len(data) < length:
            more = os.pread(fd, length - len(data), offset + len(data))
            if not more:
                break
            data += more
        return data


class LogReader:
    """Reads a log that is complete, or that stopped growing.

    Nothing in the log is trusted: what makes no sense is a FormatError with its place, and no read is larger than the
    log. Iterating gives the entries in the order they became durable, in constant time and memory each.

    Args:
        source: A path, an open descriptor (stays open), the bytes themselves, or anything `Readable`, which
            is asked for whole log sectors, but first for the 4096 bytes at its start.
        nr_entries: How many entries there are, if better known than from the super block: `LogWritesStatus.entries`.

    Attributes:
        super_block: The start of the log.
        nr_entries: How many entries iterating gives.
        sector_size: Bytes of a log sector.

    Raises:
        FormatError: No super block of this format.
        OSError: The log cannot be read.
        SpecError: A negative `nr_entries`.
    """

    def __init__(
        self,
        source: str | os.PathLike[str] | int | bytes | bytearray | memoryview | Readable,
        *,
        nr_entries: int | None = None,
    ) -> None:
        self._file: io.FileIO | None = None
        if nr_entries is not None and nr_entries < 0:
            raise SpecError("nr_entries", nr_entries, "must not be negative")
        if isinstance(source, bytes | bytearray | memoryview):
            self._source: Readable = _Buffer(source)
        elif isinstance(source, int | str | os.PathLike):
            self._file = io.FileIO(source, closefd=not isinstance(source, int))
            self._source = _File(self._file)
        else:
            self._source = source
        try:
            self._size = self._source.size
            self.super_block = self._read_super_block()
        except BaseException:
            self.close()
            raise
        self.sector_size = self.super_block.sector_size
        self.nr_entries = self.super_block.nr_entries if nr_entries is None else nr_entries

    def close(self) -> None:
        """Close the file that a path was opened as; reading on raises ValueError."""
        if self._file is not None:
            self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __iter__(self) -> Iterator[Entry]:
        return self.entries()

    def entries(self) -> Iterator[Entry]:
        """Yield the `nr_entries` entries.

        Raises:
            FormatError: The log ends before them, or one makes no sense; those before it were given.
        """
        offset = self.sector_size
        for index in range(self.nr_entries):
            entry, offset = self._entry(index, offset)
            yield entry

    def marks(self) -> Iterator[Entry]:
        """Yield the entries that are marks; errors are those of `entries`."""
        return (entry for entry in self.entries() if entry.mark is not None)

    def beyond(self) -> Iterator[Entry]:
        """Yield what follows the `nr_entries` entries and still reads as entries, up to the first that does not.

        After a log was cut off (a crash, a stale super block) these are valid, as long as the device did not hold an
        older log: the format cannot tell its entries from new ones.
        """
        offset = self.sector_size
        for entry in self.entries():
            offset = self._end(entry)
        index = self.nr_entries
        while True:
            try:
                entry, offset = self._entry(index, offset)
            except FormatError:
                return
            yield entry
            index += 1

    def read(self, entry: Entry) -> bytes:
        """Return the data of an entry of this log: `nr_sectors` log sectors, b"" if it has none.

        Raises:
            FormatError: The log ends within.
        """
        if not entry.has_data:
            return b""
        return self._read(entry.data_offset, entry.nr_sectors * self.sector_size)

    def extent(self, entry: Entry) -> tuple[int, int]:
        """Return the part of the data device that an entry is about: first byte and number of bytes."""
        return entry.sector * self.sector_size, entry.nr_sectors * self.sector_size

    def _end(self, entry: Entry) -> int:
        return entry.data_offset + (entry.nr_sectors * self.sector_size if entry.has_data else 0)

    def _read(self, offset: int, length: int) -> bytes:
        if offset + length > self._size:
            what = f"the log ends at byte {self._size}, within {length} bytes that should be here"
            raise FormatError(what, offset)
        data = self._source.read(offset, length)
        if len(data) < length:
            what = f"only {len(data)} of {length} bytes could be read"
            raise FormatError(what, offset)
        return data

    def _read_super_block(self) -> SuperBlock:
        magic, version, nr_entries, sector_size = _SUPER.unpack_from(
            self._read(0, max(512, min(4096, self._size)))
        )
        if magic != MAGIC:
            what = f"not a log of log-writes: the magic number is {magic:#x}, not {MAGIC:#x}"
            raise FormatError(what, 0)
        if version != VERSION:
            what = f"a log of version {version}; only {VERSION} is known"
            raise FormatError(what, 8)
        if not 512 <= sector_size <= 65536 or sector_size & (sector_size - 1):
            what = f"a sector size of {sector_size} bytes; it is a power of two, 512..65536"
            raise FormatError(what, 24)
        return SuperBlock(version, nr_entries, sector_size)

    def _entry(self, index: int, offset: int) -> tuple[Entry, int]:
        """Return the entry whose header is at `offset`, and where the next one begins."""
        header = self._read(offset, self.sector_size)
        sector, nr_sectors, flags, length = _HEADER.unpack_from(header)
        wrong = header_problem(sector, nr_sectors, flags, length, self.sector_size)
        if wrong:
            what = f"entry {index} {wrong}"
            raise FormatError(what, offset)
        mark = None
        if flags & LogFlag.MARK:
            mark = header[_HEADER.size : _HEADER.size + length].decode("utf-8", "surrogateescape")
        entry = Entry(index, sector, nr_sectors, flags, offset + self.sector_size, mark)
        end = self._end(entry)
        if end > self._size:
            what = f"entry {index} has data up to byte {end}, the log ends at {self._size}"
            raise FormatError(what, offset)
        return entry, end


def pack_entry(sector: int, nr_sectors: int, flags: int, text: bytes, sector_size: int) -> bytes:
    """Return an entry's first log sector; `text` is a mark's, of `sector_size - 32` bytes at most."""
    return (_HEADER.pack(sector, nr_sectors, flags, len(text)) + text).ljust(sector_size, b"\0")


def header_problem(sector: int, nr_sectors: int, flags: int, length: int, sector_size: int) -> str:
    """Return what makes no sense of an entry's header, as the end of a sentence about the entry; "" if all does."""
    if flags & ~_KNOWN_FLAGS:
        return f"has unknown flags ({flags:#x})"
    if flags & LogFlag.MARK:
        room = sector_size - _HEADER.size
        if nr_sectors or length > room:
            return f"is a mark of {length} bytes, of {room} at most, with {nr_sectors} sectors, of none"
        return ""
    if length or not (flags or nr_sectors):
        return f"has flags {flags:#x}, {nr_sectors} sectors and {length} bytes of text, which no entry has"
    if (sector + nr_sectors) * sector_size > _MAX_BYTES:
        return f"is for sectors {sector}+{nr_sectors}, which no device has"
    return ""
