"""Sparse files: what of them is data, copies and zeros that keep holes."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

from dmcore.kernel.libc import punch_hole

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["copy_sparse", "extents", "write_all", "write_zeros"]

_CHUNK = 1 << 20


def extents(fd: int, end: int, offset: int = 0) -> Iterator[tuple[int, int]]:
    """Yield the parts of a file from `offset` to `end` that are no holes: first byte, and the byte behind."""
    while offset < end:
        try:
            start = os.lseek(fd, offset, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:
                return
            raise
        offset = min(os.lseek(fd, start, os.SEEK_HOLE), end)
        if start < end:
            yield start, offset


def copy_sparse(source: int, target: int, end: int) -> None:
    """Copy a file to an empty one up to byte `end`, holes as holes; `target` gets that size."""
    for start, stop in extents(source, end):
        offset = start
        while offset < stop:
            data = os.pread(source, min(_CHUNK, stop - offset), offset)
            if not data:
                break
            write_all(target, data, offset)
            offset += len(data)
    os.ftruncate(target, end)


def write_all(fd: int, data: bytes | memoryview, offset: int) -> None:
    """Write all of `data` at `offset`.

    Raises:
        OSError: ENOSPC and the like; a part may be written.
    """
    done = os.pwrite(fd, data, offset)
    while done < len(data):
        done += os.pwrite(fd, memoryview(data)[done:], offset + done)


def write_zeros(fd: int, offset: int, length: int) -> None:
    """Make bytes of a file zeros: a hole where the file system can, else written.

    Raises:
        OSError: ENOSPC and the like.
    """
    try:
        punch_hole(fd, offset, length)
    except OSError as error:
        if error.errno != errno.EOPNOTSUPP:
            raise
        for at in range(offset, offset + length, _CHUNK):
            write_all(fd, bytes(min(_CHUNK, offset + length - at)), at)
