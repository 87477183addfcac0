"""Runs one command in a guest with its streams carried to this process's, and says how it ended."""

from __future__ import annotations

import contextlib
import os
import select
import shutil
import signal
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

from dmcore.errors import AbiError, SpecError
from dmvm.exchange import make
from dmvm.machine import Cancel, slowness, start
from dmvm.relay import PIECE, Job, Marks, Outbox, Outcome, pieces

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Mapping, Sequence

    from dmvm.kernels import GuestKernel
    from dmvm.machine import Guest

__all__ = ["Session", "guest_environment", "run"]

_UNUSABLE: Final = frozenset(
    (
        *(
            "LD_PRELOAD",
            "LD_AUDIT",
            "DISPLAY",
            "WAYLAND_DISPLAY",
            "XAUTHORITY",
            "XDG_RUNTIME_DIR",
            "SSH_AUTH_SOCK",
        ),
        *(
            "DBUS_SESSION_BUS_ADDRESS",
            "NOTIFY_SOCKET",
            "LISTEN_FDS",
            "LISTEN_PID",
            "LISTEN_FDNAMES",
            "INVOCATION_ID",
        ),
        *("JOURNAL_STREAM", "TMPDIR", "TEMP", "TMP"),
    )
)
"""Variables that name things which exist only outside the guest."""

_BACKLOG: Final = 1 << 20
_GRACE_SECONDS: Final = 2.0
"""How long a test's end may wait behind its own output."""
_PING_SECONDS: Final = 5.0
_SILENCE_SECONDS: Final = 60.0
_FORWARDED: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGWINCH)


def guest_environment(
    kernel: str, exchange: Path, environment: Mapping[str, str] | None = None
) -> dict[str, str]:
    """Return the environment for a command in the guest: the host's, less what cannot work there.

    Adds PYTEST_DM_GUEST (the kernel's name) and PYTEST_DM_EXCHANGE (the writable folder).
    """
    source = os.environ if environment is None else environment
    kept = {name: value for name, value in source.items() if name not in _UNUSABLE}
    return {**kept, "PYTEST_DM_GUEST": kernel, "PYTEST_DM_EXCHANGE": str(exchange)}


@contextlib.contextmanager
def caught_signals(numbers: Sequence[signal.Signals]) -> Generator[int]:
    """Turn signals into bytes on the descriptor that is yielded; only in the main thread.

    They may be blocked before: whoever starts a worker can so keep them from an interpreter that is not ready for them.
    """
    receive, send = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)

    def note(number: int, _frame: object) -> None:
        with contextlib.suppress(BlockingIOError):
            os.write(send, bytes([number]))

    before = {number: signal.signal(number, note) for number in numbers}
    signal.pthread_sigmask(signal.SIG_UNBLOCK, numbers)
    try:
        yield receive
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        os.close(receive)
        os.close(send)


