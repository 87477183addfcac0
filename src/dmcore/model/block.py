"""BlockDevice: what a model stands on and what it offers. Requests in 512-byte sectors, faults as OSError.

A request is one bio of the kernel: data for all of its sectors, and one outcome. It may have been served in part when it
fails, exactly as in the kernel.
"""

from __future__ import annotations

import errno
import heapq
import os
from abc import ABC, abstractmethod
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

from dmcore.errors import DmError
from dmcore.units import SECTOR

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from typing import Self

__all__ = [
    "FUA",
    "IDLE",
    "META",
    "PREFLUSH",
    "RAHEAD",
    "SYNC",
    "ZERO_PAGE",
    "BlockDevice",
    "Piece",
    "Suspended",
    "discard_requests",
    "extents_within",
    "fault",
    "is_zero_page",
    "merged",
    "pieces",
    "zeros",
]

SYNC = 1 << 11
"""A request somebody waits for (REQ_SYNC): every read and every direct write."""
META = 1 << 12
"""Metadata of a file system (REQ_META)."""
IDLE = 1 << 15
"""More of the same kind may follow (REQ_IDLE): every direct write."""
FUA = 1 << 17
"""A write that is durable when it completes (REQ_FUA)."""
PREFLUSH = 1 << 18
"""Earlier completed writes are durable before this write (REQ_PREFLUSH)."""
RAHEAD = 1 << 19
"""Read-ahead, which may fail at any time (REQ_RAHEAD)."""

ZERO_PAGE = 1 << 20
"""Bytes of zeros that are kept at hand; also the most that one request of zeros has (BIO_MAX_VECS pages)."""
_MOST_BYTES = 2**32 - 1
"""The most that one request discards."""
_ZEROS = memoryview(bytes(ZERO_PAGE))


class Suspended(DmError):
    """I/O to a suspended device: the kernel would hold it back until somebody resumes the device."""


def fault(number: int) -> OSError:
    """Return the error that a failed request raises: errno `number`."""
    return OSError(number, os.strerror(number))


def zeros(length: int) -> memoryview:
    """Return `length` bytes of zeros, read-only; at most `ZERO_PAGE` of them cost nothing."""
    return _ZEROS[:length] if length <= ZERO_PAGE else memoryview(bytes(length))


def is_zero_page(data: memoryview) -> bool:
    """Whether `data` comes from `zeros`, as the kernel's own zero page does that stands for many."""
    return data.obj is _ZEROS.obj


class Piece(NamedTuple):
    """A part of a request: `length` sectors from `sector`, which lie at `data` in the bytes of the request."""

    sector: int
    length: int
    data: slice


def pieces(sector: int, count: int, boundary: int) -> Iterator[Piece]:
    """Cut a request at every multiple of `boundary` sectors (0: nowhere)."""
    if not boundary:
        yield Piece(sector, count, slice(None))
        return
    end, first = sector + count, sector
    while sector < end:
        step = min(end - sector, boundary - sector % boundary)
        at = (sector - first) * SECTOR
        yield Piece(sector, step, slice(at, at + step * SECTOR))
        sector += step


