"""The C library by ctypes, loaded only by those who need it: the import costs more than most requests."""

from __future__ import annotations

import ctypes
import os

__all__ = ["LIBC", "die_with_parent", "ioctl_in_place", "punch_hole"]

LIBC = ctypes.CDLL(None, use_errno=True)

_BYTE = ctypes.c_char * 1
_KEEP_SIZE, _PUNCH_HOLE = 1, 2
_PR_SET_PDEATHSIG = 1


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


def die_with_parent(parent: int, number: int) -> bool:
    """Have this process sent a signal when its parent ends, in whatever way (prctl(2) with PR_SET_PDEATHSIG).

    That is when the thread of the parent ends that forked it. Processes forked later do not inherit it.

    Args:
        parent: The parent's process id, as it was known before the fork.
        number: The signal.

    Returns:
        Whether the parent is still there; if not there will be no signal.
    """
    LIBC.prctl(_PR_SET_PDEATHSIG, ctypes.c_ulong(number), 0, 0, 0)
    return os.getppid() == parent
