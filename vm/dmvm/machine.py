"""Boots a guest and ends it: one start for both machines, with a deadline, one retry, and nothing left behind."""

from __future__ import annotations

import contextlib
import json
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

from dmcore.errors import SpecError, VmBootFailed, VmError
from dmvm import guest_init, launch, qemu, store, uml
from dmvm.console import Console
from dmvm.exchange import RULE, usable
from dmvm.kernels import RECIPES
from dmvm.relay import Decoder

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from dmvm.kernels import GuestKernel

__all__ = [
    "CONTROL",
    "BootCancelled",
    "Cancel",
    "Guest",
    "boot_seconds",
    "choose",
    "probe_guard",
    "start",
    "visible_paths",
]

CONTROL: Final = ".dm"
"""Folder of ours in the exchange; removed with the machine."""

_OWN_FOLDERS: Final = tuple(map(Path, ("/tmp", "/run", "/dev", "/var/run")))  # noqa: S108 - the guest has its own
_BOOT_SECONDS: Final = {"uml": 20.0, "kvm": 20.0, "tcg": 60.0}
_USUAL: Final = {"qemu": "debian-6.1", "uml": "uml-6.1"}
_NOTHING: Final = "the guest kernel wrote nothing at all"


class BootCancelled(VmError):
    """Nobody wants the guest any more: its caller's input ended, or a signal came, while it booted."""


class Cancel(NamedTuple):
    """What ends a boot early.

    Attributes:
        signals: Descriptor that turns readable when a signal comes, -1 for none.
        hangup: Descriptor of a pipe whose other end closes when nobody wants the guest, -1 for none.
        owner: A process, 0 for none, with whose end `orphan` (a folder, "" for none) is to go too.
    """

    signals: int = -1
    hangup: int = -1
    owner: int = 0
    orphan: str = ""

    def check(self) -> None:
        """Raise BootCancelled if it is time."""
        poller = select.poll()
        if self.signals >= 0:
            poller.register(self.signals, select.POLLIN)
        if self.hangup >= 0:
            poller.register(self.hangup, 0)
        if poller.poll(0):
            raise BootCancelled("the boot was cancelled")


_NEVER: Final = Cancel()


def _quiet(_text: str) -> None:
    """Tell nobody."""


def boot_seconds(machine: str) -> float:
    """Seconds a boot may take ("uml", "kvm" or "tcg"), scaled by PYTEST_DM_SLOW (a factor, default 1).

    Raises:
        SpecError: PYTEST_DM_SLOW is not a positive number.
    """
    return _BOOT_SECONDS[machine] * slowness()


def slowness() -> float:
    """Return PYTEST_DM_SLOW: by what factor this machine may be slower than deadlines assume.

    Raises:
        SpecError: It is not a positive number.
    """
    text = os.environ.get("PYTEST_DM_SLOW", "1")
    try:
        factor = float(text)
    except ValueError:
        factor = 0.0
    if not 0 < factor < 1e6:
        raise SpecError("PYTEST_DM_SLOW", text, "a factor by which deadlines are stretched, such as 3")
    return factor


def choose(asked: str, kernel: str | None) -> tuple[str, str]:
    """Return which machine and kernel to use.

    "auto" is QEMU where KVM works, else user-mode Linux where its kernel can be had, else QEMU's emulator.

    Args:
        asked: "auto", "qemu" or "uml".
        kernel: A kernel's name or path, which settles the machine; None for the usual one.

    Raises:
        SpecError: No such machine or kernel, or that kernel runs on the other machine.
        Unsupported: The kernel is a path, or this machine's own, and cannot be used.
    """
    if asked not in {"auto", *_USUAL}:
        raise SpecError("machine", asked, "one of auto, qemu, uml")
    if kernel is not None:
        machine = RECIPES[kernel].machine if kernel in RECIPES else store.ensure(kernel).machine
        if asked not in {"auto", machine}:
            fitting = [name for name, recipe in RECIPES.items() if recipe.machine == asked]
            raise SpecError(
                "kernel", kernel, f"runs on {machine}, not on {asked}; there are: {', '.join(fitting)}"
            )
        return machine, kernel
    if asked == "auto":
        obtainable = store.installed(_USUAL["uml"]) is not None or shutil.which("apt-get") is not None
        asked = "uml" if obtainable and not qemu.kvm_works() else "qemu"
    return asked, _USUAL[asked]


