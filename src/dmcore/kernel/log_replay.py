"""Replay a log-writes log onto an image or a device.

Writes go in the order of the log. A discard makes its range read as zeros, always: a hole in a file, zeros that the kernel
writes on a device (BLKZEROOUT), since what a device gives after a discard is its own business.
"""

from __future__ import annotations

import errno
import mmap
import os
import stat
from typing import TYPE_CHECKING, NamedTuple

from dmcore.errors import FormatError, SpecError
from dmcore.formats.log_writes import LogFlag
from dmcore.kernel.block import BlockFile
from dmcore.kernel.libc import punch_hole

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from dmcore.formats.log_index import LogIndex

__all__ = ["Replayed", "replay"]

_WINDOW = 64 << 20
_CHUNK = 1 << 20
_EVERY = 8192


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
    target: Path,
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
        OSError: The target cannot be written; what came before is.
        SpecError: No such entries, or they reach past the end of a device.
    """
    count = len(index)
    stop = count if stop is None else stop
    if not 0 <= start <= stop <= count:
        raise SpecError("entries", f"{start}..{stop}", f"the log has entries 0..{count}")
    flags = os.O_RDWR | os.O_CLOEXEC
    try:
        special = stat.S_ISBLK(target.stat().st_mode)
    except FileNotFoundError:
        special, flags = False, flags | os.O_CREAT
    job = _Job(start, stop, discards, progress)
    if special:
        return _to_device(index, target, job)
    fd = os.open(target, flags, 0o666)
    try:
        return _to_file(index, fd, job)
    finally:
        os.close(fd)


def _to_file(index: LogIndex, fd: int, job: _Job) -> Replayed:
    start, stop, discards, progress = job
    size = max(os.fstat(fd).st_size, index.extent)
    os.ftruncate(fd, size)
    if start == stop or not size:
        return Replayed(stop - start, 0, 0)
    written = discarded = 0
    discard, unit = int(LogFlag.DISCARD), index.sector_size
    log = os.open(index.path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        end = os.lseek(log, 0, os.SEEK_END)
        with mmap.mmap(log, end, access=mmap.ACCESS_READ) as source, mmap.mmap(fd, size) as target:
            shown = 0
            for sector, count, flags, at in index.columns(start, stop):
                if not count:
                    continue
                offset, length = sector * unit, count * unit
                if flags & discard:
                    if discards:
                        _zero(fd, target, offset, length)
                        discarded += length
                    continue
                behind = at + length
                if behind > end:
                    what = f"the log ends at byte {end}, within the data of an entry"
                    raise FormatError(what, at)
                target[offset : offset + length] = source[at:behind]
                written += length
                if at - shown > _WINDOW:
                    source.madvise(mmap.MADV_DONTNEED, 0, at // mmap.PAGESIZE * mmap.PAGESIZE)
                    shown = at
                    if progress is not None:
                        progress(at, end)
    finally:
        os.close(log)
    os.fsync(fd)
    return Replayed(stop - start, written, discarded)


def _zero(fd: int, target: mmap.mmap, offset: int, length: int) -> None:
    try:
        punch_hole(fd, offset, length)
    except OSError as error:
        if error.errno != errno.EOPNOTSUPP:
            raise
        for at in range(offset, offset + length, _CHUNK):
            part = min(_CHUNK, offset + length - at)
            target[at : at + part] = bytes(part)


def _to_device(index: LogIndex, path: Path, job: _Job) -> Replayed:
    start, stop, discards, progress = job
    written = discarded = 0
    with BlockFile(path, direct=False) as target:
        if target.size < index.extent:
            raise SpecError(
                "target", str(path), f"is of {target.size} bytes, the log writes up to {index.extent}"
            )
        for entry in range(start, stop):
            offset, length = index.extent_of(entry)
            if not length:
                continue
            if index.flags(entry) & LogFlag.DISCARD:
                if discards:
                    target.write_zeroes(offset, length)
                    discarded += length
                continue
            at = index.data_offset(entry)
            for done in range(0, length, _CHUNK):
                target.write(offset + done, index.read(at + done, min(_CHUNK, length - done)))
            written += length
            if progress is not None and not entry % _EVERY:
                progress(at, index.size)
        target.flush()
    return Replayed(stop - start, written, discarded)
