"""Runs the programs that fetch and prepare kernels: bounded in time, and with an error that says what they said."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

from dmcore.errors import Unsupported
from dmvm import cache

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

__all__ = ["find", "human", "run"]

_TAIL: Final = 12
_SYSTEM_PATH: Final = "/usr/local/sbin:/usr/sbin:/sbin:/usr/local/bin:/usr/bin:/bin"


def human(size: int) -> str:
    """Return `size` bytes as people say it: "950 kB", "36 MB"."""
    for unit, bytes_each in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size >= bytes_each:
            value = size / bytes_each
            return f"{value:.1f} {unit}" if value < 10 else f"{value:.0f} {unit}"
    return f"{size} bytes"


def find(program: str) -> str | None:
    """Return the path of a program on PATH, "" entries and all, else None."""
    return shutil.which(program)


def run(
    argv: Sequence[str | Path],
    *,
    need: str,
    seconds: float,
    cwd: Path | None = None,
    hint: str = "",
    tick: Callable[[float], None] | None = None,
    status_ok: Callable[[int], bool] = lambda status: status == 0,
) -> str:
    """Run a program in a process group of its own to its end; returns what it wrote on stdout.

    It holds the cache's locks that this process holds: should this process be killed, nobody disturbs its rest.

    Args:
        argv: The program and its arguments.
        need: What this is for, for the error.
        seconds: How long it may take; then its whole group is killed.
        cwd: Where it runs.
        hint: What would help if it fails.
        tick: Called about once a second with the seconds gone by.
        status_ok: Which exit statuses are success.

    Raises:
        Unsupported: It is not there, failed, or took too long; carries its last lines.
    """
    words = [str(word) for word in argv]
    environment = {**os.environ, "LC_ALL": "C", "LANGUAGE": "C"}
    environment["PATH"] = f"{environment.get('PATH', '')}:{_SYSTEM_PATH}".lstrip(":")
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        try:
            process = subprocess.Popen(
                words,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                cwd=cwd,
                env=environment,
                pass_fds=cache.held(),
                start_new_session=True,
            )
        except OSError as error:
            raise Unsupported(need, f"{words[0]} does not start: {error.strerror}", hint) from error
        with process:
            status = _wait(process, seconds, tick)
        out.seek(0)
        err.seek(0)
        text = out.read().decode("utf-8", "replace")
        if status is not None and status_ok(status):
            return text
        said = (text if len(text) < 4000 else text[-4000:]) + err.read().decode("utf-8", "replace")
    lines = [line for line in said.splitlines() if line.strip()][-_TAIL:]
    how = f"took longer than {seconds:g} s" if status is None else f"ended with status {status}"
    raise Unsupported(need, "\n    ".join([f"{Path(words[0]).name} {how}:", *lines]), hint)


def _wait(
    process: subprocess.Popen[bytes], seconds: float, tick: Callable[[float], None] | None
) -> int | None:
    """Return its exit status, None if it was killed for taking too long."""
    began = time.monotonic()
    try:
        while True:
            gone = time.monotonic() - began
            try:
                return process.wait(min(1.0, max(0.0, seconds - gone)))
            except subprocess.TimeoutExpired:
                if gone >= seconds:
                    return None
                if tick:
                    tick(gone)
    finally:
        if process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