def probe_guard() -> str:
    """Return what would keep a UML guest off the host's files here: "mounts", "landlock" or "none", and why not better.

    Takes about 0.1 s: puts the guard in force on a process that does nothing.
    """
    receive, send = os.pipe()
    spec: dict[str, object] = {
        "argv": ["/bin/true"],
        "env": {},
        "writable": [],
        "scratch": "",
        "scratch_mb": 0,
        "guards": launch.GUARDS,
        "life": receive,
        "remove": [],
        "orphan": "",
        "orphan_owner": 0,
    }
    command = [os.path.realpath(sys.executable), "-I", "-S", launch.__file__, json.dumps(spec)]
    try:
        done = subprocess.run(
            command,
            check=False,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=30,
            pass_fds=(receive,),
        )
    finally:
        os.close(receive)
        os.close(send)
    return done.stdout.decode("utf-8", "replace").partition("dmvm-guard: ")[2].strip() or "none"


def visible_paths(wanted: Iterable[str | Path], exchange: Path) -> list[str]:
    """Return the paths to show in the guest although they lie below a folder that is the guest's own.

    Paths elsewhere need nothing, those in the exchange folder are there anyway, and one inside another is covered.
    """
    paths = {Path(os.path.normpath(path)) for path in wanted if str(path).startswith("/")}
    hidden = sorted(path for path in paths if any(path.is_relative_to(own) for own in _OWN_FOLDERS))
    shown: list[Path] = []
    for path in hidden:
        covered = any(path.is_relative_to(other) for other in (*shown, exchange))
        if not covered and os.access(path, os.F_OK) and path not in map(Path, ("/dev", "/run", "/var/run")):
            shown.append(path)
    return [str(path) for path in shown]


@dataclass
class Guest:
    """A booted machine whose agent waits for a job on the line.

    Attributes:
        kernel: What runs.
        exchange: The one host folder that the guest can write.
        line: Socket to the guest's agent; non-blocking.
        decoder: The frames' state on that line.
        console: Its console, watched.
        pid: The machine's process, which leads a group of its own.
        release: The running kernel's release.
        guard: What keeps the guest off the host's files ("mounts", "landlock", "none"), with reasons; QEMU's own
            read-only export comes before it.
        seconds: How long the boot took.
        notes: What the console told besides: killed processes, hung tasks.
        ended_fd: Polls readable once the machine has ended.
    """

    kernel: GuestKernel
    exchange: Path
    line: socket.socket
    decoder: Decoder
    console: Console
    keeper: subprocess.Popen[bytes]
    life: int
    pid: int = 0
    release: str = ""
    guard: str = ""
    seconds: float = 0.0
    notes: list[str] = field(default_factory=list[str])
    ended_fd: int = -1

    def __post_init__(self) -> None:
        self.ended_fd = os.pidfd_open(self.keeper.pid)

    def console_tail(self, lines: int = 60) -> str:
        """Return the console's last lines."""
        return self.console.tail(lines)

    def ended(self, seconds: float = 0.0) -> str:
        """Return how the machine's process ended by itself, "" if it runs after waiting `seconds`."""
        try:
            status = self.keeper.wait(seconds)
        except subprocess.TimeoutExpired:
            return ""
        if status < 0:
            return f"lost its keeper to signal {-status}"
        return f"was killed by signal {status - 128}" if status > 128 else f"ended with status {status}"

    def kill(self) -> None:
        """End the machine at once; returns when no process of it is left. Safe to call twice.

        Raises:
            VmError: A process of it does not die within 25 s (stuck in the host's kernel).
        """
        if self.life < 0:
            return
        os.close(self.life)
        self.life = -1
        self.line.close()
        try:
            self.keeper.wait(25)
        except subprocess.TimeoutExpired as error:
            self.keeper.kill()
            self.keeper.wait()
            raise VmError("a process of the guest does not die", self.console_tail()) from error
        finally:
            if self.keeper.returncode < 0:
                self._do_the_keepers_work()
            self.console.close()
            os.close(self.ended_fd)

    def _do_the_keepers_work(self) -> None:
        """Somebody killed the keeper: the machine died with it, but not UML's helpers."""
        if self.pid:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.pid, signal.SIGKILL)
        launch.remove(str(self.exchange / CONTROL))


