"""An index of a log-writes log: one scan, then any entry, mark, flush or FUA write by number in O(log n).

A replayer without one reads every header from the start for each seek. The scan reads headers only, 32 bytes each; an index
that was saved beside the log spares it.

A log may be cut off (a crash while it was recorded, a full disk, a partial copy) or have a super block that lags behind.
What is consistent is indexed and `LogIndex.warnings` says what was met; a header that makes no sense before that is an
error, since what the log says about the device from there on is lost.
"""

from __future__ import annotations

import io
import os
import struct
from array import array
from bisect import bisect_left
from contextlib import nullcontext
from typing import TYPE_CHECKING

from dmcore.errors import FormatError, SpecError
from dmcore.formats.log_index_file import Saved, recall, save
from dmcore.formats.log_writes import END_MARK, Entry, LogFlag, LogReader, SuperBlock, header_problem

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager
    from types import TracebackType
    from typing import Self

__all__ = ["LogIndex"]

_HEADER = struct.Struct("<QQQQ")
_PLAIN = int(LogFlag.FLUSH | LogFlag.FUA | LogFlag.METADATA)
_EVERY = 65536
_WINDOW = 1 << 17


class LogIndex:
    """The entries of a log, by number.

    Holds 32 bytes of memory per entry and no data; data is read from the file when asked for. The file stays open until
    `close`.

    Args:
        path: The log, a file or a block device.
        nr_entries: How many entries there are, if better known than from the super block: `LogWritesStatus.entries`.
        salvage: Take what stands before a damaged entry, with a warning, where this would be an error.
        progress: Called every 65536 entries with the bytes scanned and the log's size.
        view: Gives the bytes of a descriptor without reading them (`dmcore.kernel.files.mapped`), for speed; for a log that nobody
            cuts meanwhile.

    Attributes:
        path: The log.
        size: Bytes of the file.
        super_block: The start of the log.
        sector_size: Bytes of a log sector.
        warnings: What is not as it should be though the index is good, one sentence each.
        complete: Whether the last entry is the mark that the target writes when its table is destroyed.
        extent: First byte of the data device behind all that the log writes or discards.
        recalled: Whether it was read from the file that `save` wrote, which is not done with `nr_entries` or `salvage`.

    Raises:
        FormatError: No log, or an entry that makes no sense before `nr_entries`; with its offset.
        OSError: The log cannot be read.
        SpecError: A negative `nr_entries`.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        nr_entries: int | None = None,
        salvage: bool = False,
        progress: Callable[[int, int], None] | None = None,
        view: Callable[[int], AbstractContextManager[memoryview]] | None = None,
    ) -> None:
        if nr_entries is not None and nr_entries < 0:
            raise SpecError("nr_entries", nr_entries, "must not be negative")
        self.path = os.fspath(path)
        with LogReader(path) as reader:
            self.super_block: SuperBlock = reader.super_block
        self.sector_size = self.super_block.sector_size
        self.warnings: list[str] = []
        self.complete = False
        self.extent = 0
        self._sectors = array("Q")
        self._counts = array("Q")
        self._flags = array("B")
        self._offsets = array("Q")
        self._marks: dict[int, str] = {}
        self._by_flag: dict[int, array[int]] = {}
        self._mapped: memoryview | None = None
        self._file = io.FileIO(path)
        self._status = os.fstat(self._file.fileno())
        try:
            self.size = self._file.seek(0, os.SEEK_END)
            counted = self.super_block.nr_entries if nr_entries is None else nr_entries
            self._as_counted = nr_entries is None and not salvage
            self.recalled = self._as_counted and self._recall()
            if not self.recalled:
                with nullcontext() if view is None else view(self._file.fileno()) as self._mapped:
                    self._scan(counted, salvage, progress)
                self._mapped = None
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Close the file; reading data on raises ValueError."""
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _recall(self) -> bool:
        """Take the index that was saved, if there is one of the log as it is."""
        known = recall(self.path, self._status, self.super_block)
        if known is None:
            return False
        self.extent, self.complete = known.extent, known.complete
        self._marks, self.warnings = known.marks, known.warnings
        self._sectors, self._counts, self._offsets = known.sectors, known.counts, known.offsets
        self._flags = known.flags
        return True

    def save(self) -> str:
        """Write the index to a file beside the log, which the next one of this log is read from; return its path.

        Raises:
            SpecError: The log is a device, or is not read as its super block says.
            OSError: The file cannot be written.
        """
        if not self._as_counted:
            raise SpecError(
                "save",
                self.path,
                "an index of another number of entries than the log's, or of a damaged log, is not saved",
            )
        saved = Saved(
            self.super_block, self.extent, self.complete, self._marks, self.warnings,
            self._sectors, self._counts, self._offsets, self._flags,
        )  # fmt: skip
        return save(self.path, self._status, saved)

    def _scan(self, counted: int, salvage: bool, progress: Callable[[int, int], None] | None) -> None:  # noqa: FBT001 - internal
        offset = self._quick(self.sector_size, counted, progress)
        while len(self) < counted:
            try:
                offset = self._take(offset)
            except FormatError as error:
                cut = offset + self.sector_size > self.size or "the log ends" in error.what
                if not cut and not salvage:
                    raise
                how = "is cut off" if cut else "is damaged"
                self.warnings.append(
                    f"the log {how}: {error}; it should have {counted} entries, the {len(self)} before it are used"
                )
                break
            offset = self._quick(offset, counted, progress)
        else:
            if not self.complete:
                self._beyond(counted, offset)

    def _quick(self, offset: int, counted: int, progress: Callable[[int, int], None] | None) -> int:
        """Index entries from `offset` on up to the first that is more than a plain write or flush; return its offset."""
        known = len(self)
        fd, size, end = self._file.fileno(), self.sector_size, self.size - self.sector_size
        unpack = _HEADER.unpack_from
        sectors, counts, all_flags, offsets = self._sectors, self._counts, self._flags, self._offsets
        extent = self.extent // size
        left = counted - len(sectors)
        plain = ~_PLAIN
        buffer: bytes | memoryview = b"" if self._mapped is None else self._mapped
        begin, last = 0, len(buffer) - 32
        while left > 0 and offset <= end:
            if offset > last:
                near = offset - last < _WINDOW  # else entries are so large that a window holds one header
                buffer = os.pread(fd, _WINDOW if near else 32, offset)
                begin, last = offset, offset + len(buffer) - 32
                if last < offset:
                    break
            sector, nr_sectors, flags, length = unpack(buffer, offset - begin)
            behind = offset + size + nr_sectors * size
            if (
                flags & plain
                or length
                or not (flags or nr_sectors)
                or (sector | nr_sectors) >> 50
                or behind > self.size
            ):
                break
            sectors.append(sector)
            counts.append(nr_sectors)
            all_flags.append(flags)
            offsets.append(offset + size)
            if nr_sectors and sector + nr_sectors > extent:
                extent = sector + nr_sectors
            offset = behind
            left -= 1
            if progress is not None and not left % _EVERY:
                progress(offset, self.size)
        if len(sectors) > known:
            self.complete = False
        self.extent = extent * size
        return offset

    def _beyond(self, counted: int, offset: int) -> None:
        """Take what stands behind the entries that the super block counts, up to the first that is none."""
        while not self.complete:
            try:
                offset = self._take(offset)
            except FormatError:
                break
        more = len(self) - counted
        if more:
            self.warnings.append(
                f"the super block counts {counted} entries, {more} more behind them are consistent and were taken; the log "
                "was not closed"
            )

    def _take(self, offset: int) -> int:
        """Index the entry whose header is at `offset`; return where the next one begins."""
        index, fd = len(self._sectors), self._file.fileno()
        size = self.sector_size
        header = os.pread(fd, 32, offset)
        if offset + size > self.size or len(header) < 32:
            what = f"the log ends at byte {self.size}, within entry {index}"
            raise FormatError(what, offset)
        sector, nr_sectors, flags, length = _HEADER.unpack(header)
        if flags & ~_PLAIN or length or not (flags or nr_sectors) or (sector | nr_sectors) >> 50:
            problem = header_problem(sector, nr_sectors, flags, length, size)
            if problem:
                what = f"entry {index} {problem}"
                raise FormatError(what, offset)
        end = offset + size
        if nr_sectors:
            if not flags & LogFlag.DISCARD:
                end += nr_sectors * size
                if end > self.size:
                    what = f"entry {index} has data up to byte {end}, the log ends at {self.size}"
                    raise FormatError(what, offset)
            self.extent = max(self.extent, (sector + nr_sectors) * size)
        if flags & LogFlag.MARK:
            text = os.pread(fd, length, offset + 32).decode("utf-8", "surrogateescape")
            self._marks[index] = text
            self.complete = text == END_MARK
        else:
            self.complete = False
        self._sectors.append(sector)
        self._counts.append(nr_sectors)
        self._flags.append(flags)
        self._offsets.append(offset + size)
        return end

    def __len__(self) -> int:
        return len(self._sectors)

    def __getitem__(self, index: int) -> Entry:
        """Return an entry by its number; negative numbers count from the end.

        Raises:
            IndexError: There is none of that number.
        """
        if index < 0:
            index += len(self)
        return Entry(
            index,
            self._sectors[index],
            self._counts[index],
            self._flags[index],
            self._offsets[index],
            self._marks.get(index),
        )

    def __iter__(self) -> Iterator[Entry]:
        return (self[index] for index in range(len(self)))

    @property
    def marks(self) -> dict[int, str]:
        """All marks, the target's own end mark too: entry number to text, in order."""
        return self._marks

    def find_mark(self, name: str, *, start: int = 0) -> int:
        """Return the number of the first mark of that text at or behind entry `start`.

        Raises:
            SpecError: There is none.
        """
        positions = self.positions(LogFlag.MARK)
        for index in positions[bisect_left(positions, start) :]:
            if self._marks[index] == name:
                return index
        known = ", ".join(list(self._marks.values())[:8])
        raise SpecError(
            "mark", name, f"no such mark at or behind entry {start}; there are: {known or 'none'}"
        )

    def positions(self, flag: LogFlag) -> array[int]:
        """Return the numbers of all entries with that flag, ascending; made once per flag.

        Of FUA only those with data: the kernel logs the flush before such a write with the write's own flags.
        """
        found = self._by_flag.get(flag)
        if found is None:
            found = array("Q", (index for index, flags in enumerate(self._flags) if flags & flag))
            if flag is LogFlag.FUA:
                found = array("Q", (index for index in found if self._counts[index]))
            self._by_flag[flag] = found
        return found

    def next(self, flag: LogFlag, start: int = 0) -> int | None:
        """Return the number of the first entry with that flag at or behind `start`; None if there is none. O(log n)."""
        positions = self.positions(flag)
        at = bisect_left(positions, start)
        return positions[at] if at < len(positions) else None

    def flags(self, index: int) -> int:
        """Return the `LogFlag` bits of an entry."""
        return self._flags[index]

    def columns(self, start: int, stop: int) -> Iterator[tuple[int, int, int, int]]:
        """Yield of each entry in a range, fast: sector, number of sectors, flags, byte of the log behind its header."""
        return zip(
            self._sectors[start:stop], self._counts[start:stop], self._flags[start:stop], self._offsets[start:stop],
            strict=True,
        )  # fmt: skip

    def extent_of(self, index: int) -> tuple[int, int]:
        """Return the part of the data device that an entry is about: first byte and number of bytes."""
        return self._sectors[index] * self.sector_size, self._counts[index] * self.sector_size

    def data_offset(self, index: int) -> int:
        """Return the byte of the log where an entry's data begins; -1 for an entry without data."""
        if not self._counts[index] or self._flags[index] & LogFlag.DISCARD:
            return -1
        return self._offsets[index]

    def read(self, offset: int, length: int) -> bytes:
        """Return bytes of the log.

        Raises:
            FormatError: The log ends within; it did not when it was indexed.
        """
        data = os.pread(self._file.fileno(), length, offset)
        while len(data) < length:
            more = os.pread(self._file.fileno(), length - len(data), offset + len(data))
            if not more:
                what = f"the log ends at byte {offset + len(data)}, within data that was there before"
                raise FormatError(what, offset)
            data += more
        return data
