"""`pytest-dm explore` and `replay` with a kernel's own recovery: in throw-away guests that mount each state, side by side.

A guest has one processor, so an exploration takes one guest for each core. All make up the same states in the same order, and
each judges its share of the distinct ones (`share` of `dmcore.crash.explore.explore`); what they found is put together here.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from dmcore.crash.filesystems import MOUNTED
from dmcore.errors import DmError, SpecError

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Generator, Sequence

    from dmcore.crash.checkers import FileSystem

__all__ = ["explore", "merged", "mounting", "replay", "wants_guest"]

_MAIN = "import sys; from pytest_dm.cli import main; sys.exit(main(sys.argv[1:]))"
_PASSED = (
    "base", "size", "fs", "level", "times", "window", "torn", "mount_options", "oracle", "oracle_timeout", "max_states",
    "max_seconds", "seed",
)  # fmt: skip
_FILES = ("log", "base", "times")
_NO_GUEST = 125
_SAID = 5


def wants_guest(arguments: argparse.Namespace) -> bool:
    """Return whether states are to be mounted, and this is not the guest that does it.

    Raises:
        SpecError: Options of a guest, or of mounts, and nothing to mount.
    """
    mounted = arguments.fs in MOUNTED or arguments.kernel is not None
    for name in ("kernel", "mount_options"):
        if getattr(arguments, name) and (arguments.fs == "none" or not mounted):
            raise SpecError(name, getattr(arguments, name), f"nothing is mounted with --fs {arguments.fs}"
                            + ("" if arguments.fs == "none" or name == "kernel" else "; --kernel has a guest do that"))  # fmt: skip
    return mounted and arguments.share is None


@contextmanager
def mounting(name: str, options: str, block_size: int) -> Generator[FileSystem]:
    """Give a file system that this guest's kernel recovers by mounting it."""
    from pytest_dm.crash.mounted import MountedFileSystem  # noqa: PLC0415 - only in a guest
    from pytest_dm.kernel_runtime import KernelRuntime  # noqa: PLC0415 - the same

    runtime = KernelRuntime()
    try:
        made = MountedFileSystem(runtime, name, options, block_size)
        try:
            yield made
        finally:
            made.close()
    finally:
        runtime.close()


def explore(arguments: argparse.Namespace) -> dict[str, Any]:
    """Explore in as many guests as there are workers; return what they found together, as JSON has it.

    Raises:
        DmError: A guest did not come up, or was lost; with what it said last.
        SpecError: A number of workers that means nothing.
    """
    count = len(os.sched_getaffinity(0)) if arguments.workers is None else arguments.workers
    if count < 1:
        raise SpecError("workers", count, "a guest at least mounts the states")
    guests: list[_Guest] = []
    try:
        for number in range(count):
            words = [
                "explore",
                *_words(arguments),
                "--share",
                f"{number}/{count}",
                "--workers",
                "0",
                "--json",
                "-",
            ]
            name = f"guest {number + 1}: " if count > 1 else ""
            guests.append(_Guest(arguments, words, name))
        return merged([guest.result() for guest in guests])
    finally:
        for guest in guests:
            guest.end()


def replay(arguments: argparse.Namespace) -> int:
    """Judge one state in a guest, on this process' streams; return its exit status."""
    words = ["replay", arguments.state, *_words(arguments), "--share", "0/1"]
    return subprocess.run(_command(arguments, words), check=False, stdin=subprocess.DEVNULL).returncode


