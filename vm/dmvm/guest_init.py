"""The guest's first process: builds its root, then runs one command for the host over the byte line.

A self-contained program of the standard library, started by the guest's kernel (UML) or initramfs (QEMU) as
``python3 -I -S guest_init.py EXCHANGE MACHINE`` with the host's file system as its read-only root. All in one
process and without forks, which cost 30 ms each in user-mode Linux.

1. It reads EXCHANGE/.dm/boot.json, loads the early modules, and pivots into an overlay: the host's root below, a
   tmpfs above. proc, sys, dev, run, tmp and dev/shm are the guest's own; host paths below them that the run needs
   are overlaid too. The exchange folder is mounted writable at its host path.
2. It sends READY on the line, takes a job, runs it with plain pipes (or a terminal), carries its streams, and
   reports how it ended. See `dmvm.relay` for the frames.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import json
import os
import select
import signal
import stat
import struct
import sys
import termios
from typing import Any

__all__ = ["Agent", "Decoder", "encode", "main"]

_LIBC = ctypes.CDLL(None, use_errno=True)
_MS_RDONLY, _MS_NOSUID, _MS_NODEV, _MS_NOEXEC, _MS_BIND, _MS_REC, _MS_PRIVATE = (
    1,
    2,
    4,
    8,
    4096,
    16384,
    1 << 18,
)
_MNT_DETACH = 2
_SYS_PIVOT_ROOT, _SYS_FINIT_MODULE = {"x86_64": (155, 313), "aarch64": (41, 273)}[os.uname().machine]
_HEADER = struct.Struct("!cI")
_FULL = 1 << 18
"""Bytes waiting for the line above which the job's output is left in its pipes."""

OLD_ROOT = "/run/.host"


def encode(kind: bytes, payload: bytes = b"") -> bytes:
    """Return one frame; the same as `dmvm.relay.encode`, which a test holds."""
    return _HEADER.pack(kind, len(payload)) + payload


class Decoder:
    """Splits a byte stream into frames."""

    def __init__(self) -> None:
        self._data = bytearray()

    def feed(self, data: bytes) -> list[tuple[bytes, bytes]]:
        """Take bytes as they come; returns the frames they complete."""
        self._data += data
        frames: list[tuple[bytes, bytes]] = []
        while len(self._data) >= 5:
            kind, length = _HEADER.unpack_from(self._data)
            if len(self._data) < 5 + length:
                break
            frames.append((kind, bytes(self._data[5 : 5 + length])))
            del self._data[: 5 + length]
        return frames


def say(text: str) -> None:
    """Write a boot marker to the console, where the host's supervisor looks for it."""
    os.write(1, f"dmvm-init: {text}\n".encode())


def _check(result: int, what: str) -> None:
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{what}: {os.strerror(code)}")


def mount(source: str, target: str, kind: str = "", flags: int = 0, data: str = "") -> None:
    """mount(2); an error says which mount it was."""
    words = (
        os.fsencode(source),
        os.fsencode(target),
        kind.encode(),
        ctypes.c_ulong(flags),
        os.fsencode(data),
    )
    _check(_LIBC.mount(*words), f"mount {kind or 'bind'} {source} on {target}")


def load_module(path: str) -> None:
    """Load one uncompressed module; one that is already there or built in is fine."""
    with open(path, "rb") as module:  # noqa: PTH123 - pathlib costs 10 ms of every guest's start
        if _LIBC.syscall(_SYS_FINIT_MODULE, module.fileno(), b"", 0) < 0:
            code = ctypes.get_errno()
            if code != errno.EEXIST:
                raise OSError(code, f"load {path}: {os.strerror(code)}")


def _make_folder(path: str) -> None:
    with contextlib.suppress(FileExistsError):
        os.makedirs(path)  # noqa: PTH103


