"""The kernel log, read from a remembered place on: the reason of a rejected table is nowhere else.

Source: kernel/printk/printk.c (devkmsg_read, devkmsg_llseek); Documentation/ABI/testing/dev-kmsg.
"""

from __future__ import annotations

import errno
import os
import re
import threading
from collections import deque
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from types import TracebackType
    from typing import Self

__all__ = ["KernelLog", "LogTail"]

_RECORD_MAX = 8192
_KEEP = 4096
_ESCAPE = re.compile(rb"\\x([0-9a-f]{2})")


def _message(record: bytes) -> tuple[int, str]:
    """Return sequence number and text of one record: "prio,seq,usec,flags[,...];text\\n KEY=value..."."""
    prefix, _, rest = record.partition(b";")
    raw = _ESCAPE.sub(lambda match: bytes([int(match[1], 16)]), rest.partition(b"\n")[0])
    return int(prefix.split(b",", 2)[1]), raw.decode("utf-8", "replace")


def _open(path: str) -> int:
    """Open the log for reading from its end on, without blocking."""
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    os.lseek(fd, 0, os.SEEK_END)
    return fd


def _why(path: str, error: OSError) -> str:
    return f"{path}: {error.strerror} (reading it may need CAP_SYSLOG)"


class LogTail:
    """The lines since one place, for one thread: the cheapest way to have the reason of a failure at hand.

    Args:
        path: The log's node; what cannot be opened gives no lines, except that the first failure says why.

    Attributes:
        kept: For the owner: the next request shall not `begin` anew.
    """

    def __init__(self, path: str = "/dev/kmsg") -> None:
        self._fd = -1
        self._unavailable = ""
        self.kept = False
        try:
            self._fd = _open(path)
        except OSError as error:
            self._unavailable = _why(path, error)

    def begin(self) -> None:
        """Forget what was written so far: one lseek(2)."""
        if self._fd >= 0:
            os.lseek(self._fd, 0, os.SEEK_END)

    def lines(self) -> list[str]:
        """Return the lines written since `begin`, at most 4096."""
        if self._fd < 0:
            why, self._unavailable = self._unavailable, ""
            return [f"(the kernel log cannot be read: {why})"] if why else []
        found: list[str] = []
        while len(found) < _KEEP:
            try:
                found.append(_message(os.read(self._fd, _RECORD_MAX))[1])
            except BlockingIOError:
                break
            except OSError as error:
                if error.errno != errno.EPIPE:
                    return [*found, f"(the kernel log cannot be read: {error.strerror})"]
                found.append("(lines are lost)")
        return found

    def close(self) -> None:
        """Close it; no lines come any more."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def __del__(self) -> None:
        if hasattr(self, "_fd"):
            self.close()


class KernelLog:
    """The lines written to the kernel log since this object was first used.

    `mark` costs one read that finds nothing; what it finds is kept, the last 4096 lines of it, so that several users
    can ask for different places. Thread-safe. The file is opened at first use and never blocks.

    Attributes:
        unavailable: Why the log cannot be read; "" as long as it can.
    """

    def __init__(self, path: str = "/dev/kmsg") -> None:
        self.unavailable = ""
        self._path = path
        self._fd = -1
        self._told = False
        self._next = 0
        self._lines: deque[tuple[int, str]] = deque(maxlen=_KEEP)
        self._lock = threading.Lock()

    def _open(self) -> bool:
        if self._fd < 0 and not self.unavailable:
            try:
                self._fd = _open(self._path)
            except OSError as error:
                self.unavailable = _why(self._path, error)
        return self._fd >= 0

    def _drain(self) -> None:
        """Take over what is new; bounded, since a flood may be faster than we read."""
        if not self._open():
            return
        for _ in range(4 * _KEEP):
            try:
                record = os.read(self._fd, _RECORD_MAX)
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno == errno.EPIPE:
                    continue
                self.unavailable = f"{self._path}: {error.strerror}"
                self._close()
                return
            if not record:
                return
            sequence, text = _message(record)
            self._next = sequence + 1
            self._lines.append((sequence, text))

    def mark(self) -> int:
        """Return the place in the log that is now its end."""
        with self._lock:
            self._drain()
            return self._next

    def since(self, mark: int) -> list[str]:
        """Return the lines written since `mark`, without their time.

        Where lines were lost (more than were kept, or overwritten in the kernel) a first line says so. Where the log
        cannot be read the result is empty, except that the first call says why.
        """
        with self._lock:
            self._drain()
            if self.unavailable and not self._lines:
                told, self._told = self._told, True
                return [] if told else [f"(the kernel log cannot be read: {self.unavailable})"]
            lines: list[str] = []
            expected = mark
            lost = 0
            for sequence, text in self._lines:
                if sequence >= mark:
                    lost += max(0, sequence - expected) if expected else 0
                    expected = sequence + 1
                    lines.append(text)
            return [f"({lost} earlier or skipped lines are lost)", *lines] if lost else lines

    def _close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def close(self) -> None:
        """Close the file; the next use opens it again, at the log's end."""
        with self._lock:
            self._close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
