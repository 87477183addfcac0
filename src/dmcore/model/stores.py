"""Disks to stand a model on: a file or block device, memory, and a copy-on-write layer over either."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path
from typing import TYPE_CHECKING

from dmcore import validate
from dmcore.errors import FormatError, SpecError
from dmcore.model.block import FUA, SYNC, BlockDevice, fault, merged, pieces, zeros
from dmcore.units import SECTOR

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["CowStore", "FileStore", "MemoryStore", "check_block_size", "read_exactly"]

_CHUNK = 1 << 16
_CHUNK_SECTORS = _CHUNK // SECTOR


def check_block_size(block_size: int) -> None:
    """Refuse what is no logical block size.

    Raises:
        SpecError: Not a power of two in 512..65536.
    """
    validate.integer("block_size", block_size, SECTOR, 65536, "bytes")
    if block_size & (block_size - 1):
        raise SpecError("block_size", block_size, "must be a power of two")


class FileStore(BlockDevice):
    """A regular file or block device as a disk, its whole 512-byte sectors; never grown.

    Args:
        path: The file.
        readonly: Open it for reading only; writes fail with EPERM, as on a read-only block device.
        block_size: Logical block size that it shows.
        offset: Byte of the file where the disk begins, a multiple of 512.
        size: Bytes of the disk; None: to the file's end.

    Raises:
        OSError: It cannot be opened.
        SpecError: Neither a regular file nor a block device, or `offset` and `size` do not lie in it.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        readonly: bool = False,
        block_size: int = SECTOR,
        offset: int = 0,
        size: int | None = None,
    ) -> None:
        check_block_size(block_size)
        self.path = Path(path)
        self.word = str(self.path)
        self.readonly = readonly
        self.block_size = block_size
        self._fd = os.open(self.path, (os.O_RDONLY if readonly else os.O_RDWR) | os.O_CLOEXEC)
        try:
            self._place(offset, size)
        except BaseException:
            os.close(self._fd)
            raise

    def _place(self, offset: int, size: int | None) -> None:
        mode = os.fstat(self._fd).st_mode
        if not (stat.S_ISREG(mode) or stat.S_ISBLK(mode)):
            raise SpecError("path", self.word, "neither a regular file nor a block device")
        self._regular = stat.S_ISREG(mode)
        whole = os.lseek(self._fd, 0, os.SEEK_END)
        validate.integer("offset", offset, 0, whole, "bytes")
        if offset % SECTOR:
            raise SpecError("offset", offset, f"must be a multiple of {SECTOR} bytes")
        if size is not None:
            validate.integer("size", size, 0, whole - offset, "bytes")
        self._offset = offset
        self.sectors = (whole - offset if size is None else size) // SECTOR

    @property
    def discards(self) -> bool:
        """Whether it is a writable regular file, where a discard makes a hole."""
        return self._regular and not self.readonly

    @property
    def discard_granularity(self) -> int:
        """A block of the file system that the file is on, as the loop driver says (loop_config_discard)."""
        return max(os.fstatvfs(self._fd).f_bsize, self.block_size) if self.discards else 0

    def readinto(self, sector: int, buffer: memoryview, flags: int = SYNC) -> None:
        """Read from the file; a file that has become shorter gives EIO."""
        del flags
        at, done = self._offset + sector * SECTOR, 0
        while done < len(buffer):
            got = os.preadv(self._fd, [buffer[done:] if done else buffer], at + done)
            if not got:
                raise fault(errno.EIO)
            done += got

    def write(self, sector: int, data: memoryview, flags: int = SYNC) -> None:
        """Write to the file."""
        if self.readonly:
            raise fault(errno.EPERM)
        at, done = self._offset + sector * SECTOR, 0
        durable = os.RWF_DSYNC if flags & FUA else 0
        while done < len(data):
            done += os.pwritev(self._fd, [data[done:] if done else data], at + done, durable)

    def flush(self) -> None:
        """Sync the file's data."""
        if not self.readonly:
            os.fdatasync(self._fd)

    def discard(self, sector: int, count: int) -> None:
        """Make a hole, which reads zeros."""
        if not self.discards:
            raise fault(errno.EOPNOTSUPP)
        self._punch(sector, count)

    def write_zeroes(self, sector: int, count: int) -> None:
        """Make a hole where the file can have one, else write zeros."""
        if self.readonly:
            raise fault(errno.EPERM)
        if self._regular:
            self._punch(sector, count)
        else:
            super().write_zeroes(sector, count)

    def _punch(self, sector: int, count: int) -> None:
        from dmcore.kernel.libc import punch_hole  # noqa: PLC0415 - loads ctypes

        try:
            punch_hole(self._fd, self._offset + sector * SECTOR, count * SECTOR)
        except OSError as error:
            if error.errno not in {errno.EOPNOTSUPP, errno.ENOSYS}:
                raise
            super().write_zeroes(sector, count)

    def data_extents(self) -> Iterator[tuple[int, int]]:
        """Yield what is no hole, in whole sectors."""
        if not self._regular:
            yield 0, self.sectors
            return
        at, end = self._offset, self._offset + self.sectors * SECTOR
        while at < end:
            try:
                data = os.lseek(self._fd, at, os.SEEK_DATA)
            except OSError as error:
                if error.errno != errno.ENXIO:
                    raise
                return
            if data >= end:
                return
            at = min(os.lseek(self._fd, data, os.SEEK_HOLE), end)
            first, behind = (data - self._offset) // SECTOR, -(-(at - self._offset) // SECTOR)
            yield first, behind - first

    def close(self) -> None:
        """Close the file."""
        if self._fd >= 0:
            fd, self._fd = self._fd, -1
            os.close(fd)