def build_root(boot: dict[str, Any]) -> None:
    """Replace the read-only host root by an overlay of it, with the guest's own system folders, and enter it."""
    stage = "/proc"
    mount("stage", stage, "tmpfs", 0, "mode=755,size=75%")
    for name in ("upper", "work", "root"):
        os.mkdir(f"{stage}/{name}")  # noqa: PTH102
    root = f"{stage}/root"
    mount("root", root, "overlay", 0, f"lowerdir=/,upperdir={stage}/upper,workdir={stage}/work")
    for name in ("proc", "sys", "dev", "run", "tmp"):
        _make_folder(f"{root}/{name}")
    mount("run", f"{root}/run", "tmpfs", _MS_NOSUID | _MS_NODEV, "mode=755")
    os.mkdir(root + OLD_ROOT)  # noqa: PTH102
    _check(
        _LIBC.mount(b"none", b"/", None, ctypes.c_ulong(_MS_REC | _MS_PRIVATE), None), "make mounts private"
    )
    _check(_LIBC.syscall(_SYS_PIVOT_ROOT, os.fsencode(root), os.fsencode(root + OLD_ROOT)), "pivot_root")
    os.chdir("/")
    mount("proc", "/proc", "proc", _MS_NOSUID | _MS_NODEV | _MS_NOEXEC)
    mount("sys", "/sys", "sysfs", _MS_NOSUID | _MS_NODEV | _MS_NOEXEC)
    mount("dev", "/dev", "devtmpfs", _MS_NOSUID, "mode=755")
    for name in ("pts", "shm", "mapper"):
        _make_folder(f"/dev/{name}")
    mount("devpts", "/dev/pts", "devpts", _MS_NOSUID | _MS_NOEXEC, "mode=620,ptmxmode=666,gid=5")
    mount("shm", "/dev/shm", "tmpfs", _MS_NOSUID | _MS_NODEV, "mode=1777")  # noqa: S108 - the guest's own
    mount("tmp", "/tmp", "tmpfs", _MS_NOSUID, "mode=1777")  # noqa: S108 - the guest's own
    for link, target in (("fd", ""), ("stdin", "/0"), ("stdout", "/1"), ("stderr", "/2")):
        with contextlib.suppress(FileExistsError):
            os.symlink(f"/proc/self/fd{target}", f"/dev/{link}")  # noqa: PTH211
    _show_host_paths([str(path) for path in boot["visible"]])
    _mount_modules(str(boot["modules"]), os.uname().release)


def _show_host_paths(paths: list[str]) -> None:
    """Overlay host folders that lie below a folder of the guest's own; files are bound read-only."""
    _make_folder("/run/.upper")
    for number, path in enumerate(paths):
        source = OLD_ROOT + path
        if os.path.isdir(source):  # noqa: PTH112
            _make_folder(path)
            upper, work = f"/run/.upper/{number}", f"/run/.upper/{number}w"
            os.mkdir(upper)  # noqa: PTH102
            os.mkdir(work)  # noqa: PTH102
            os.chdir(source)
            mount("host", path, "overlay", 0, f"lowerdir=.,upperdir={upper},workdir={work}")
            os.chdir("/")
        elif os.path.exists(source):  # noqa: PTH110
            _make_folder(os.path.dirname(path))  # noqa: PTH120
            os.close(os.open(path, os.O_CREAT | os.O_WRONLY, 0o600))
            mount(source, path, "", _MS_BIND)


def _mount_modules(modules: str, release: str) -> None:
    target = f"/lib/modules/{release}"
    _make_folder(target)
    mount(OLD_ROOT + modules, target, "", _MS_BIND)


def mount_exchange(exchange: str, machine: str, boot: dict[str, Any]) -> None:
    """Mount the one writable host folder at its host path."""
    _make_folder(exchange)
    if machine == "uml":
        mount("exchange", exchange, "hostfs", _MS_NOSUID | _MS_NODEV, exchange)
    else:
        options = "trans=virtio,version=9p2000.L,cache=mmap,msize=512000,access=any"
        mount(str(boot["exchange_tag"]), exchange, "9p", _MS_NOSUID | _MS_NODEV, options)