def start(
    kernel: GuestKernel,
    *,
    exchange: Path,
    memory_mb: int = 1024,
    visible: Sequence[str | Path] = (),
    guard: str = "auto",
    seconds: float | None = None,
    remove: Sequence[Path] = (),
    cancel: Cancel = _NEVER,
    progress: Callable[[str], None] = _quiet,
) -> Guest:
    """Boot a guest; one that does not come up in time is ended and tried once more.

    Args:
        kernel: Which kernel, on which machine.
        exchange: Existing folder that the guest may write; gets `console.log` and, while the machine lives, `.dm`.
        memory_mb: The guest's memory in MiB, 128 or more.
        visible: Paths the run needs, shown even if below /tmp, /run or /dev/shm (the interpreter's own are added).
        guard: "auto", or one of `dmvm.launch.GUARDS` (UML only).
        seconds: Boot deadline; None for `boot_seconds`.
        remove: Folders that are to go when the machine ends, even if this process is killed.
        cancel: What ends the boot early.
        progress: Told in one line what goes on.

    Raises:
        SpecError: A bad argument, before anything is started.
        VmBootFailed: It did not come up twice; carries the console's end.
        BootCancelled: As `cancel` says; nothing is left of it.
    """
    exchange = exchange.resolve()
    if memory_mb < 128:
        raise SpecError("memory_mb", memory_mb, "a guest needs 128 MiB or more")
    if not usable(exchange):
        raise SpecError("exchange", str(exchange), RULE)
    if guard not in {"auto", *launch.GUARDS}:
        raise SpecError("guard", guard, f"one of auto, {', '.join(launch.GUARDS)}")
    paths = [Path.cwd(), *sys.path, sys.prefix, sys.base_prefix, sys.exec_prefix, kernel.busybox, *visible]
    boot = _Boot(kernel, exchange, memory_mb, visible_paths(paths, exchange), guard, tuple(remove), cancel)
    try:
        return boot.run(seconds, progress)
    except VmBootFailed as error:
        progress(f"{kernel.name} did not boot ({error.message}), once more")
        try:
            return boot.run(seconds, progress)
        except VmBootFailed as again:
            hint = "set PYTEST_DM_SLOW=3 if this machine is slow or loaded; see 'pytest-dm doctor'"
            raise VmBootFailed(
                f"{kernel.name} did not boot, twice: {again.message}; {hint}", again.console
            ) from error


class _Machine(NamedTuple):
    argv: list[str]
    env: dict[str, str]
    guards: Sequence[str]
    scratch: str


