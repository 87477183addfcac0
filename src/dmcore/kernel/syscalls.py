"""Thin system call wrappers that the kernel modules share."""

from __future__ import annotations

import fcntl

__all__ = ["COPIED", "ioctl"]

COPIED = 1024
"""Longest buffer for which `fcntl.ioctl` makes a copy and lets other threads run meanwhile (Modules/fcntlmodule.c)."""


def ioctl(fd: int, request: int, argument: bytearray | int = 0) -> int:
    """Do ioctl(2) and return its result; a `bytearray` is read and written in place.

    Other threads run meanwhile, also for the long buffers with which `fcntl.ioctl` would keep the interpreter's lock.
    A buffer of at most 1024 bytes goes through a copy on the C stack, so secrets belong into a longer one. EINTR is
    not retried.

    Raises:
        OSError: With the kernel's errno; the buffer holds what the kernel wrote all the same.
    """
    if isinstance(argument, bytearray) and len(argument) > COPIED:
        from dmcore.kernel.libc import ioctl_in_place  # noqa: PLC0415 - loads ctypes

        return ioctl_in_place(fd, request, argument)
    return fcntl.ioctl(fd, request, argument)
