"""Watches a guest's console with pexpect: boot markers, panics, oopses, hung tasks, killed processes, its end."""

from __future__ import annotations

import os
import queue
import re
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, cast

if TYPE_CHECKING:
    from pathlib import Path

    from pexpect.fdpexpect import fdspawn

__all__ = ["Console", "Event"]

_SIGHTS: Final = {
    "marker": rb"dmvm-init: ([^\r\n]*)[\r\n]",
    "machine": rb"dmvm-machine: ([0-9]+)[\r\n]",
    "guard": rb"dmvm-guard: ([^\r\n]*)[\r\n]",
    "panic": rb"(Kernel panic - not syncing[^\r\n]*)[\r\n]",
    "oops": rb"((?:BUG: (?!(?:soft|workqueue) lockup)|Oops[:\s]|general protection fault|Internal error: |"
    rb"Unable to handle kernel )[^\r\n]*)[\r\n]",
    "hung": rb"(INFO: task [^\r\n]* blocked for more than[^\r\n]*)[\r\n]",
    "killed": rb"((?:Out of memory|Memory cgroup out of memory): Killed process[^\r\n]*)[\r\n]",
}
_PRINTABLE: Final = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|[\x00-\x08\x0b-\x1f\x7f]")


@dataclass(frozen=True, slots=True)
class Event:
    """Something seen on the console.

    Attributes:
        kind: "marker", "machine" (its process id), "guard", "panic", "oops", "hung", "killed", or "end" (the console closed,
            so the machine is gone).
        text: The line's part that tells.
    """

    kind: str
    text: str = ""


def _expecter(source: int) -> fdspawn[bytes]:
    from pexpect import fdpexpect  # noqa: PLC0415 - as in `Console._watch`

    return fdpexpect.fdspawn(source, timeout=None, maxread=65536, searchwindowsize=4096)


class Console:
    """Reads a console until its end, in a thread of its own; keeps all of it in a file.

    `fileno()` is readable when `poll()` has something to return.
    """

    def __init__(self, source: int, log: Path) -> None:
        """Start watching.

        Args:
            source: Descriptor to read the console from (pipe, pty or socket); closed at the console's end.
            log: File that gets every byte; made anew.
        """
        self._source = source
        self._log_path = log
        log.unlink(missing_ok=True)
        self._log = log.open("xb", buffering=0)
        self._events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        self._bell, self._ring = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._thread = threading.Thread(target=self._watch, name="dmvm console", daemon=True)
        self._thread.start()

    def _watch(self) -> None:
        from pexpect import EOF  # noqa: PLC0415 - 60 ms that only this thread waits for

        kinds = list(_SIGHTS)
        child = _expecter(self._source)
        child.logfile_read = self._log
        patterns = child.compile_pattern_list([*_SIGHTS.values(), EOF])
        while True:
            index = child.expect_list(patterns)
            if index == len(kinds):
                break
            text = cast("re.Match[bytes]", child.match).group(1)
            self._tell(Event(kinds[index], text.decode("utf-8", "replace").strip()))
        child.close()
        self._log.close()
        self._tell(Event("end"))

    def _tell(self, event: Event) -> None:
        os.write(self._ring, b"\0")  # before the event: poll() reads one byte for each event it finds
        self._events.put(event)

    def fileno(self) -> int:
        """Descriptor that polls readable while events wait."""
        return self._bell

    def poll(self) -> list[Event]:
        """Return the events seen since the last call."""
        events: list[Event] = []
        while not self._events.empty():
            os.read(self._bell, 1)
            events.append(self._events.get())
        return events

    def settle(self, seconds: float) -> None:
        """Wait until the console ends, at most `seconds`, so that a panic's trace is complete."""
        self._thread.join(seconds)

    def tail(self, lines: int = 60) -> str:
        """Return the console's last lines, control characters removed."""
        try:
            data = self._log_path.read_bytes()[-65536:]
        except FileNotFoundError:  # the session is over, and its folder gone
            return ""
        text = _PRINTABLE.sub("", data.decode("utf-8", "replace"))
        return "\n".join(text.splitlines()[-lines:])

    def close(self) -> None:
        """Release the descriptors; call when the machine is dead and so its console at an end."""
        self._thread.join(5)
        for fd in (self._bell, self._ring):
            os.close(fd)