@dataclass(frozen=True)
class _Boot:
    kernel: GuestKernel
    exchange: Path
    memory_mb: int
    visible: list[str]
    guard: str
    remove: tuple[Path, ...]
    cancel: Cancel

    def _prepare(self) -> Path:
        """Lay out the control folder: the guest's first program, an interpreter for it, what to mount."""
        folder = self.exchange / CONTROL
        shutil.rmtree(folder, ignore_errors=True)
        (folder / "scratch").mkdir(parents=True)
        shutil.copyfile(guest_init.__file__, folder / "init.py")
        (folder / "python").symlink_to(os.path.realpath(sys.executable))
        boot = {
            "early": [str(module) for module in self.kernel.early],
            "modules": str(self.kernel.modules),
            "busybox": str(self.kernel.busybox),
            "visible": self.visible,
            "exchange_tag": qemu.EXCHANGE_TAG,
        }
        (folder / "boot.json").write_text(json.dumps(boot), encoding="utf-8")
        return folder

    def _machine(self, folder: Path, line_fd: int) -> _Machine:
        init = [
            str(folder / "python"),
            "-I",
            "-S",
            str(folder / "init.py"),
            str(self.exchange),
            self.kernel.machine,
        ]
        words = {"memory_mb": self.memory_mb, "line_fd": line_fd}
        if self.kernel.machine == "uml":
            scratch = folder / "scratch"
            argv = uml.command(self.kernel.image, scratch=scratch, init=init, **words)
            guards = launch.GUARDS if self.guard == "auto" else (self.guard,)
            return _Machine(argv, uml.environment(scratch), guards, str(scratch))
        program, accel = qemu.binary(), qemu.accelerator()
        argv = qemu.command(
            self.kernel, program=program, accel=accel, exchange=self.exchange, init=init, **words
        )
        # QEMU itself exports the host's root read-only; as root there is a second lock at no price.
        return _Machine(argv, dict(os.environ), ("mounts", "none") if os.geteuid() == 0 else ("none",), "")

    def deadline(self) -> float:
        """Seconds that a boot of this may take."""
        return boot_seconds("uml" if self.kernel.machine == "uml" else qemu.accelerator())

    def run(self, seconds: float | None, progress: Callable[[str], None]) -> Guest:
        deadline = seconds if seconds is not None else self.deadline()
        progress(f"booting {self.kernel.name}")
        guest = self._launch(self._prepare())
        try:
            _await_ready(guest, deadline, self.cancel)
        except BaseException:
            guest.kill()
            raise
        return guest

    def _launch(self, folder: Path) -> Guest:
        ours, theirs = socket.socketpair()
        console, console_end = os.pipe()
        life_end, life = os.pipe()
        machine = self._machine(folder, theirs.fileno())
        spec = {
            "argv": machine.argv,
            "env": machine.env,
            "writable": [str(self.exchange)],
            "scratch": machine.scratch,
            "scratch_mb": 2 * self.memory_mb + 512,
            "guards": machine.guards,
            "life": life_end,
            "remove": [str(path) for path in (folder, *self.remove)],
            "orphan": self.cancel.orphan,
            "orphan_owner": self.cancel.owner,
        }
        keeper = subprocess.Popen(
            [os.path.realpath(sys.executable), "-I", "-S", launch.__file__, json.dumps(spec)],
            stdin=subprocess.DEVNULL,
            stdout=console_end,
            stderr=console_end,
            pass_fds=(theirs.fileno(), life_end),
            start_new_session=True,
            cwd="/",
        )
        theirs.close()
        os.close(console_end)
        os.close(life_end)
        os.set_blocking(ours.fileno(), False)
        watched = Console(console, self.exchange / "console.log")
        return Guest(self.kernel, self.exchange, ours, Decoder(), watched, keeper, life)


def _await_ready(guest: Guest, seconds: float, cancel: Cancel) -> None:
    """Wait for the agent's READY.

    Raises:
        VmBootFailed: The deadline passed, the kernel panicked, or the machine ended.
        BootCancelled: As `cancel` says.
    """
    began = time.monotonic()
    reached = [_NOTHING]
    while not guest.release:
        left = began + seconds - time.monotonic()
        if left <= 0:
            raise VmBootFailed(f"not up after {seconds:g} s; {reached[-1]}", guest.console_tail())
        cancel.check()
        select.select([guest.line.fileno(), guest.console.fileno()], [], [], min(left, 0.25))
        _follow_boot(guest, reached)
        try:
            data = guest.line.recv(65536)
        except BlockingIOError:
            continue
        for kind, payload in guest.decoder.feed(data):
            if kind == b"R":
                guest.release = json.loads(payload)["release"]
    guest.seconds = time.monotonic() - began


def _follow_boot(guest: Guest, reached: list[str]) -> None:
    for event in guest.console.poll():
        if event.kind == "machine":
            guest.pid = int(event.text)
        elif event.kind == "guard":
            guest.guard = event.text if guest.kernel.machine == "uml" else f"QEMU, {event.text}"
        elif event.kind == "marker":
            reached.append(f"its first process got as far as: {event.text}")
        elif event.kind in {"panic", "oops"}:
            guest.console.settle(0.5)
            raise VmBootFailed(f"{event.text}; {reached[-1]}", guest.console_tail())
        elif event.kind == "end":
            raise VmBootFailed(f"the machine {guest.ended(5)}; {reached[-1]}", guest.console_tail())
