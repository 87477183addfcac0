"""Replay a log-writes log onto an image or a device.

The target gets what the writes in the order of the log leave; what a later one overwrites may never be written. A discard makes its range read as zeros, always: a hole in a file, zeros that the kernel
writes on a device (BLKZEROOUT), since what a device gives after a discard is its own business.
"""

from __future__ import annotations

import mmap
import os
import stat
from typing import TYPE_CHECKING, NamedTuple

from dmcore.errors import FormatError, SpecError
from dmcore.formats.log_writes import LogFlag
from dmcore.kernel.files import MOST_PARTS, write_parts, write_zeros

if TYPE_CHECKING:
    from collections.abc import Callable

    from dmcore.formats.log_index import LogIndex

__all__ = ["Replayed", "replay"]

_WINDOW = 256 << 20
"""Bytes of the log after which what is waiting is written, and forgotten by this process' page tables."""
_MOST = 1 << 16
"""Writes that may wait."""


class Replayed(NamedTuple):
    """What was replayed.

    Attributes:
        entries: Entries, marks and flushes too.
        written: Bytes.
        discarded: Bytes.
    """

    entries: int
    written: int
    discarded: int


class _Job(NamedTuple):
    start: int
    stop: int
    discards: bool
    progress: Callable[[int, int], None] | None


def replay(
    index: LogIndex,
    target: str | os.PathLike[str],
    *,
    start: int = 0,
    stop: int | None = None,
    discards: bool = True,
    progress: Callable[[int, int], None] | None = None,
) -> Replayed:
    """Apply the entries from `start` to before `stop`, and flush.

    Args:
        index: The log.
        target: An image, which grows as needed and is made if it is not there, or a block device.
        start: Number of the first entry.
        stop: Number of the entry behind the last; None for the end.
        discards: Whether to apply discards too.
        progress: Called once in a while with the bytes of the log done and of all.

    Raises:
        FormatError: The log was cut since it was indexed.
        OSError: The target cannot be written; a part may be.
        SpecError: No such entries, or they reach past the end of a device.
    """
    count = len(index)
    stop = count if stop is None else stop
    if not 0 <= start <= stop <= count:
        raise SpecError("entries", f"{start}..{stop}", f"the log has entries 0..{count}")
    flags = os.O_RDWR | os.O_CLOEXEC
    try:
        special = stat.S_ISBLK(os.stat(target).st_mode)  # noqa: PTH116 - pathlib takes longer to load than a replay
    except FileNotFoundError:
        special, flags = False, flags | os.O_CREAT
    job = _Job(start, stop, discards, progress)
    try:
        if special:
            return _to_device(index, target, job)
        fd = os.open(target, flags, 0o666)
        try:
            return _to_file(index, fd, job)
        finally:
            os.close(fd)
    except OSError as error:
        if error.filename is None and error.errno is not None:
            raise OSError(error.errno, os.strerror(error.errno), os.fspath(target)) from error
        raise


def _to_file(index: LogIndex, fd: int, job: _Job) -> Replayed:
    size = max(os.fstat(fd).st_size, index.extent)
    os.ftruncate(fd, size)
    done = _apply(index, fd, job, lambda offset, length: write_zeros(fd, offset, length))
    os.fsync(fd)
    return done


def _to_device(index: LogIndex, path: str | os.PathLike[str], job: _Job) -> Replayed:
    from dmcore.kernel.block import BlockFile  # noqa: PLC0415 - files need none

    with BlockFile(path, direct=False) as target:
        if target.size < index.extent:
            raise SpecError(
                "target", os.fspath(path), f"is of {target.size} bytes, the log writes up to {index.extent}"
            )
        done = _apply(index, target.fileno(), job, target.write_zeroes)
        target.flush()
    return done


def _apply(index: LogIndex, fd: int, job: _Job, zero: Callable[[int, int], None]) -> Replayed:
    """Write what the entries of a job write; `zero` makes bytes of the target zeros."""
    start, stop, discards, progress = job
    written = discarded = 0
    discard, unit = int(LogFlag.DISCARD), index.sector_size
    log = os.open(index.path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        end = os.lseek(log, 0, os.SEEK_END)
        with mmap.mmap(log, end, access=mmap.ACCESS_READ) as source, memoryview(source) as data:
            waiting = _Waiting(fd, data, unit)
            latest, put = waiting.latest, waiting.put
            for sector, count, flags, at in index.columns(start, stop):
                if not count:
                    continue
                if flags & discard:
                    if discards:
                        waiting.write()
                        zero(sector * unit, count * unit)
                        discarded += count * unit
                    continue
                if at + count * unit > end:
                    waiting.write()
                    what = f"the log ends at byte {end}, within the data of an entry"
                    raise FormatError(what, at)
                written += count
                known = latest.get(sector)
                if known is None or known[0] <= count:
                    latest[sector] = (count, at)
                else:
                    put(sector, count, at)
                if len(latest) >= _MOST or at - waiting.begin > _WINDOW:
                    waiting.write()
                    source.madvise(mmap.MADV_DONTNEED, 0, at // mmap.PAGESIZE * mmap.PAGESIZE)
                    waiting.begin = at
                    if progress is not None:
                        progress(at, end)
            waiting.write()
    finally:
        os.close(log)
    return Replayed(stop - start, written * unit, discarded)


class _Waiting:
    """Writes that are not yet done, by their first sector: of those that begin at one place only the last, if it covers the others.

    They are written in order of place, neighbours in one call, if none overlaps another, else in the order of the log.
    """

    def __init__(self, fd: int, data: memoryview, unit: int) -> None:
        self._fd = fd
        self._data = data
        self._unit = unit
        self.latest: dict[int, tuple[int, int]] = {}
        self.begin = 0

    def put(self, sector: int, count: int, at: int) -> None:
        """Take a write that covers a part only of one that begins at the same place."""
        self.write()
        self.latest[sector] = (count, at)

    def write(self) -> None:
        """Do them."""
        latest = self.latest
        if not latest:
            return
        order = sorted(latest)
        end = 0
        for sector in order:
            if sector < end:
                order.sort(key=lambda one: latest[one][1])
                break
            end = sector + latest[sector][0]
        data, unit = self._data, self._unit
        begin = behind = -1
        parts: list[memoryview] = []
        for sector in order:
            count, at = latest[sector]
            if sector != behind or len(parts) == MOST_PARTS:
                if parts:
                    write_parts(self._fd, parts, begin * unit)
                begin, parts = sector, []
            parts.append(data[at : at + count * unit])
            behind = sector + count
        write_parts(self._fd, parts, begin * unit)
        latest.clear()