def leave_host(busybox: str) -> None:
    """Let go of the host's bare root, and let the kernel load modules by itself."""
    os.mkdir("/run/pytest-dm")  # noqa: PTH102
    os.symlink(busybox, "/run/pytest-dm/modprobe")  # noqa: PTH211
    _write("/proc/sys/kernel/modprobe", "/run/pytest-dm/modprobe")
    _check(_LIBC.umount2(OLD_ROOT.encode(), _MNT_DETACH), "let go of the host root")
    os.rmdir(OLD_ROOT)  # noqa: PTH106
    _check(_LIBC.sethostname(b"dm-guest", 8), "sethostname")
    _make_control_node()
    _loopback_up()


def _write(path: str, text: str) -> None:
    fd = os.open(path, os.O_WRONLY)
    try:
        os.write(fd, text.encode())
    finally:
        os.close(fd)


def _make_control_node() -> None:
    path = "/dev/mapper/control"
    if os.path.exists(path):  # noqa: PTH110
        return
    with open("/proc/misc", encoding="ascii") as misc:  # noqa: PTH123
        minors = {name: int(minor) for minor, name in map(str.split, misc)}
    if "device-mapper" in minors:
        os.mknod(path, 0o600 | stat.S_IFCHR, os.makedev(10, minors["device-mapper"]))


def _loopback_up() -> None:
    """Bring up the loopback interface: SIOCSIFFLAGS with IFF_UP (net/core/dev_ioctl.c)."""
    sock = _LIBC.socket(2, 2 | 0o2000000, 0)
    _check(sock, "socket")
    request = struct.pack("16sH22x", b"lo", 1)
    _check(_LIBC.ioctl(sock, ctypes.c_ulong(0x8914), request), "bring up lo")
    os.close(sock)


def open_line(machine: str) -> int:
    """Open the byte line to the host, raw, keeping bytes that came early."""
    fd = os.open("/dev/ttyS0" if machine == "uml" else _virtio_port(), os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC)
    if os.isatty(fd):
        mode = termios.tcgetattr(fd)
        mode[0] = mode[1] = mode[3] = 0
        mode[2] = (mode[2] & ~(termios.CSIZE | termios.PARENB)) | termios.CS8 | termios.CREAD | termios.CLOCAL
        mode[6][termios.VMIN], mode[6][termios.VTIME] = 1, 0
        termios.tcsetattr(fd, termios.TCSANOW, mode)
    os.set_blocking(fd, False)
    return fd


def _virtio_port() -> str:
    folder = "/sys/class/virtio-ports"
    for name in os.listdir(folder):  # noqa: PTH208
        with open(f"{folder}/{name}/name", encoding="ascii") as label:  # noqa: PTH123
            if label.read().strip() == "dmvm.line":
                return f"/dev/{name}"
    raise FileNotFoundError(errno.ENOENT, "no virtio port is named dmvm.line")


def _socket_pair() -> tuple[int, int]:
    """Return two connected stream sockets; importing `socket` would cost more than the rest of this program."""
    ends = (ctypes.c_int * 2)()
    _check(_LIBC.socketpair(1, 1 | 0o2000000, 0, ends), "socketpair")
    return ends[0], ends[1]


