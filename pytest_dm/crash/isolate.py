"""A check in a process of its own: what raises, hangs, crashes or exits there is a result here."""

from __future__ import annotations

import contextlib
import gc
import os
import pickle
import select
import signal
import struct
import sys
import time
import traceback
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NoReturn

from dmcore.errors import DmError
from dmcore.kernel.libc import die_with_parent

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType
    from typing import Self

__all__ = ["BadCheck", "Outcome", "Process", "judge"]

_LENGTH = struct.Struct("!I")
_REAP = 5.0
_SHOWN_LINES = 60


class BadCheck(DmError):
    """A check that gave an answer which is none."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a check said of a state.

    Attributes:
        sound: Whether it was content.
        kind: The class of failure: the first word of a message like "durability: ...", else the exception's name,
            "timeout", "killed" (by a signal) or "exit".
        reason: In words, one line or more.
        details: The traceback, where there is one.
    """

    sound: bool
    kind: str = ""
    reason: str = ""
    details: str = ""


def judge(check: Callable[[Any], object], state: object) -> Outcome:
    """Run a check in this process.

    None and True are content; False, a text (the reason) and any exception are not.

    Raises:
        BadCheck: It returned anything else.
        KeyboardInterrupt: From the keyboard.
    """
    try:
        answer = check(state)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # noqa: BLE001 - pytest.fail and sys.exit are answers, too
        try:
            return _raised(error)
        finally:
            traceback.clear_frames(
                error.__traceback__
            )  # files that its frames hold open keep the state mounted
    if answer is None or answer is True:
        return Outcome(sound=True)
    if answer is False:
        return Outcome(sound=False, kind="check", reason="the check returned False")
    if isinstance(answer, str) and answer:
        return Outcome(sound=False, kind=_kind(answer, "check"), reason=answer)
    message = f"the check returned {answer!r}: return None or True for a sound state, False or the reason for another"
    raise BadCheck(message)


def _raised(error: BaseException) -> Outcome:
    text = str(error).strip()
    name = type(error).__name__
    kind = _kind(text, name)
    shown = text if kind != name else f"{name}: {text}" if text else name
    lines = traceback.format_exception(error)
    own = [line for line in lines if f'File "{__file__}"' not in line]
    details = "".join(own).rstrip().splitlines()[-_SHOWN_LINES:]
    return Outcome(sound=False, kind=kind, reason=shown, details="\n".join(details))


def _kind(message: str, otherwise: str) -> str:
    """Return the word before the colon that a message begins with ("durability: k1 is gone")."""
    word, colon, _ = message.partition(":")
    return word if colon and word.isalpha() and word.islower() else otherwise


class Process:
    """A forked copy of this process that runs a check for one state after the other.

    It lives as long as nothing goes wrong in it, so that a state does not cost a fork; a check that hangs is killed with
    all it started, and the next state gets a fresh process.
    """

    def __init__(self, check: Callable[[Any], object], timeout: float) -> None:
        self._check = check
        self.timeout = timeout
        self._pid = 0
        self._requests = self._answers = -1

    def _start(self) -> None:
        theirs, self._requests = os.pipe()
        self._answers, ours = os.pipe()
        sys.stdout.flush()
        sys.stderr.flush()
        with warnings.catch_warnings():
            # Since 3.12 Python warns of a fork beside threads (xdist's): the child runs the check, nothing of theirs.
            warnings.simplefilter("ignore", DeprecationWarning)
            parent = os.getpid()
            self._pid = os.fork()
        if not self._pid:
            os.close(self._requests)
            os.close(self._answers)
            _serve(self._check, theirs, ours, parent)
        os.close(theirs)
        os.close(ours)
        with contextlib.suppress(PermissionError, ProcessLookupError):  # it did so itself, or has ended
            os.setpgid(self._pid, self._pid)

    def run(self, state: object) -> Outcome:
        """Return what the check says of a state; bounded by the time-out.

        Raises:
            BadCheck: It returned something that is no answer.
        """
        if not self._pid:
            self._start()
        deadline = time.monotonic() + self.timeout
        request = pickle.dumps(state)
        try:
            os.write(self._requests, _LENGTH.pack(len(request)) + request)
            answer = self._receive(deadline)
        except BrokenPipeError:
            answer = None
        except TimeoutError:
            self.stop()
            reason = f"the check ran longer than {self.timeout:g} s"
            return Outcome(sound=False, kind="timeout", reason=reason)
        if answer is None:
            return self._died()
        outcome = pickle.loads(answer)  # noqa: S301 - from our own child
        if isinstance(outcome, BadCheck):
            raise outcome
        assert isinstance(outcome, Outcome)
        return outcome

    def _receive(self, deadline: float) -> bytes | None:
        """Return one answer, None at the end of the stream.

        Raises:
            TimeoutError: None came in time.
        """
        data = b""
        want = _LENGTH.size
        while len(data) < want:
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([self._answers], [], [], left)[0]:
                raise TimeoutError
            piece = os.read(self._answers, 1 << 16)
            if not piece:
                return None
            data += piece
            if len(data) >= _LENGTH.size:
                want = _LENGTH.size + _LENGTH.unpack_from(data)[0]
        return data[_LENGTH.size :]

    def _died(self) -> Outcome:
        status = self._end(grace=_REAP)
        if os.WIFSIGNALED(status):
            name = signal.Signals(os.WTERMSIG(status)).name
            return Outcome(sound=False, kind="killed", reason=f"the check was killed by {name}")
        reason = f"the check ended its process with status {os.waitstatus_to_exitcode(status)}"
        return Outcome(sound=False, kind="exit", reason=reason)

    def stop(self) -> None:
        """End the process and all it started; does nothing if there is none."""
        if self._pid:
            self._end(grace=0.0)

    def _end(self, grace: float) -> int:
        """Wait `grace` seconds for the process to end by itself, then kill it and its children; return its status."""
        pid, self._pid = self._pid, 0
        os.close(self._requests)
        os.close(self._answers)
        status = _reap(pid, time.monotonic() + grace) if grace else None
        with contextlib.suppress(ProcessLookupError):
            os.killpg(pid, signal.SIGKILL)
        if status is None:
            status = _reap(pid, time.monotonic() + _REAP)
        if status is None:
            message = f"the check's process {pid} does not die: it hangs in the kernel"
            raise DmError(message)
        return status

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


def _reap(pid: int, deadline: float) -> int | None:
    while True:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return status
        if time.monotonic() > deadline:
            return None
        time.sleep(0.002)


def _serve(check: Callable[[Any], object], requests: int, answers: int, parent: int) -> NoReturn:
    """Run in the child until the parent closes the line, or is killed."""
    os.setpgid(0, 0)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if not die_with_parent(parent, signal.SIGKILL):
        os._exit(1)
    try:
        while True:
            head = _exactly(requests, _LENGTH.size)
            state = pickle.loads(_exactly(requests, _LENGTH.unpack(head)[0]))  # noqa: S301 - from our own parent
            try:
                outcome: Outcome | BadCheck = judge(check, state)
            except BadCheck as bad:
                outcome = bad
            gc.collect()
            sys.stdout.flush()
            sys.stderr.flush()
            answer = pickle.dumps(outcome)
            os.write(answers, _LENGTH.pack(len(answer)) + answer)
    except EOFError:
        os._exit(0)
    except BaseException:  # noqa: BLE001 - nothing of the parent's may run here
        traceback.print_exc()
        os._exit(1)


def _exactly(fd: int, length: int) -> bytes:
    data = b""
    while len(data) < length:
        piece = os.read(fd, length - len(data))
        if not piece:
            raise EOFError
        data += piece
    return data
