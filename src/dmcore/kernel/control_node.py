"""The control node: opening it, sending one request, and saying what went wrong.

Source: drivers/md/dm-ioctl.c (ctl_ioctl, copy_params, validate_params).
"""

from __future__ import annotations

import errno
import os
import stat
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING

from dmcore.abi.dm import CLIENT_VERSION, HEADER_SIZE, SIZE_MAX, Command, DmFlag, DmIoctl
from dmcore.errors import AbiError, DeviceBusy, DeviceMissing, IoctlError, Unsupported
from dmcore.kernel import udev
from dmcore.kernel.kmsg import KernelLog, LogTail
from dmcore.kernel.syscalls import COPIED, ioctl

if TYPE_CHECKING:
    from types import TracebackType
    from typing import Self

__all__ = ["CONTROL", "ROOM", "SMALL_ROOM", "ControlNode", "Kinds", "Logs"]

CONTROL = Path("/dev/mapper/control")

SMALL_ROOM = COPIED - HEADER_SIZE
"""Bytes for a reply's payload that are enough for most, in a buffer of the cheap kind."""

ROOM = 16384
"""Bytes for a reply's payload that can be long, or that cannot be asked for again."""

Kinds = Mapping[int, type[IoctlError]]
"""Which error class stands for which errno."""

_KINDS: Kinds = {errno.EBUSY: DeviceBusy, errno.ENXIO: DeviceMissing}
_INTERRUPTS = 64
_NO_CONFLICT = (0, CLIENT_VERSION[0])  # 0: a secure request was wiped, header and all
_LOG_LINES = 100
_REQUEST = {command: command.request for command in Command}
Detail = str | Sequence[object]


class Logs(Enum):
    """Which lines of the kernel log belong to a failed request."""

    NONE = 0
    FROM_NOW = 1
    SINCE_LOAD = 2
    """Those since this thread's last load if no other request that logs came between, else from now on."""


@dataclass(frozen=True, slots=True)
class _Request:
    command: Command
    buffer: bytearray
    kinds: Kinds
    subject: str
    detail: Detail
    tail: LogTail | None


class _PositiveResult(OSError):
    """Kernels up to 6.1 answer a message for a device without a live table with 2 and no errno."""

    def __init__(self, result: int) -> None:
        super().__init__(errno.EINVAL, f"ioctl result {result}")
        self.result = result


def _describe(detail: Detail) -> str:
    return detail if isinstance(detail, str) else "\n".join(map(str, detail))


def wipe_payload(buffer: bytearray) -> None:
    """Overwrite everything behind the header with zeros."""
    buffer[HEADER_SIZE:] = bytes(len(buffer) - HEADER_SIZE)


def _open_control(path: Path) -> int:
    flags = os.O_RDWR | os.O_CLOEXEC
    try:
        try:
            return os.open(path, flags)
        except FileNotFoundError:
            _make_control(path)
            return os.open(path, flags)
    except PermissionError:
        raise Unsupported(
            "root", f"no permission to open {path}", "run as root, or in a VM with --dm-vm"
        ) from None
    except OSError as error:
        raise Unsupported(
            "device-mapper", f"{path}: {error.strerror}", "modprobe dm-mod, or run in a VM with --dm-vm"
        ) from error


def _make_control(path: Path) -> None:
    """Make the node where neither devtmpfs nor udev did; its number is in /proc/misc."""
    for line in Path("/proc/misc").read_text(encoding="ascii").splitlines():
        minor, _, name = line.strip().partition(" ")
        if name == "device-mapper":
            path.parent.mkdir(parents=True, exist_ok=True)
            os.mknod(path, stat.S_IFCHR | 0o600, os.makedev(10, int(minor)))
            return
    raise FileNotFoundError(errno.ENOENT, "no such node, and the kernel has no device-mapper", str(path))