class MemoryStore(BlockDevice):
    """A disk in memory, zeros at first; only what was written takes memory.

    Args:
        size: Bytes, a multiple of 512.
        block_size: Logical block size that it shows.
        word: Its name in tables and status texts.
        granularity: Bytes of the smallest range that it says a discard can free; None for a logical block.
    """

    def __init__(
        self, size: int, *, block_size: int = SECTOR, word: str = "", granularity: int | None = None
    ) -> None:
        check_block_size(block_size)
        self._granularity = block_size if granularity is None else granularity
        validate.integer("size", size, 0, 2**63 - 1, "bytes")
        if size % SECTOR:
            raise SpecError("size", size, f"must be a multiple of {SECTOR} bytes")
        self.sectors = size // SECTOR
        self.block_size = block_size
        self.word = word
        self._chunks: dict[int, bytearray] = {}

    @property
    def discard_granularity(self) -> int:
        """As it was made."""
        return self._granularity

    @property
    def discards(self) -> bool:
        """Always: discarded sectors read zeros."""
        return True

    def _fill(self, chunk: int, buffer: memoryview, at: int) -> None:
        """Read a piece of a chunk that was never written."""
        del chunk, at
        buffer[:] = zeros(len(buffer))

    def _fresh(self, chunk: int, *, whole: bool) -> bytearray:
        """Return what a chunk holds before its first write; `whole`: all of it is written now."""
        del chunk, whole
        return bytearray(_CHUNK)

    def readinto(self, sector: int, buffer: memoryview, flags: int = SYNC) -> None:
        """Copy from memory."""
        del flags
        for piece in pieces(sector, len(buffer) // SECTOR, _CHUNK_SECTORS):
            number, at = divmod(piece.sector * SECTOR, _CHUNK)
            chunk = self._chunks.get(number)
            if chunk is None:
                self._fill(number, buffer[piece.data], at)
            else:
                buffer[piece.data] = memoryview(chunk)[at : at + piece.length * SECTOR]

    def write(self, sector: int, data: memoryview, flags: int = SYNC) -> None:
        """Copy to memory."""
        del flags
        for piece in pieces(sector, len(data) // SECTOR, _CHUNK_SECTORS):
            number, at = divmod(piece.sector * SECTOR, _CHUNK)
            chunk = self._chunks.get(number)
            if chunk is None:
                chunk = self._chunks[number] = self._fresh(number, whole=piece.length == _CHUNK_SECTORS)
            chunk[at : at + piece.length * SECTOR] = data[piece.data]

    def flush(self) -> None:
        """Do nothing: memory is as durable as this process."""

    def discard(self, sector: int, count: int) -> None:
        """Zero the range."""
        self.write_zeroes(sector, count)

    def write_zeroes(self, sector: int, count: int) -> None:
        """Drop whole chunks, zero the rest."""
        for piece in pieces(sector, count, _CHUNK_SECTORS):
            if piece.length == _CHUNK_SECTORS:
                self._drop(piece.sector // _CHUNK_SECTORS)
            else:
                self.write(piece.sector, zeros(piece.length * SECTOR))

    def _drop(self, chunk: int) -> None:
        self._chunks.pop(chunk, None)

    def data_extents(self) -> Iterator[tuple[int, int]]:
        """Yield the chunks that were written."""
        for number in sorted(self._chunks):
            first = number * _CHUNK_SECTORS
            yield first, min(_CHUNK_SECTORS, self.sectors - first)


class CowStore(MemoryStore):
    """Another disk under a layer of memory that takes all writes; the other is only read and stays open.

    Args:
        base: What unwritten sectors read.
    """

    def __init__(self, base: BlockDevice) -> None:
        super().__init__(base.sectors * SECTOR, block_size=base.block_size, word=base.word)
        self.base = base
        self._dropped: set[int] = set()

    def _fill(self, chunk: int, buffer: memoryview, at: int) -> None:
        if chunk in self._dropped:
            buffer[:] = zeros(len(buffer))
        else:
            self.base.readinto((chunk * _CHUNK + at) // SECTOR, buffer)

    def _fresh(self, chunk: int, *, whole: bool) -> bytearray:
        data = bytearray(_CHUNK)
        first = chunk * _CHUNK_SECTORS
        if chunk not in self._dropped and not whole:
            there = min(_CHUNK_SECTORS, self.sectors - first)
            self.base.readinto(first, memoryview(data)[: there * SECTOR])
        return data

    def _drop(self, chunk: int) -> None:
        super()._drop(chunk)
        self._dropped.add(chunk)

    def data_extents(self) -> Iterator[tuple[int, int]]:
        """Yield what the base has, and what was written."""
        yield from merged(self.base.data_extents(), super().data_extents())

    def delta(self) -> dict[int, bytes]:
        """Return what was written, by its first byte on the disk."""
        written = {number * _CHUNK: bytes(chunk) for number, chunk in self._chunks.items()}
        gone = {number * _CHUNK: bytes(_CHUNK) for number in self._dropped - self._chunks.keys()}
        return written | gone


def read_exactly(device: BlockDevice, sector: int, count: int, what: str) -> bytearray:
    """Return `count` sectors of metadata.

    Raises:
        FormatError: The disk ends before them.
    """
    if sector < 0 or sector + count > device.sectors:
        end = device.sectors * SECTOR
        raise FormatError(f"{what} lies past the end of {device.word or 'the disk'}, {end}", sector * SECTOR)
    return device.read(sector, count)