def merged(parts: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return one exploration of those of which each judged a share."""
    whole = dict(parts[0])
    for name in ("checked", "violating", "violating_torn"):
        whole[name] = sum(part[name] for part in parts)
    for name in ("generated", "distinct", "seconds"):
        whole[name] = max(part.get(name, 0) for part in parts)
    for name in ("violations", "set_apart"):
        found = [one for part in parts for one in part[name]]
        whole[name] = sorted(found, key=_by_time)
    whole["errors"] = list(dict.fromkeys(error for part in parts for error in part["errors"]))
    whole["error"] = next((part["error"] for part in parts if part["error"]), None)
    whole["warnings"] = list(dict.fromkeys(warning for part in parts for warning in part["warnings"]))
    whole["exhaustive"] = all(part.get("exhaustive", False) for part in parts)
    whole["truncated"] = any(part.get("truncated", False) for part in parts)
    whole["minimal"] = _smallest([proof for part in parts for proof in part.get("minimal", ())])
    return whole


def _by_time(found: dict[str, Any]) -> tuple[int, int, int, str]:
    epoch, present, torn = f"{found['id']}::".split(":")[:3]
    return int(epoch[1:]), len(torn.split(",")) if torn else 0, int(present, 16), found["id"]


def _smallest(proofs: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return of each class (kind, torn) the earliest proof, of those the one that lacks least."""

    best: dict[tuple[str, bool], dict[str, Any]] = {}
    for proof in sorted(proofs, key=lambda proof: (_by_time(proof)[0], len(proof["missing"]))):
        best.setdefault((proof["kind"], proof["torn"]), proof)
    return list(best.values())


def _words(arguments: argparse.Namespace) -> list[str]:
    """Return log and options as they were given, for the command in the guest."""
    words = [str(arguments.log)]
    for name in _PASSED:
        value = getattr(arguments, name, None)
        if value not in (None, ""):
            words.append(f"--{name.replace('_', '-')}={value}")
    if arguments.kernel is not None:
        words.append(f"--kernel={arguments.kernel}")
    return [*words, *(["--salvage"] if arguments.salvage else [])]


def _command(arguments: argparse.Namespace, words: Sequence[str]) -> list[str]:
    program = [sys.executable, "-c", _MAIN]
    files = [getattr(arguments, name) for name in _FILES]
    shown = [f"--visible={Path(file).resolve().parent}" for file in files if file is not None]
    kernel = [] if arguments.kernel is None else [f"--kernel={arguments.kernel}"]
    return [
        *program, "vm", "run", "--no-tty", f"--memory={arguments.memory}", *kernel, *dict.fromkeys(shown), "--", *program, *words,
    ]  # fmt: skip


class _Guest:
    """A guest at work, and what it says meanwhile."""

    def __init__(self, arguments: argparse.Namespace, words: Sequence[str], name: str) -> None:
        self._name = name
        self._quiet = arguments.quiet
        self._said: list[str] = []
        self._process = subprocess.Popen(
            _command(arguments, words),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="surrogateescape",
        )
        self._out = ""
        self._readers = [
            threading.Thread(target=self._read, args=(stream, take), daemon=True)
            for stream, take in ((self._process.stdout, self._keep), (self._process.stderr, self._tell))
        ]
        for reader in self._readers:
            reader.start()

    @staticmethod
    def _read(stream: IO[str] | None, take: Callable[[str], None]) -> None:
        assert stream is not None
        with stream:
            for line in stream:
                take(line)

    def _keep(self, line: str) -> None:
        self._out += line

    def _tell(self, line: str) -> None:
        text = line.strip().removeprefix("pytest-dm: ")
        self._said = [*self._said, text][-_SAID:]
        if text and not self._quiet:
            sys.stderr.write(f"pytest-dm: {self._name}{text}\n")
            sys.stderr.flush()

    def result(self) -> dict[str, Any]:
        """Wait for its end; return what it found.

        Raises:
            DmError: It found nothing out: it did not boot, or was lost.
        """
        status = self._process.wait()
        for reader in self._readers:
            reader.join()
        try:
            found: dict[str, Any] = json.loads(self._out)
        except ValueError:
            what = "there is no guest" if status == _NO_GUEST else f"the guest's command ended with {status}"
            message = f"{self._name}{what}: {'; '.join(self._said) or 'it said nothing'}"
            raise DmError(message) from None
        return found

    def end(self) -> None:
        """End it if it runs; its machine goes with it."""
        if self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(10)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
