"""Whole pytest sessions in guests, watched from the host."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
import uuid
import xml.etree.ElementTree as ET
from dataclasses import dataclass, field
from pathlib import Path

import pytest


@dataclass
class Session:
    """One `pytest` of a user, in a folder of its own, with everything it starts marked in its environment."""

    folder: Path
    mark: str = field(default_factory=lambda: f"session-{uuid.uuid4().hex}")
    process: subprocess.Popen[str] | None = None
    output: str = ""
    status: int | None = None

    def __post_init__(self) -> None:
        (self.folder / "tmp").mkdir()

    def write(self, name: str, text: str) -> Path:
        path = self.folder / name
        path.write_text(text, encoding="utf-8")
        return path

    def start(self, *args: str, env: dict[str, str] | None = None) -> subprocess.Popen[str]:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "pytest", "-p", "no:cacheprovider" if "--lf" not in args else "no:doctest",
             "-c", str(self.write("pytest.ini", "[pytest]\n")), *args],
            cwd=self.folder, text=True, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            env={**clean_environment(), "PYTEST_DM_SESSION": self.mark, "TMPDIR": str(self.folder / "tmp"), **(env or {})},
            start_new_session=True,
        )  # fmt: skip
        return self.process

    def finish(self, timeout: float = 180) -> str:
        assert self.process is not None
        try:
            self.output, _ = self.process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.output, _ = self.process.communicate()
            pytest.fail(f"the session did not end in {timeout} s:\n{self.output}")
        self.status = self.process.returncode
        return self.output

    def run(self, *args: str, timeout: float = 180, env: dict[str, str] | None = None) -> str:
        self.start(*args, env=env)
        return self.finish(timeout)

    def wait_for(self, path: Path, timeout: float = 60) -> None:
        """Wait until a file of the host is there."""
        deadline = time.monotonic() + timeout
        while not path.exists():
            assert time.monotonic() < deadline, f"{path} never came"
            assert self.process is not None
            assert self.process.poll() is None, f"pytest ended early:\n{self.finish()}"
            time.sleep(0.05)

    @property
    def counts(self) -> dict[str, int]:
        """Pytest's closing line, as {"passed": 3, "failed": 1 ...}."""
        closing = [line for line in self.output.splitlines() if re.search(r" in [0-9.]+s", line)]
        assert closing, f"no closing line in:\n{self.output}"
        pairs = re.findall(r"(\d+) (passed|failed|errors?|skipped|warnings?|deselected|xfailed)", closing[-1])
        return {word.rstrip("s") if word != "passed" else word: int(number) for number, word in pairs}

    def processes(self) -> dict[int, str]:
        """Processes that carry our mark, zombies aside."""
        found: dict[int, str] = {}
        for entry in Path("/proc").iterdir():
            if not entry.name.isdigit():
                continue
            try:
                if self.mark.encode() not in (entry / "environ").read_bytes():
                    continue
                found[int(entry.name)] = (
                    (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                )
            except (FileNotFoundError, ProcessLookupError, PermissionError):
                continue
        return found

    def assert_nothing_left(self, timeout: float = 10) -> None:
        deadline = time.monotonic() + timeout
        left: dict[int, str] = self.processes()
        while left and time.monotonic() < deadline:
            time.sleep(0.1)
            left = self.processes()
        assert left == {}
        files = sorted(
            path.name for path in (self.folder / "tmp").iterdir() if not path.name.startswith("pytest-of-")
        )
        while files and time.monotonic() < deadline:
            time.sleep(0.1)
            files = sorted(
                path.name
                for path in (self.folder / "tmp").iterdir()
                if not path.name.startswith("pytest-of-")
            )
        assert files == []


def clean_environment() -> dict[str, str]:
    """The environment without this pytest's own xdist and plugin variables."""
    return {
        key: value
        for key, value in os.environ.items()
        if not key.startswith(("PYTEST_", "COV_")) or key == "PYTEST_DM_CACHE"
    }


def junit(path: Path) -> dict[str, ET.Element]:
    """The test cases of a junit file by name."""
    return {case.get("name", "?"): case for case in ET.parse(path).getroot().iter("testcase")}
