"""The user's judgement of a recovered state: a command, or a Python callable."""

from __future__ import annotations

import os
import re
import selectors
import shlex
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING

from dmcore.crash.checkers import OracleFailed, Problem
from dmcore.crash.guard import guarded
from dmcore.errors import SpecError

if TYPE_CHECKING:
    from collections.abc import Callable, Generator
    from types import FrameType

    from dmcore.crash.checkers import CrashState

__all__ = ["CallableOracle", "CommandOracle"]

_LONGEST = 100_000
"""Bytes of an argument or a variable up to which the kernel is sure to take it (MAX_ARG_STRLEN is 131072)."""
_HEARD = 1 << 16
"""Bytes of what it says that are kept, about."""
_SHELL = re.compile(r"[|&;<>()$`\\\"'*?#~=%\n]")
_PLACES = ("image", "mountpoint", "acknowledged", "started", "acknowledged_file", "started_file", "id")
_PLACE = re.compile(r"\{(" + "|".join(_PLACES) + r")\}")
_GATE = "read -r go || exit 99\nexec </dev/null"
"""What the shell does first: wait until the command is guarded. If this process is killed before that, `read` fails."""
_TRACEBACK = "Traceback (most recent call last):"


class CommandOracle:
    """A command that exits with 0 for a sound state, and with 1, and the reason on its first line, for another.

    The first line of what it prints (standard output, else standard error) is the reason; its first word, less
    punctuation, in lower case, the kind of the failure, such as durability or integrity. Of a Python traceback it is the last line.
    Any other exit status, and a death by signal, is a failure of the oracle (`OracleFailed`), which says nothing about the
    state. One that takes too long is a finding, "timeout": a recovery that hangs.

    In the command these words stand for:

    ======================== ==========================================================================================
    ``{image}``              path of the image of the state; the command may change it
    ``{mountpoint}``         where its file system is mounted; empty if it is not
    ``{acknowledged}``       names of the acknowledged marks in order, with commas between; one argument, empty for
                             none; over 100,000 bytes ``@`` and the path of a file that has them, a name a line
    ``{started}``            the same, of operations that were started and not acknowledged
    ``{acknowledged_file}``  always that file; ``{started_file}`` likewise
    ``{id}``                 id of the state
    ======================== ==========================================================================================

    The environment has the same: DM_IMAGE, DM_MOUNTPOINT, DM_ACKNOWLEDGED, DM_STARTED, DM_STATE. A command with a character that means something to a shell is run by /bin/sh, values quoted;
    any other directly. It runs where this program was started, with nothing to read on standard input.

    Args:
        command: The command.
        timeout: Seconds for one state.

    Raises:
        SpecError: An empty command, one that no shell would read, a program that is not there, no time.
    """

    def __init__(self, command: str, *, timeout: float = 60) -> None:
        try:
            words = shlex.split(command)
        except ValueError as error:
            raise SpecError("oracle", command, f"is no command: {error}") from None
        if not words:
            raise SpecError("oracle", command, "is empty")
        self.command = command
        self.timeout = _positive(timeout)
        self._words = None if _SHELL.search(_PLACE.sub("", command)) else words
        if self._words is not None and not _PLACE.search(words[0]) and shutil.which(words[0]) is None:
            raise SpecError(
                "oracle", command, f"there is no program {words[0]!r}; what only a shell knows: sh -c '...'"
            )

    def __call__(self, state: CrashState, /) -> Problem | None:
        """Run the command on a state."""
        with self._values(state) as values:
            environment = {**os.environ, "DM_IMAGE": str(state.image), "DM_STATE": state.id,
                           "DM_MOUNTPOINT": values["mountpoint"],
                           "DM_ACKNOWLEDGED": values["acknowledged"], "DM_STARTED": values["started"]}  # fmt: skip
            if self._words is None:
                words = [f"{_GATE}\n{_fill(self.command, values, shlex.quote)}"]
            else:
                words = [f'{_GATE}\nexec "$@"', "sh", *(_fill(word, values, str) for word in self._words)]
            return self._run(["/bin/sh", "-c", *words], environment, state)

    def _run(self, words: list[str], environment: dict[str, str], state: CrashState) -> Problem | None:
        try:
            process = subprocess.Popen(
                words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment,
                start_new_session=True,
            )  # fmt: skip
        except OSError as error:
            raise OracleFailed(f"it cannot be run: {error.strerror}", state.id) from error
        with process:
            try:
                with guarded(process.pid):
                    out, err = _heard(process, self.timeout)
            except TimeoutError:
                return Problem("timeout", f"the oracle took longer than {self.timeout:g} s")
            finally:
                _kill(process)
        said = _reason(out.decode(errors="replace"), err.decode(errors="replace"))
        if process.returncode == 0:
            return None
        if process.returncode == 1:
            return Problem(_kind(said), said or "the oracle said no, and not why")
        how = (
            f"signal {-process.returncode}" if process.returncode < 0 else f"exit status {process.returncode}"
        )
        raise OracleFailed(f"{how}{f': {said}' if said else ''}", state.id)

    @contextmanager
    def _values(self, state: CrashState) -> Generator[dict[str, str]]:
        values = {"image": str(state.image), "id": state.id, "mountpoint": str(state.mountpoint or "")}
        lists = {"acknowledged": state.acknowledged, "started": state.started}
        files: list[Path] = []
        try:
            for name, names in lists.items():
                text = ",".join(names)
                long = len(text.encode(errors="surrogateescape")) > _LONGEST
                if long or f"{{{name}_file}}" in self.command:
                    fd, path = tempfile.mkstemp(prefix=f"{name}-", dir=state.image.parent)
                    files.append(Path(path))
                    with open(fd, "w", encoding="utf-8", errors="surrogateescape") as file:  # noqa: PTH123 - a descriptor
                        file.writelines(f"{word}\n" for word in names)
                    values[f"{name}_file"] = path
                    text = f"@{path}" if long else text
                values[name] = text
            yield values
        finally:
            for file_path in files:
                file_path.unlink(missing_ok=True)


