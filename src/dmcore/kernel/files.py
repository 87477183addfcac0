"""System calls on regular files that the standard library lacks."""

from __future__ import annotations

import ctypes
import os

from dmcore.kernel.libc import LIBC

__all__ = ["punch_hole"]

_KEEP_SIZE = 0x01
_PUNCH_HOLE = 0x02


def punch_hole(fd: int, offset: int, length: int) -> None:
    """Free a range of a file: it reads zeros, and the file stays as long as it is (fallocate(2)).

    Raises:
        OSError: EOPNOTSUPP where the file system cannot; EBADF for a file that is open for reading only.
    """
    mode = _KEEP_SIZE | _PUNCH_HOLE
    if LIBC.fallocate(fd, mode, ctypes.c_int64(offset), ctypes.c_int64(length)) < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
