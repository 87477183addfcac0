"""Sparse files: what of them is data, and copies that keep holes."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from dmcore.kernel.files import write_all

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["copy_file", "copy_sparse", "extents"]

_CHUNK = 1 << 17
_ZEROS = bytes(_CHUNK)


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
    """Copy a file to an empty one up to byte `end`, holes as holes; `target` gets that size.

    Zeros become holes, too: not every file system says where its holes are (a host's, as a guest sees it).
    """
    for start, stop in extents(source, end):
        offset = start
        while offset < stop:
            data = os.pread(source, min(_CHUNK, stop - offset), offset)
            if not data:
                break
            if data != (_ZEROS if len(data) == _CHUNK else bytes(len(data))):
                write_all(target, data, offset)
            offset += len(data)
    os.ftruncate(target, end)


def copy_file(source: str, target: str) -> None:
    """Copy a file with its holes, its mode and its times: a `copy_function` for shutil.copytree."""
    with Path(source).open("rb") as read, Path(target).open("wb") as written:
        copy_sparse(read.fileno(), written.fileno(), os.fstat(read.fileno()).st_size)
    shutil.copystat(source, target)