class Agent:
    """Runs one job and carries its streams. One thread, one poll loop, nothing blocks but the poll."""

    def __init__(self, line: int, exchange: str) -> None:
        self._line = line
        self._exchange = exchange
        self._decoder = Decoder()
        self._out = bytearray()
        self._job = bytearray()
        self._child = 0
        self._status: int | None = None
        self._stdin = -1
        self._stdin_is_terminal = False
        self._pending = b""
        self._close_stdin = False
        self._marks = -1
        self._outputs: dict[int, bytes] = {}
        self._wakeup, send = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        signal.set_wakeup_fd(send)
        signal.signal(signal.SIGCHLD, lambda _number, _frame: None)

    def _send(self, kind: bytes, payload: bytes = b"") -> None:
        self._out += encode(kind, payload)

    def serve(self, hello: dict[str, object]) -> None:
        """Say READY, then do what the host says until it ends this machine."""
        self._send(b"R", json.dumps(hello).encode())
        while True:
            ready = self._wait()
            if ready.get(self._line, 0) & select.POLLOUT:
                self._flush()
            if ready.get(self._line, 0) & ~select.POLLOUT:
                self._read_line()
            if self._wakeup in ready:
                self._reap()
            if self._pending and self._stdin in ready:
                self._feed_job()
            for fd in self._outputs.keys() & ready.keys():
                self._read_job(fd)
            if self._status is not None:
                self._finish()

    def _wait(self) -> dict[int, int]:
        poller = select.poll()
        poller.register(self._line, select.POLLIN | (select.POLLOUT if self._out else 0))
        poller.register(self._wakeup, select.POLLIN)
        if len(self._out) < _FULL:
            for fd in self._outputs:
                poller.register(fd, select.POLLIN)
        if self._pending:
            both = select.POLLOUT | (select.POLLIN if self._stdin in self._outputs else 0)
            poller.register(self._stdin, both)
        return dict(poller.poll())

    def _flush(self) -> None:
        with contextlib.suppress(BlockingIOError):
            done = os.write(self._line, self._out[:65536])
            del self._out[:done]

    def _read_line(self) -> None:
        try:
            data = os.read(self._line, 65536)
        except BlockingIOError:
            return
        for kind, payload in self._decoder.feed(data):
            self._obey(kind, payload)

    def _obey(self, kind: bytes, payload: bytes) -> None:
        if kind == b"J":
            self._job += payload
        elif kind == b"G":
            self._launch(json.loads(self._job))
        elif kind == b"D" and self._stdin >= 0:
            self._pending = payload
            self._feed_job()
            return
        elif kind == b"C" and self._stdin >= 0:
            if self._stdin_is_terminal:
                os.write(self._stdin, b"\x04")
            else:
                os.close(self._stdin)
                self._stdin = -1
        elif kind == b"K":
            self._signal(payload[0])
        elif kind == b"M" and self._marks >= 0:
            with contextlib.suppress(OSError):  # the job need not listen
                os.write(self._marks, b".")
        elif kind == b"W" and self._stdin_is_terminal:
            termios.tcsetwinsize(self._stdin, struct.unpack("!HH", payload))
        self._send(b"A", kind)

    def _signal(self, number: int) -> None:
        if self._child and self._status is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._child, number)

    def _feed_job(self) -> None:
        try:
            self._pending = self._pending[os.write(self._stdin, self._pending) :]
        except BlockingIOError:
            return
        except OSError:
            self._pending = b""  # the job closed its end, as a reader of a pipe may
        if not self._pending:
            self._send(b"A", b"D")

    def _read_job(self, fd: int) -> None:
        try:
            data = os.read(fd, 65536)
        except BlockingIOError:
            return
        except OSError as error:
            if error.errno not in {
                errno.EIO,
                errno.ECONNRESET,
            }:  # a terminal or socket whose last user is gone
                raise
            data = b""
        if data:
            if fd == self._marks:
                self._overtake()
            self._send(self._outputs[fd], data)
        else:
            del self._outputs[fd]
            self._marks = -1 if fd == self._marks else self._marks
            if fd != self._stdin:
                os.close(fd)

    def _overtake(self) -> None:
        """Send what the job wrote before the mark in hand: it is in the pipes, which hold no more than one read."""
        for fd in [fd for fd in self._outputs if fd != self._marks]:
            self._read_job(fd)

    def _launch(self, job: dict[str, Any]) -> None:
        argv = [str(word) for word in job["argv"]]
        environment = {str(k): str(v) for k, v in job["env"].items()}
        try:
            os.chdir(str(job["cwd"]))
            os.umask(int(str(job["umask"])))
            marks, theirs = _socket_pair()
            os.set_inheritable(theirs, True)  # noqa: FBT003 - the function's own signature
            environment["PYTEST_DM_CTL"] = str(theirs)
            os.environ["PATH"] = environment.get("PATH", os.defpath)
            size: Any = job["terminal"]
            self._child = (
                self._spawn_on_terminal(argv, environment, tuple(size))
                if size
                else self._spawn(argv, environment)
            )
            os.close(theirs)
            os.set_blocking(marks, False)
            self._marks = marks
            self._outputs[marks] = b"T"
            self._send(b"L", str(self._child).encode())
        except OSError as error:
            code = 127 if isinstance(error, FileNotFoundError) else 126
            text = f"{error.strerror}: {error.filename or argv[0]}"
            self._send(b"X", json.dumps({"code": code, "error": text}).encode())

    def _spawn(self, argv: list[str], environment: dict[str, str]) -> int:
        stdin, self._stdin = os.pipe2(os.O_CLOEXEC)
        (out, stdout), (err, stderr) = os.pipe2(os.O_CLOEXEC), os.pipe2(os.O_CLOEXEC)
        actions = [(os.POSIX_SPAWN_DUP2, fd, number) for number, fd in enumerate((stdin, stdout, stderr))]
        try:
            return self._posix_spawn(argv, environment, actions)
        finally:
            for fd in (stdin, stdout, stderr):
                os.close(fd)
            for fd in (self._stdin, out, err):
                os.set_blocking(fd, False)
            self._outputs.update({out: b"O", err: b"E"})

    def _spawn_on_terminal(self, argv: list[str], environment: dict[str, str], size: tuple[int, int]) -> int:
        master, slave = os.openpty()
        termios.tcsetwinsize(slave, size)
        name = os.ttyname(slave)
        actions: list[Any] = [(os.POSIX_SPAWN_OPEN, 0, name, os.O_RDWR, 0)]
        actions += [(os.POSIX_SPAWN_DUP2, 0, number) for number in (1, 2)]
        try:
            return self._posix_spawn(argv, environment, actions)
        finally:
            os.close(slave)
            os.set_blocking(master, False)
            self._stdin, self._stdin_is_terminal = master, True
            self._outputs[master] = b"O"

    def _posix_spawn(self, argv: list[str], environment: dict[str, str], actions: Any) -> int:
        return os.posix_spawnp(
            argv[0],
            argv,
            environment,
            file_actions=actions,
            setsid=True,
            setsigmask=[],
            setsigdef=[signal.SIGPIPE, signal.SIGXFSZ, signal.SIGINT],
        )

    def _reap(self) -> None:
        os.read(self._wakeup, 512)
        with contextlib.suppress(ChildProcessError):
            while (reaped := os.waitpid(-1, os.WNOHANG))[0]:
                if reaped[0] == self._child:
                    self._status = reaped[1]

    def _finish(self) -> None:
        """All that the job wrote is in its pipes by now; report it, then how it ended."""
        status, self._status = self._status, None
        assert status is not None
        for fd in list(self._outputs):
            size = -1
            while fd in self._outputs and size != len(self._out):
                size = len(self._out)
                self._read_job(fd)
        folder = os.open(self._exchange, os.O_RDONLY)
        _LIBC.syncfs(folder)
        os.close(folder)
        end = {"signal": os.WTERMSIG(status)} if os.WIFSIGNALED(status) else {"code": os.WEXITSTATUS(status)}
        self._send(b"X", json.dumps(end).encode())


def main(argv: list[str]) -> None:
    """Build the root and serve; never returns, since the kernel panics when its first process ends."""
    exchange, machine = argv[1:3]
    say("started")
    with open(f"{exchange}/.dm/boot.json", encoding="utf-8") as file:  # noqa: PTH123
        boot = json.load(file)
    for module in boot["early"]:
        load_module(module)
    say("modules loaded")
    build_root(boot)
    say("root built")
    mount_exchange(exchange, machine, boot)
    leave_host(str(boot["busybox"]))
    line = open_line(machine)
    say("ready")
    Agent(line, exchange).serve({"release": os.uname().release, "machine": machine})


if __name__ == "__main__":
    main(sys.argv)
