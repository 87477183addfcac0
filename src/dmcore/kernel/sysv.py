"""One SysV semaphore, through the C library. Source: ipc/sem.c (ksys_semget, do_semtimedop, ksys_semctl)."""

from __future__ import annotations

import ctypes
import errno
import time
from typing import TYPE_CHECKING

from dmcore.errors import IoctlError
from dmcore.kernel.libc import LIBC

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Self

__all__ = ["Semaphore"]

_CREATE = 0o1000 | 0o2000 | 0o600
_NOWAIT = 0o4000
_IPC_RMID = 0
_GETVAL = 12
_GETALL = 13
_SETALL = 17
_VALUE_MAX = 32767
_GONE = frozenset({errno.EINVAL, errno.EIDRM})


class Semaphore:
    """A semaphore that this object makes with `create` and removes with `remove`, or at the latest when it goes itself.

    One that was there before (`find`), or that shall stay (`keep`), goes by `remove` only.

    An exception that a signal handler raises cannot come between the kernel's answer and its place in this object.

    Attributes:
        key: Its key, 0 before `create`.
    """

    key: int = 0

    def __init__(self) -> None:
        self._numbers: list[int] = []
        self._ours = True

    @classmethod
    def find(cls, key: int) -> Self:
        """Return the semaphore of `key` that somebody made.

        Raises:
            IoctlError: ENOENT if there is none; EACCES.
        """
        found = cls()
        found.keep()
        found._numbers.extend(map(LIBC.semget, (key,), (1,), (0,)))
        if found._numbers[0] < 0:
            found._numbers.clear()
            raise IoctlError(ctypes.get_errno(), "semget", f"key {key:#x}")
        found.key = key
        return found

    def keep(self) -> None:
        """Let the semaphore stay when this object goes."""
        self._ours = False

    def create(self, key: int, notes: Sequence[int] = ()) -> None:
        """Make the semaphore of `key`, mode 0600, with the value 0.

        Args:
            key: Under which others find it.
            notes: Numbers, 0..32767, to keep with it: further semaphores of the same set, which whoever uses the
                first need not know of. For a moment they all are 0.

        Raises:
            IoctlError: EEXIST if there is one with this key; ENOSPC if the system has none left.
        """
        assert not self._numbers, "one semaphore for each object"
        assert all(0 <= note <= _VALUE_MAX for note in notes), "a semaphore has 15 bits"
        self._numbers.extend(map(LIBC.semget, (key,), (1 + len(notes),), (_CREATE,)))
        if self._numbers[0] < 0:
            self._numbers.clear()
            raise IoctlError(ctypes.get_errno(), "semget", f"key {key:#x}")
        self.key = key
        if notes:
            values = (ctypes.c_ushort * (1 + len(notes)))(0, *notes)
            if LIBC.semctl(self._numbers[0], 0, _SETALL, values) < 0:
                raise IoctlError(ctypes.get_errno(), "semctl", f"key {key:#x}", "SETALL")

    def notes(self, count: int) -> tuple[int, ...]:
        """Return the `count` numbers that `create` kept with it; the set must be one of so many."""
        values = (ctypes.c_ushort * (1 + count))()
        if LIBC.semctl(self._numbers[0], 0, _GETALL, values) < 0:
            raise IoctlError(ctypes.get_errno(), "semctl", f"key {self.key:#x}", "GETALL")
        return tuple(values[1:])

    def _operate(self, change: int, flags: int, timeout: float) -> None:
        operation = (ctypes.c_short * 3)(0, change, flags)
        seconds, rest = divmod(max(0.0, timeout), 1)
        limit = (ctypes.c_long * 2)(int(seconds), int(rest * 1e9))
        if LIBC.semtimedop(self._numbers[0], operation, 1, limit) < 0:
            raise IoctlError(ctypes.get_errno(), "semtimedop", f"key {self.key:#x}", f"change {change}")

    def add(self, change: int) -> None:
        """Change the value by `change`, which must not take it below 0 (EAGAIN)."""
        self._operate(change, _NOWAIT, 0)

    @property
    def value(self) -> int:
        """The value now."""
        value = int(LIBC.semctl(self._numbers[0], 0, _GETVAL, 0))
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
        while self._numbers:
            failed = LIBC.semctl(self._numbers[0], 0, _IPC_RMID, 0) < 0
            number = ctypes.get_errno()
            self._numbers.clear()
            if failed and number not in _GONE:
                raise IoctlError(number, "semctl", f"key {self.key:#x}", "IPC_RMID")

    def __del__(self) -> None:
        if getattr(self, "_ours", False):
            self.remove()
