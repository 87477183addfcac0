"""Watch: an example that takes too long is told, with the kernel's stacks, and ends; a guest that it hangs in ends, too.

What hangs in the kernel cannot be interrupted, so that the test could not go on in any case.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from pytest_dm import backend

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator

__all__ = ["EXAMPLE_SECONDS", "Overdue", "Watch", "stuck_tasks"]

EXAMPLE_SECONDS = 30.0
"""How long making a stack, a script on it and its removal may take, all together."""
_GRACE_SECONDS = 5.0
_POLL_SECONDS = 0.5
_KMSG = Path("/dev/kmsg")
_KMSG_LIMIT = Path("/proc/sys/kernel/printk_devkmsg")
_SYSRQ = Path("/proc/sysrq-trigger")
_MOST_TASKS = 12
_MOST_FRAMES = 24


class Overdue(AssertionError):
    """An example took longer than `EXAMPLE_SECONDS`."""


def stuck_tasks() -> Iterator[str]:
    """Yield `name (pid): kernel stack`, a line each frame, of the tasks that wait without being interruptible."""
    found = 0
    for folder in Path("/proc").glob("[0-9]*/task/[0-9]*"):
        with suppress(OSError):
            name, _, rest = (folder / "stat").read_text(encoding="utf-8", errors="replace").rpartition(")")
            if rest.split()[0] != "D":
                continue
            found += 1
            if found > _MOST_TASKS:
                return
            yield f"{name.partition('(')[2]} ({folder.name}):"
            yield from (folder / "stack").read_text(encoding="ascii").splitlines()[:_MOST_FRAMES]


class Watch:
    """Looks after examples from a thread of its own.

    Args:
        seconds: What an example may take.
    """

    def __init__(self, seconds: float = EXAMPLE_SECONDS) -> None:
        self.seconds = seconds
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._current: tuple[float, Callable[[], str], Callable[[], None]] | None = None
        self._overdue = False

    @contextmanager
    def over(self, describe: Callable[[], str], release: Callable[[], None]) -> Generator[None]:
        """Watch over what is done in the block.

        Args:
            describe: Tells what it is: the stack, and the step that is being done.
            release: Called in the thread if it takes too long: resumes what may hold requests back.

        Raises:
            Overdue: It took too long, and came back.
        """
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="dm_pair watch", daemon=True)
            self._thread.start()
        with self._lock:
            self._overdue = False
            self._current = (time.monotonic() + self.seconds, describe, release)
        try:
            yield
        finally:
            with self._lock:
                self._current = None
            self.check()

    def check(self) -> None:
        """Say that the example in hand takes too long.

        Raises:
            Overdue: It does.
        """
        if self._overdue:
            self._overdue = False
            message = (
                f"an example took longer than {self.seconds:g} s; what it was doing is in the kernel's log"
            )
            raise Overdue(message)

    def close(self) -> None:
        """End the thread."""
        self._stop.set()

    def _run(self) -> None:
        while not self._stop.wait(_POLL_SECONDS):
            with self._lock:
                current = self._current
                late = current is not None and time.monotonic() > current[0]
                self._overdue = self._overdue or late
            if current is not None and late:
                self._tell(current[1]())
                current[2]()
                if not self._ends(current):
                    self._give_up()

    def _ends(self, current: object) -> bool:
        deadline = time.monotonic() + _GRACE_SECONDS
        while self._current is current:
            if time.monotonic() > deadline:
                return False
            time.sleep(_POLL_SECONDS)
        return True

    def _tell(self, text: str) -> None:
        lines = [
            f"dm_pair: an example takes longer than {self.seconds:g} s",
            *text.splitlines(),
            *stuck_tasks(),
        ]
        if backend.in_guest():
            with suppress(OSError):
                _KMSG_LIMIT.write_text("on\n", encoding="ascii")
        with suppress(OSError), _KMSG.open("w", encoding="utf-8") as log:
            for line in lines:
                log.write(f"<3>{line}\n")
                log.flush()
            return
        print(*lines, sep="\n", file=sys.__stderr__)

    def _give_up(self) -> None:
        """End a guest of ours by a panic, which its host sees at once; elsewhere there is nothing to be done."""
        self._stop.set()
        if backend.in_guest() and os.geteuid() == 0:
            with suppress(OSError):
                _SYSRQ.write_text("c", encoding="ascii")
