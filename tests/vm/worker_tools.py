"""Starts `python -m dmvm.worker` and finds what it leaves."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
import uuid
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    pass

KERNEL = "uml-6.1"
PYTHON = os.path.realpath(sys.executable)


class Worker:
    """Starts workers, marked in their environment so that what they leave can be found."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.exchange = folder / "exchange"
        self.exchange.mkdir()
        self.mark = f"worker-{uuid.uuid4().hex}"
        self.started: list[subprocess.Popen[bytes]] = []
        self.environment = {**os.environ, "DMVM_TEST_MARK": self.mark, "TMPDIR": str(folder)}

    def start(self, *command: str, options: tuple[str, ...] = (), **kwargs) -> subprocess.Popen[bytes]:
        exchange = () if "--exchange-root" in options else ("--exchange", str(self.exchange))
        argv = [sys.executable, "-m", "dmvm.worker", "--kernel", KERNEL, *exchange, *options, "--", *command]
        streams = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        process = subprocess.Popen(argv, **{**streams, "env": self.environment, **kwargs})
        self.started.append(process)
        return process

    def run(
        self, *command: str, stdin: bytes = b"", timeout: float = 60, **kwargs
    ) -> tuple[int, bytes, bytes]:
        process = self.start(*command, **kwargs)
        out, err = process.communicate(stdin, timeout)
        return process.returncode, out, err

    def python(self, code: str, **kwargs) -> tuple[int, bytes, bytes]:
        return self.run(PYTHON, "-c", code, **kwargs)

    @property
    def lost(self) -> dict[str, str]:
        return json.loads((self.exchange / "lost.json").read_text())

    def processes(self) -> dict[int, str]:
        found = {}
        for entry in Path("/proc").iterdir():
            with contextlib.suppress(OSError):
                if entry.name.isdigit() and self.mark.encode() in (entry / "environ").read_bytes():
                    found[int(entry.name)] = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()
        return found

    def machine(self) -> int:
        """Return the machine's first process: the one whose parent is no process of the machine."""
        found = {pid for pid, command in self.processes().items() if "linux" in command.split(" ")[0]}
        (first,) = {pid for pid in found if _parent(pid) not in {None, *found}}
        return first

    def wait_for(self, name: str, timeout: float = 30) -> None:
        deadline = time.monotonic() + timeout
        while not list(self.folder.glob(f"**/{name}")):
            assert time.monotonic() < deadline, f"{name} never came"
            time.sleep(0.02)

    def assert_nothing_left(self, *kept: str) -> None:
        deadline = time.monotonic() + 10
        while (left := self.processes()) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert left == {}
        names = {"console.log", "lost.json", *kept}
        while (
            files := {path.name for path in self.exchange.iterdir()} - names
        ) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert files == set()
        assert {path.name for path in self.folder.iterdir()} <= {"exchange"}


def _parent(pid: int) -> int | None:
    """Return the parent's number, from proc(5)'s stat behind the command's closing parenthesis; None: it is gone."""
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except (FileNotFoundError, ProcessLookupError):
        return None
