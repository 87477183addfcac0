"""Thin system call wrappers that the kernel modules share."""

from __future__ import annotations

import fcntl

__all__ = ["ioctl"]


def ioctl(fd: int, request: int, argument: bytearray | int = 0) -> int:
    """Do ioctl(2) and return its result; a `bytearray` is read and written in place.

    A buffer of more than 1024 bytes is handed to the kernel as it is; a smaller one goes through a copy on the C
    stack, so secrets belong into a larger one. EINTR is not retried.

    Raises:
        OSError: With the kernel's errno; the buffer holds what the kernel wrote all the same.
    """
    return fcntl.ioctl(fd, request, argument)
