"""A guard that outlives this process to kill what it had started.

A command that an exploration runs leads a session of its own, so that all of it can be killed when it takes too long; so
nobody kills it when the exploration itself is killed (SIGKILL, out of memory). The guard is a shell of a few hundred
kilobytes that reads which process group runs now, and kills that one when its input ends: when this process is gone.
"""

from __future__ import annotations

import os
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Generator

__all__ = ["guarded"]

_SCRIPT = 'group=; while read -r group; do :; last=$group; done; test -n "$last" && kill -s KILL -- "-$last"'
_guards: dict[int, int] = {}
"""The end of the pipe to write to, by the process whose guard it is: a forked process has its own."""


@contextmanager
def guarded(group: int) -> Generator[None]:
    """Have a process group killed if this process ends, in whatever way, within the block."""
    _tell(f"{group}\n")
    try:
        yield
    finally:
        _tell("\n")


def _tell(line: str) -> None:
    for _ in range(2):
        fd = _guards.get(os.getpid(), -1)
        if fd < 0:
            fd = _guards[os.getpid()] = _start()
        with suppress(BrokenPipeError):
            os.write(fd, line.encode())
            return
        os.close(_guards.pop(os.getpid()))  # somebody killed it: start another


def _start() -> int:
    theirs, mine = os.pipe()
    try:
        os.posix_spawn(
            "/bin/sh", ["sh", "-c", _SCRIPT], {},
            file_actions=[(os.POSIX_SPAWN_DUP2, theirs, 0), (os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0),
                          (os.POSIX_SPAWN_DUP2, 1, 2)],
            setsid=True,
        )  # fmt: skip
    except BaseException:
        os.close(mine)
        raise
    finally:
        os.close(theirs)
    return mine