class ControlNode:
    """The open node: one descriptor, no state that requests share, so threads can use it together.

    Args:
        path: The node; made (mode 0600) from the number in /proc/misc if it is missing.

    Attributes:
        path: The node.
        log: The kernel log since its first use, for whoever wants to follow it.
        udev: Whether a udevd was running when the node was opened, so that nodes are udev's.

    Raises:
        Unsupported: No device-mapper in the kernel, or no permission.
    """

    def __init__(self, path: str | os.PathLike[str] = CONTROL) -> None:
        self.path = Path(path)
        self._fd = _open_control(self.path)
        self.udev = udev.running()
        self.log = KernelLog()
        self._threads = threading.local()

    def fileno(self) -> int:
        """Return the descriptor; poll(2) says POLLIN once an event happened since the opening or `arm_poll`."""
        return self._fd

    def close(self) -> None:
        """Close the node; a second call does nothing."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)
        self.log.close()
        self._threads = threading.local()

    def _tail(self, logs: Logs) -> LogTail | None:
        """Return this thread's view of the kernel log, from where `logs` says."""
        if logs is Logs.NONE:
            return None
        try:
            tail: LogTail = self._threads.tail
        except AttributeError:
            tail = self._threads.tail = LogTail()
            return tail
        if logs is Logs.FROM_NOW or not tail.kept:
            tail.begin()
        tail.kept = False
        return tail

    def loaded(self) -> None:
        """Keep the place in the log where this thread's load began: its resume, often the next request, goes with it."""
        self._threads.tail.kept = True

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _refused(self, error: OSError, request: _Request) -> Exception:
        number = error.errno or 0
        version = DmIoctl.version_of(request.buffer)
        if number == errno.EACCES and version == CLIENT_VERSION:
            return Unsupported(
                "CAP_SYS_ADMIN in the initial user namespace",
                f"the kernel refused {request.command.name} with EACCES",
                "run as root outside a container, or in a VM with --dm-vm",
            )
        if number == errno.EINVAL and version[0] not in _NO_CONFLICT:
            return AbiError(f"the kernel speaks dm interface {'.'.join(map(str, version))}, this library 4.x")
        lines = () if request.tail is None else request.tail.lines()[-_LOG_LINES:]
        kind = request.kinds.get(number, IoctlError)
        detail = _describe(request.detail)
        if isinstance(error, _PositiveResult):
            detail += f"\nthe kernel answered {error.result} instead of 0: the device has no live table"
        return kind(number, request.command.name, request.subject, detail, lines)

    def _ioctl(self, command: Command, buffer: bytearray, *, interruptible: bool) -> None:
        for left in range(_INTERRUPTS if interruptible else 1, 0, -1):
            try:
                result = ioctl(self._fd, _REQUEST[command], buffer)
            except InterruptedError:
                if left == 1:
                    raise
                continue
            if result > 0:
                raise _PositiveResult(result)
            return

    def request(
        self,
        command: Command,
        header: DmIoctl,
        *,
        payload: bytes | bytearray = b"",
        room: int = 0,
        kinds: Kinds = _KINDS,
        subject: object = "",
        detail: Detail = "",
        logs: Logs = Logs.NONE,
        interruptible: bool = False,
    ) -> tuple[DmIoctl, bytearray]:
        """Send one request and return the reply's header and bytes.

        With `room` (bytes for a reply's payload) and no payload a full buffer grows, to 16 KiB and then doubling, and the request is repeated.
        With the flag SECURE_DATA everything behind the header is wiped, a reply's text too. An OSError without errno
        that a signal handler raises goes through as it is.
        """
        if self._fd < 0:
            raise IoctlError(errno.EBADF, command.name, str(subject), "the control node was closed")
        tail = self._tail(logs)
        while True:
            buffer = bytearray(HEADER_SIZE + max(room, len(payload)))
            header.pack_into(buffer, len(buffer))
            if payload:
                buffer[HEADER_SIZE : HEADER_SIZE + len(payload)] = payload
            try:
                self._ioctl(command, buffer, interruptible=interruptible)
            except OSError as error:
                if error.errno is None:
                    raise
                failed = _Request(command, buffer, kinds, str(subject), detail, tail)
                raise self._refused(error, failed) from error
            finally:
                if header.flags & DmFlag.SECURE_DATA:
                    wipe_payload(buffer)
            reply = DmIoctl.unpack(buffer)
            if payload or not reply.flags & DmFlag.BUFFER_FULL:
                return reply, buffer
            room = max(2 * room, ROOM)
            if HEADER_SIZE + room > SIZE_MAX:
                raise IoctlError(errno.ENOBUFS, command.name, str(subject), "the reply does not fit 1 GiB")
