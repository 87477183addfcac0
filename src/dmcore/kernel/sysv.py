"""One SysV semaphore, through the C library. Source: ipc/sem.c (ksys_semget, do_semtimedop, ksys_semctl)."""

from __future__ import annotations

import ctypes
import errno
import time

from dmcore.errors import IoctlError
from dmcore.kernel.libc import LIBC

__all__ = ["Semaphore"]

_CREATE = 0o1000 | 0o2000 | 0o600
_NOWAIT = 0o4000
_IPC_RMID = 0
_GETVAL = 12


class Semaphore:
    """A semaphore that this process made; whoever knows the key can change it.

    Attributes:
        key: Its key.
    """

    def __init__(self, key: int, number: int) -> None:
        self.key = key
        self._number = number

    @classmethod
    def create(cls, key: int) -> Semaphore:
        """Make the semaphore of `key`, mode 0600, with the value 0.

        Raises:
            IoctlError: EEXIST if there is one with this key; ENOSPC if the system has none left.
        """
        number = LIBC.semget(key, 1, _CREATE)
        if number < 0:
            raise IoctlError(ctypes.get_errno(), "semget", f"key {key:#x}")
        return cls(key, number)

    def _operate(self, change: int, flags: int, timeout: float) -> None:
        operation = (ctypes.c_short * 3)(0, change, flags)
        seconds, rest = divmod(max(0.0, timeout), 1)
        limit = (ctypes.c_long * 2)(int(seconds), int(rest * 1e9))
        if LIBC.semtimedop(self._number, operation, 1, limit) < 0:
            raise IoctlError(ctypes.get_errno(), "semtimedop", f"key {self.key:#x}", f"change {change}")

    def add(self, change: int) -> None:
        """Change the value by `change`, which must not take it below 0 (EAGAIN)."""
        self._operate(change, _NOWAIT, 0)

    @property
    def value(self) -> int:
        """The value now."""
        value = int(LIBC.semctl(self._number, 0, _GETVAL, 0))
        if value < 0:
            raise IoctlError(ctypes.get_errno(), "semctl", f"key {self.key:#x}", "GETVAL")
        return value

    def wait_for_zero(self, timeout: float) -> bool:
        """Wait until the value is 0; False if it is not after `timeout` seconds. Signals do not end the wait."""
        deadline = time.monotonic() + timeout
        while True:
            try:
                self._operate(0, 0, deadline - time.monotonic())
            except IoctlError as error:
                if error.errno == errno.EAGAIN:
                    return False
                if error.errno != errno.EINTR:
                    raise
            else:
                return True

    def remove(self) -> None:
        """Remove it; no-op if it is gone already. Whoever waits for it gets EIDRM."""
        if LIBC.semctl(self._number, 0, _IPC_RMID, 0) < 0:
            number = ctypes.get_errno()
            if number not in {errno.EINVAL, errno.EIDRM}:
                raise IoctlError(number, "semctl", f"key {self.key:#x}", "IPC_RMID")