class Session:
    """One job on one guest. One thread, one poll loop; every wait has a bound or a live job behind it."""

    def __init__(
        self,
        guest: Guest,
        job: Job,
        *,
        stdin: int,
        stdout: int,
        stderr: int,
        signals: int = -1,
        end_with_stdin: bool = False,
    ) -> None:
        """Prepare.

        Args:
            guest: Booted and without a job.
            job: What to run.
            stdin: Descriptor to read the job's input from, -1 for none.
            stdout: Descriptor for its output.
            stderr: Descriptor for its errors.
            signals: Descriptor that yields signal numbers to pass on (`caught_signals`), -1 for none.
            end_with_stdin: End of stdin means: nobody wants the job any more, end the machine.
        """
        self._guest = guest
        self._job = job
        self._stdin = stdin
        self._signals = signals
        self._end_with_stdin = end_with_stdin
        self._outbox = Outbox()
        self._sending = b""
        self._backlog: dict[bytes, bytearray] = {b"O": bytearray(), b"E": bytearray()}
        self._targets = {b"O": stdout, b"E": stderr}
        self._stdin_open = stdin >= 0
        self._outcome: Outcome | None = None
        self._heard = self._pinged = time.monotonic()
        self._silence = _SILENCE_SECONDS * slowness()
        self.marks = Marks()

    def run(self) -> Outcome:
        """Carry the job's streams until it ends, the guest is lost, or nobody wants it."""
        for piece in pieces(self._job.encode()):
            self._outbox.put(b"J", piece)
        self._outbox.put(b"G")
        if not self._stdin_open:
            self._outbox.put(b"C")
        while self._outcome is None:
            self._turn()
        deadline = time.monotonic() + 30
        while any(self._backlog.values()) and time.monotonic() < deadline:
            self._turn(only_output=True)
        return self._outcome

    @property
    def _paused(self) -> bool:
        return any(len(data) > _BACKLOG for data in self._backlog.values())

    def _wanted(self, *, only_output: bool) -> dict[int, int]:
        wanted: dict[int, int] = {}
        for kind, fd in self._targets.items():
            if self._backlog[kind]:
                wanted[fd] = select.POLLOUT
            elif self._end_with_stdin and fd >= 0:
                wanted.setdefault(fd, 0)
        if only_output:
            return wanted
        wanted[self._guest.console.fileno()] = select.POLLIN
        wanted[self._guest.ended_fd] = select.POLLIN
        line = (0 if self._paused else select.POLLIN) | (select.POLLOUT if self._sending else 0)
        if line:
            wanted[self._guest.line.fileno()] = line
        if self._signals >= 0:
            wanted[self._signals] = select.POLLIN
        if self._stdin_open and self._outbox.wants_data:
            wanted[self._stdin] = select.POLLIN
        elif self._stdin_open and self._end_with_stdin:
            wanted.setdefault(self._stdin, 0)
        return wanted

    def _turn(self, *, only_output: bool = False) -> None:
        if not only_output:
            self._sending = self._sending or self._outbox.take()
            if self._sending:
                self._send()
        poller = select.poll()
        for fd, events in self._wanted(only_output=only_output).items():
            poller.register(fd, events)
        now = time.monotonic()
        wait = max(0.0, min(_PING_SECONDS, self.marks.remaining(now)))
        ready = dict(poller.poll(wait * 1000 + 1))
        self._drain(ready)
        if only_output:
            return
        if self._guest.line.fileno() in ready:
            self._receive()
        if self._guest.console.fileno() in ready:
            self._watch()
        if self._guest.ended_fd in ready:
            self._watch_end()
        if self._signals in ready:
            self._pass_signals()
        if self._stdin in ready and self._stdin_open:
            self._read_stdin(ready[self._stdin])
        self._check_deadlines(idle=not ready)

    def _send(self) -> None:
        try:
            self._sending = self._sending[self._guest.line.send(self._sending) :]
        except BlockingIOError:
            return
        except (BrokenPipeError, ConnectionResetError):
            self._sending = b""

    def _receive(self) -> None:
        try:
            data = self._guest.line.recv(1 << 18)
        except BlockingIOError:
            return
        except ConnectionResetError:
            data = b""
        if not data:
            self._conclude()
            return
        self._heard = time.monotonic()
        try:
            self._take_frames(data)
        except (AbiError, ValueError) as error:
            self._lose(f"the guest's line makes no sense: {error}")

    def _take_frames(self, data: bytes) -> None:
        for kind, payload in self._guest.decoder.feed(data):
            if kind in self._backlog:
                self._backlog[kind] += payload
            elif kind == b"A":
                self._outbox.answered(payload)
            elif kind == b"T":
                self._take_marks(payload)
            elif kind == b"X":
                self._outcome = Outcome.decode(payload, self.marks.test)

    def _drain(self, ready: dict[int, int]) -> None:
        for kind, fd in self._targets.items():
            events = ready.get(fd, 0)
            data = self._backlog[kind]
            if data and events:
                try:
                    del data[: os.write(fd, data[: select.PIPE_BUF])]
                except BrokenPipeError:
                    events |= select.POLLERR
            if events & (select.POLLERR | select.POLLNVAL):
                data.clear()
                self._targets[kind] = -1
                if self._outcome is None:
                    self._outcome = Outcome(signal=signal.SIGPIPE)
        if -1 in self._targets.values():
            for kind in [kind for kind, fd in self._targets.items() if fd < 0]:
                self._backlog[kind].clear()

    def _watch(self) -> None:
        if self._watch_sights():
            self._receive()
            self._conclude()

    def _watch_sights(self) -> bool:
        """Act on what the console showed; returns whether it ended."""
        ended = False
        for event in self._guest.console.poll():
            if event.kind in {"panic", "oops"}:
                self._guest.console.settle(1.0)
                self._lose(event.text)
            elif event.kind in {"hung", "killed"}:
                self._guest.notes.append(event.text)
                if event.kind == "hung" and self.marks.remaining(0.0) == float("inf"):
                    self._lose(event.text)
            ended = ended or event.kind == "end"
        return ended

    def _watch_end(self) -> None:
        """The machine is gone; the line may still hold how the job ended."""
        self._receive()
        self._conclude()

    def _conclude(self) -> None:
        """The machine is gone, or as good as: what its console says last is why, else how its process ended."""
        if self._outcome is None:
            self._guest.console.settle(1.0)
            self._watch_sights()
            self._lose(f"the machine {self._guest.ended(5) or 'closed its line or console'}")

    def _pass_signals(self) -> None:
        for number in os.read(self._signals, 64):
            if number == signal.SIGWINCH:
                if self._job.terminal:
                    columns, rows = os.get_terminal_size(self._stdin)
                    self._outbox.put(b"W", rows.to_bytes(2) + columns.to_bytes(2))
            elif number == signal.SIGINT and not self._end_with_stdin:
                self._outbox.put(b"K", bytes([number]))
            elif number != signal.SIGINT:
                self._outcome = self._outcome or Outcome(signal=number, test=self.marks.test)

    def _read_stdin(self, events: int) -> None:
        data = os.read(self._stdin, PIECE) if events & select.POLLIN or self._outbox.wants_data else b""
        if data:
            self._outbox.put(b"D", data)
            return
        self._stdin_open = False
        if self._end_with_stdin:
            self._outcome = self._outcome or Outcome(code=0, test=self.marks.test)
        else:
            self._outbox.put(b"C")

    def _check_deadlines(self, *, idle: bool) -> None:
        now = time.monotonic()
        remaining = self.marks.remaining(now)
        if self._paused or (not idle and remaining > -_GRACE_SECONDS):
            return
        if remaining <= 0:
            self._lose(f"{self.marks.test} ran longer than {self.marks.seconds:g} s")
        elif now - self._heard > self._silence:
            self._lose(f"the guest did not answer for {self._silence:g} s")
        elif now - max(self._heard, self._pinged) >= _PING_SECONDS and not self._outbox.control_unanswered:
            self._pinged = now
            self._outbox.put(b"P")

    def _take_marks(self, payload: bytes) -> None:
        """Note marks, and tell the guest of each start: all that was written before it has arrived here.

        Notes go where the errors go, on lines of their own: what is there may be a line of dots.
        """
        before = self.marks.starts
        self.marks.feed(payload, self._heard)
        for _ in range(self.marks.starts - before):
            self._outbox.put(b"M")
        for note in self.marks.notes:
            self._backlog[b"E"] += f"\ndm: {note}\n".encode()
        self.marks.notes.clear()

    def _lose(self, reason: str) -> None:
        if self._outcome is None:
            notes = [note for note in self._guest.notes if note != reason]
            self._outcome = Outcome(lost="; ".join([reason, *notes]), test=self.marks.test)