def _positive(timeout: float) -> float:
    if not timeout > 0:
        raise SpecError("oracle_timeout", timeout, "is no time for an oracle: more than 0 seconds")
    return timeout


def _fill(text: str, values: dict[str, str], quote: Callable[[str], str]) -> str:
    return _PLACE.sub(lambda match: quote(values[match[1]]), text)


def _heard(process: subprocess.Popen[bytes], timeout: float) -> tuple[bytes, bytes]:
    """Let a command go; return the beginning of what it said by the time that it ended, whatever it left running.

    Raises:
        TimeoutError: It has not ended by then.
    """
    assert process.stdin
    assert process.stdout
    assert process.stderr
    deadline = time.monotonic() + timeout
    with suppress(BrokenPipeError), process.stdin:
        process.stdin.write(b"go\n")
    said = {process.stdout: b"", process.stderr: b""}
    ended = os.pidfd_open(process.pid)
    try:
        with selectors.DefaultSelector() as selector:
            selector.register(ended, selectors.EVENT_READ)
            for stream in said:
                os.set_blocking(stream.fileno(), False)
                selector.register(stream, selectors.EVENT_READ)
            over = False
            while not over:
                ready = selector.select(max(0.0, deadline - time.monotonic()))
                if not ready or time.monotonic() > deadline:
                    raise TimeoutError
                over = any(key.fileobj == ended for key, _ in ready)
                for stream in said:
                    _listen(stream, said, selector)
    finally:
        os.close(ended)
    return said[process.stdout], said[process.stderr]


def _listen(stream: IO[bytes], said: dict[IO[bytes], bytes], selector: selectors.BaseSelector) -> None:
    """Take what a stream has now; of much only the beginning is kept."""
    if stream not in selector.get_map():
        return
    data = stream.read(_HEARD)
    if data == b"":
        selector.unregister(stream)
    if data and len(said[stream]) < _HEARD:
        said[stream] += data


def _kill(process: subprocess.Popen[bytes]) -> None:
    """Kill a command and what it started: it leads a session of its own."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def _reason(out: str, err: str) -> str:
    lines = [line.strip() for line in out.splitlines() if line.strip()]
    if lines:
        return lines[0]
    lines = [line.strip() for line in err.splitlines() if line.strip()]
    if lines and lines[0] == _TRACEBACK:
        return lines[-1].removeprefix("AssertionError: ")
    return lines[0] if lines else ""


def _kind(reason: str) -> str:
    word = reason.split(maxsplit=1)[0] if reason.strip() else ""
    return word.strip(".,:;!?()[]<>\"'`").lower() or "oracle"


class _TooLong(BaseException):
    """Ends a callable that takes too long; a BaseException, so that it is not taken for one of its own."""


class CallableOracle:
    """A Python function of a `CrashState`.

    None or True says that the state is sound; False, a text (the reason), a `Problem` or an exception that it is not. The
    kind is the first word of a text or an AssertionError's message, of any other exception its class. One that takes too
    long is a finding, "timeout"; it can only be stopped in a process's main thread, and only between bytecodes.

    Args:
        function: The function.
        timeout: Seconds for one state.

    Raises:
        SpecError: No time.
    """

    def __init__(self, function: Callable[[CrashState], object], *, timeout: float = 60) -> None:
        self.function = function
        self.timeout = _positive(timeout)

    def __call__(self, state: CrashState, /) -> Problem | None:
        """Ask the function."""
        try:
            with _limit(self.timeout):
                said = self.function(state)
        except _TooLong:
            return Problem("timeout", f"the oracle took longer than {self.timeout:g} s")
        except OracleFailed:
            raise
        except AssertionError as error:
            reason = _first_line(str(error)) or "an assertion failed"
            return Problem(_kind(reason) if str(error).strip() else "assertion", reason)
        except Exception as error:  # noqa: BLE001 - whatever it raises is what it found
            return Problem(type(error).__name__, _first_line(f"{type(error).__name__}: {error}"))
        return _problem(said, state)


def _problem(said: object, state: CrashState) -> Problem | None:
    """Return what an answer says."""
    if said is None or said is True:
        return None
    if isinstance(said, Problem):
        return said
    if said is False:
        return Problem("oracle", "the oracle said no")
    if isinstance(said, str):
        return Problem(_kind(said), _first_line(said))
    raise OracleFailed(f"it returned {said!r}; None, True, False, a text or a Problem are known", state.id)


def _first_line(text: str) -> str:
    return next((line.strip() for line in text.splitlines() if line.strip()), "")


@contextmanager
def _limit(seconds: float) -> Generator[None]:
    """Interrupt what runs within after `seconds`, where signals can."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def late(_number: int, _frame: FrameType | None) -> None:
        raise _TooLong

    before = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
