"""The C library by ctypes, loaded only by those who need it: the import costs more than most requests."""

from __future__ import annotations

import ctypes
import os

__all__ = ["LIBC", "ioctl_in_place", "punch_hole"]

LIBC = ctypes.CDLL(None, use_errno=True)

_BYTE = ctypes.c_char * 1
_KEEP_SIZE, _PUNCH_HOLE = 1, 2


def ioctl_in_place(fd: int, request: int, buffer: bytearray) -> int:
    """Do ioctl(2) on the buffer itself, without a copy and without keeping other threads from running.

    Raises:
        OSError: With the kernel's errno.
    """
    start = _BYTE.from_buffer(buffer)
    result = int(LIBC.ioctl(fd, ctypes.c_ulong(request), start))
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result


def punch_hole(fd: int, offset: int, length: int) -> None:
    """Make bytes of a file read as zeros and take no space (fallocate(2) with FALLOC_FL_PUNCH_HOLE); its size stays.

    Raises:
        OSError: With the kernel's errno: EOPNOTSUPP where the file system cannot.
    """
    call = LIBC.fallocate64
    call.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]
    if call(fd, _KEEP_SIZE | _PUNCH_HOLE, offset, length):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
