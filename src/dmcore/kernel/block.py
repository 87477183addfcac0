"""Byte I/O on a block device node: the `Volume` protocol on a kernel.

Direct I/O by default, so that what a test reads is what the device says and errors come from the call that met them;
buffered I/O reports a write's error at the next flush, and once.
"""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import struct
from pathlib import Path
from typing import TYPE_CHECKING

from dmcore.abi.block import BlockCommand, byte_range
from dmcore.errors import IoctlError, SpecError

if TYPE_CHECKING:
    from types import TracebackType
    from typing import Self

__all__ = ["BlockFile"]

_CHUNK = 1 << 20


class BlockFile:
    """An open block device (or regular file): read, write, flush, discard, write zeroes, by byte ranges.

    Every operation raises the kernel's OSError as it is (EIO, ENOSPC, EREMOTEIO ...), with the node as `filename`.
    One request of at most 1 MiB goes down as one system call; longer ones in pieces of 1 MiB, and an error leaves the
    pieces before it done.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        direct: bool = True,
        readonly: bool = False,
        synchronous: bool = False,
    ) -> None:
        """Open `path`.

        Args:
            path: The node.
            direct: O_DIRECT; offsets and lengths must then be multiples of the logical block size.
            readonly: Open for reading only.
            synchronous: O_DSYNC: a write returns when it is durable (with direct I/O: a FUA write and a flush).
        """
        self.path = Path(path)
        self.direct = direct
        flags = (os.O_RDONLY if readonly else os.O_RDWR) | os.O_CLOEXEC | (os.O_DIRECT if direct else 0)
        self._fd = os.open(self.path, flags | (os.O_DSYNC if synchronous else 0))
        self._buffer: mmap.mmap | None = None
        self.block_size = self._logical_block_size() if direct else 1

    def _logical_block_size(self) -> int:
        buffer = bytearray(4)
        try:
            fcntl.ioctl(self._fd, BlockCommand.BLKSSZGET, buffer)
        except OSError as error:
            if error.errno != errno.ENOTTY:
                self.close()
                raise IoctlError(error.errno or errno.EIO, "BLKSSZGET", str(self.path)) from error
            return 512
        return int(struct.unpack("=i", buffer)[0])

    @property
    def size(self) -> int:
        """Bytes."""
        return os.lseek(self._fd, 0, os.SEEK_END)

    def fileno(self) -> int:
        """Return the file descriptor."""
        return self._fd

    def _check(self, offset: int, length: int) -> None:
        for field, value in (("offset", offset), ("length", length)):
            if value < 0:
                raise SpecError(field, value, "cannot be negative")
            if value % self.block_size:
                raise SpecError(
                    field, value, f"direct I/O needs multiples of the {self.block_size}-byte logical block"
                )
        if offset + length > (size := self.size):
            raise SpecError("length", length, f"{offset} + {length} is past the device's end at {size}")

    def _aligned(self) -> mmap.mmap:
        if self._buffer is None:
            self._buffer = mmap.mmap(-1, _CHUNK)
        return self._buffer

    def _os_error(self, error: OSError) -> OSError:
        return OSError(error.errno, os.strerror(error.errno or 0), str(self.path))

    def read(self, offset: int, length: int) -> bytes:
        """Return `length` bytes from `offset`."""
        self._check(offset, length)
        pieces: list[bytes] = []
        with memoryview(self._aligned()) as buffer:
            while length:
                want = min(length, _CHUNK)
                try:
                    got = os.preadv(self._fd, [buffer[:want]], offset)
                except OSError as error:
                    raise self._os_error(error) from error
                if not got:
                    raise self._os_error(OSError(errno.EIO, "short read"))
                pieces.append(bytes(buffer[:got]))
                offset += got
                length -= got
        return b"".join(pieces)

    def write(self, offset: int, data: bytes | bytearray | memoryview) -> None:
        """Write all of `data` at `offset`."""
        view = memoryview(data).cast("B")
        self._check(offset, len(view))
        done = 0
        with memoryview(self._aligned()) as buffer:
            while done < len(view):
                piece = view[done : done + _CHUNK]
                buffer[: len(piece)] = piece
                try:
                    put = os.pwritev(self._fd, [buffer[: len(piece)]], offset + done)
                except OSError as error:
                    raise self._os_error(error) from error
                if not put:
                    raise self._os_error(OSError(errno.EIO, "short write"))
                done += put

    def flush(self) -> None:
        """Make completed writes durable: fsync(2), an empty flush for the device."""
        try:
            os.fsync(self._fd)
        except OSError as error:
            raise self._os_error(error) from error

    def _range(self, request: BlockCommand, offset: int, length: int) -> None:
        self._check(offset, length)
        if not length:
            return
        try:
            fcntl.ioctl(self._fd, request, byte_range(offset, length))
        except OSError as error:
            raise self._os_error(error) from error

    def discard(self, offset: int, length: int) -> None:
        """Discard a range (BLKDISCARD); EOPNOTSUPP where the device does not."""
        self._range(BlockCommand.BLKDISCARD, offset, length)

    def write_zeroes(self, offset: int, length: int) -> None:
        """Zero a range (BLKZEROOUT); devices without the operation get ordinary writes of zeros."""
        self._range(BlockCommand.BLKZEROOUT, offset, length)

    def drop_caches(self) -> None:
        """Write back and drop the node's page cache (BLKFLSBUF)."""
        try:
            fcntl.ioctl(self._fd, BlockCommand.BLKFLSBUF)
        except OSError as error:
            raise self._os_error(error) from error

    def forget_cached(self) -> None:
        """Drop the node's clean page cache, so that the next buffered read asks the device."""
        os.posix_fadvise(self._fd, 0, 0, os.POSIX_FADV_DONTNEED)

    def close(self) -> None:
        """Close; a second call does nothing."""
        if self._fd >= 0:
            fd, self._fd = self._fd, -1
            os.close(fd)
        if self._buffer is not None:
            self._buffer.close()
            self._buffer = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