def discard_requests(device: BlockDevice, sector: int, count: int) -> Iterator[Callable[[], None]]:
    """Yield the requests that the ioctl BLKDISCARD makes: up to the first multiple of the granularity, then the rest.

    They are under way at once (`Clock.together`). EOPNOTSUPP from a device that takes discards is forgiven.
    Sources: block/blk-lib.c (bio_discard_limit), block/ioctl.c (blk_ioctl_discard).
    """
    granularity = max(device.discard_granularity // SECTOR, 1)
    most = max((_MOST_BYTES // SECTOR) // granularity, 1) * granularity
    while count:
        step = min(count, -sector % granularity or most)
        yield partial(_discard, device, sector, step)
        sector += step
        count -= step


def merged(*extents: Iterable[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """Yield `(sector, count)` of what any of the sources has, each of them in order: in order, joined where they touch."""
    begin = end = 0
    for first, count in heapq.merge(*extents):
        if first > end > begin:
            yield begin, end - begin
            begin = end = first
        if end == begin:
            begin = end = first
        end = max(end, first + count)
    if end > begin:
        yield begin, end - begin


def extents_within(device: BlockDevice, start: int, count: int) -> Iterator[tuple[int, int]]:
    """Yield the `data_extents` of a part of a device, by sectors of the part."""
    for first, length in device.data_extents():
        if first >= start + count:
            return
        begin, end = max(first, start), min(first + length, start + count)
        if begin < end:
            yield begin - start, end - begin


def _discard(device: BlockDevice, sector: int, count: int) -> None:
    try:
        device.discard(sector, count)
    except OSError as error:
        if error.errno != errno.EOPNOTSUPP or not device.discards:
            raise


class BlockDevice(ABC):
    """A disk. Callers give whole logical blocks that lie on the disk: a `Volume` checks, and a dm table is checked.

    Attributes:
        sectors: Size in 512-byte sectors.
        block_size: Logical block size in bytes: 512..65536, a power of two.
        word: What a table and a status text call it: "7:0" for a kernel's device, a name or path otherwise.
        advances: A request that is done stands at its end (bi_iter), as drivers of disks leave it; dm works on a clone.

    A disk may keep a tag of `tag_size` bytes beside each `tag_interval` bytes of data for the layer above (in the kernel: an
    integrity profile without a checksum of its own, which dm-integrity without `internal_hash` offers to dm-crypt). Data
    and their tags then go down and up together, in `write_tagged` and `readinto_tagged`.
    """

    sectors: int
    block_size: int = SECTOR
    word: str = ""
    advances: bool = True

    @property
    def write_cache(self) -> bool:
        """Whether it says that it has a volatile cache; if not, flushes succeed without it and FUA says nothing."""
        return True

    @property
    def tag_size(self) -> int:
        """Bytes of the tag that the layer above may keep beside each `tag_interval` bytes; 0: none."""
        return 0

    @property
    def tag_interval(self) -> int:
        """Bytes of data that each tag is for (0 without tags), a power of two."""
        return 0

    @property
    def discards(self) -> bool:
        """Whether it takes discards; where not, they fail with EOPNOTSUPP."""
        return False

    @property
    def discard_granularity(self) -> int:
        """Bytes of the smallest range a discard can free (0: it takes none)."""
        return self.block_size if self.discards else 0

    @property
    def zeroes_natively(self) -> bool:
        """Whether `write_zeroes` is an operation of its own; where not, zeros are written."""
        return False

    @abstractmethod
    def readinto(self, sector: int, buffer: memoryview, flags: int = SYNC) -> None:
        """Fill `buffer`, which is writable bytes, from `sector` on.

        Raises:
            OSError: What a read(2) would get; the buffer's content is undefined.
        """

    @abstractmethod
    def write(self, sector: int, data: memoryview, flags: int = SYNC) -> None:
        """Write `data` from `sector` on; with `FUA` it is durable on return.

        Raises:
            OSError: What a write(2) would get; a part of the data may have been written.
        """

    def readinto_tagged(self, sector: int, buffer: memoryview, tags: memoryview, flags: int = SYNC) -> None:
        """Fill `buffer` from `sector` on, and `tags` with the tags of its intervals, one behind the other.

        Raises:
            OSError: What a read(2) would get, EOPNOTSUPP without tags; the content of both is undefined.
        """
        del sector, buffer, tags, flags
        raise fault(errno.EOPNOTSUPP)

    def write_tagged(self, sector: int, data: memoryview, tags: memoryview, flags: int = SYNC) -> None:
        """Write `data` from `sector` on, each interval together with its tag of `tags`.

        Raises:
            OSError: What a write(2) would get, EOPNOTSUPP without tags; a part may have been written.
        """
        del sector, data, tags, flags
        raise fault(errno.EOPNOTSUPP)

    @abstractmethod
    def flush(self) -> None:
        """Make every write that has returned durable."""

    def discard(self, sector: int, count: int) -> None:
        """Forget `count` sectors; what they read afterwards is the device's affair."""
        del sector, count
        raise fault(errno.EOPNOTSUPP)

    def write_zeroes(self, sector: int, count: int) -> None:
        """Zero `count` sectors: requests of zeros, all of which are tried; the last one is waited for.

        Source: block/blk-lib.c (__blkdev_issue_zero_pages).
        """
        failed: OSError | None = None
        for first in range(0, count, ZERO_PAGE // SECTOR):
            length = min(count - first, ZERO_PAGE // SECTOR)
            try:
                self.write(sector + first, zeros(length * SECTOR), SYNC if first + length == count else 0)
            except OSError as error:
                failed = failed or error
        if failed is not None:
            raise failed

    def read(self, sector: int, count: int) -> bytearray:
        """Return `count` sectors."""
        data = bytearray(count * SECTOR)
        self.readinto(sector, memoryview(data))
        return data

    def data_extents(self) -> Iterable[tuple[int, int]]:
        """Yield `(sector, count)` of all that may hold something else than zeros, in order."""
        return [(0, self.sectors)]

    def close(self) -> None:  # noqa: B027 - nothing to let go of is common
        """Let go of what it holds; a second call does nothing."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.word or '?'}: {self.sectors} sectors>"
