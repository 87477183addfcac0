"""User-mode Linux: the argument list and environment of its process."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["command", "environment"]

_FPREGS: Final = Path(__file__).with_name("fpregs.so")
"""Built from `fpregs.c` beside it, which says what it is for, and how."""


def command(image: Path, *, memory_mb: int, scratch: Path, line_fd: int, init: Sequence[str]) -> list[str]:
    """Return the argument list of a UML machine.

    Its console is its stdout, its byte line the socket `line_fd` (/dev/ttyS0 in the guest), its root the host's,
    read-only (the process must be guarded all the same: a guest's root may mount hostfs anew).

    Args:
        image: The `linux.uml` to run.
        memory_mb: The guest's memory in MiB.
        scratch: Folder for UML's own files (its control socket; its memory file by `environment`).
        line_fd: Inherited descriptor of the line.
        init: The guest's first process and its arguments; no word may contain white space or quotes.
    """
    return [
        str(image),
        f"mem={memory_mb}M",
        "umid=vm",
        f"uml_dir={scratch}/",
        "rootfstype=hostfs",
        "rootflags=/",
        "ro",
        "con=null",
        "con0=null,fd:1",
        "ssl=null",
        f"ssl0=fd:{line_fd},fd:{line_fd}",
        "panic=-1",
        "loglevel=5",
        f"init={init[0]}",
        "--",
        *init[1:],
    ]


def environment(scratch: Path) -> dict[str, str]:
    """Return the environment of a UML process: the caller's, and where its memory file and other files go.

    `fpregs.so` lets kernels before 7.x run on processors with AMX, whose register state is larger than they know.
    """
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("LD_")}
    return {**inherited, "TMPDIR": str(scratch), "HOME": str(scratch), "LD_PRELOAD": str(_FPREGS)}