@contextlib.contextmanager
def _raw_terminal(fd: int) -> Generator[None]:
    import termios  # noqa: PLC0415 - only for terminals
    import tty  # noqa: PLC0415

    before = termios.tcgetattr(fd)
    try:
        tty.setraw(fd, termios.TCSANOW)
        yield
    finally:
        termios.tcsetattr(fd, termios.TCSADRAIN, before)


def run(
    argv: Sequence[str],
    *,
    kernel: GuestKernel,
    tty: bool,
    exchange: Path | None = None,
    memory_mb: int = 1024,
    visible: Sequence[str | Path] = (),
    progress: Callable[[str], None] = lambda _text: None,
) -> Outcome:
    """Run a command in a fresh guest on this process's own streams; for the main thread of a command-line tool.

    Args:
        argv: The command; looked up in PATH.
        kernel: Where.
        tty: Give it a terminal of its own, as big as ours and following it; ours is raw until the end, so Ctrl-C
            goes to the command. Without, SIGINT is passed on, SIGTERM and SIGHUP end the machine.
        exchange: Folder that the guest may write, kept; None for one that is removed at the end.
        memory_mb: The guest's memory in MiB.
        visible: More host paths to show below /tmp, /run and /dev/shm.
        progress: Told in one line what goes on.

    Raises:
        SpecError: `tty`, and standard input is no terminal.
        VmBootFailed: No guest.
        BootCancelled: A signal came while it booted.
    """
    if tty and not os.isatty(0):
        raise SpecError("tty", tty, "standard input is no terminal; run a command without one instead")
    folder = exchange or make("pytest-dm-")
    temporary = () if exchange else (folder,)
    umask = os.umask(0)
    os.umask(umask)
    try:
        with contextlib.ExitStack() as stack:
            signals = stack.enter_context(caught_signals(_FORWARDED))
            guest = start(
                kernel,
                exchange=folder,
                memory_mb=memory_mb,
                visible=visible,
                remove=temporary,
                cancel=Cancel(signals),
                progress=progress,
            )
            stack.callback(guest.kill)
            progress("")
            environment = guest_environment(kernel.name, folder)
            size = os.get_terminal_size(0) if tty else None
            terminal = (size.lines, size.columns) if size else None
            job = Job(tuple(argv), environment, str(Path.cwd()), umask, terminal)
            sys.stdout.flush()
            if tty:
                stack.enter_context(_raw_terminal(0))
            return Session(guest, job, stdin=0, stdout=1, stderr=2, signals=signals).run()
    finally:
        for path in temporary:
            shutil.rmtree(path, ignore_errors=True)
