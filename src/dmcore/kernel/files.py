"""Bytes and zeros into files, whole."""

from __future__ import annotations

import errno
import os
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Generator, Sequence

__all__ = ["MOST_PARTS", "mapped", "write_all", "write_parts", "write_zeros"]

MOST_PARTS = os.sysconf("SC_IOV_MAX")
"""Parts that one call of the kernel takes."""
_CHUNK = 1 << 20


@contextmanager
def mapped(fd: int) -> Generator[memoryview]:
    """Give a file's bytes without reading them, as long as nobody cuts it meanwhile.

    Raises:
        OSError: It cannot be mapped.
        ValueError: It is empty.
    """
    import mmap  # noqa: PLC0415 - only for large files

    with (
        mmap.mmap(fd, os.lseek(fd, 0, os.SEEK_END), access=mmap.ACCESS_READ) as found,
        memoryview(found) as data,
    ):
        yield data


def write_all(fd: int, data: bytes | memoryview, offset: int) -> None:
    """Write all of `data` at `offset`.

    Raises:
        OSError: ENOSPC and the like; a part may be written.
    """
    done = os.pwrite(fd, data, offset)
    while done < len(data):
        done += os.pwrite(fd, memoryview(data)[done:], offset + done)


def write_parts(fd: int, parts: Sequence[memoryview], offset: int) -> None:
    """Write at most `MOST_PARTS` parts, one behind the other, from `offset`.

    Raises:
        OSError: ENOSPC and the like; a part may be written.
    """
    done = os.pwritev(fd, parts, offset)
    for part in parts:
        if done < len(part):
            write_all(fd, part[done:], offset + done)
        done = max(0, done - len(part))
        offset += len(part)


def write_zeros(fd: int, offset: int, length: int) -> None:
    """Make bytes of a file zeros: a hole where the file system can, else written.

    Raises:
        OSError: ENOSPC and the like.
    """
    from dmcore.kernel.libc import punch_hole  # noqa: PLC0415 - ctypes takes longer to load than most writes

    try:
        punch_hole(fd, offset, length)
    except OSError as error:
        if error.errno != errno.EOPNOTSUPP:
            raise
        for at in range(offset, offset + length, _CHUNK):
            write_all(fd, bytes(min(_CHUNK, offset + length - at)), at)
