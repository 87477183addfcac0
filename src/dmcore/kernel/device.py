"""Device: one dm device with its table, its node, and an end.

Sources: drivers/md/dm-ioctl.c (dev_create, table_load, do_resume, dev_remove), drivers/md/dm.c (dm_swap_table).
"""

from __future__ import annotations

import contextlib
import errno
import select
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from dmcore import registry
from dmcore.errors import DeviceBusy, DeviceMissing, DmError, IoctlError, SpecError
from dmcore.kernel import nodes, udev
from dmcore.kernel.below import refuse_fatal
from dmcore.kernel.control import Control, Selector, Uuid
from dmcore.kernel.holders import holders
from dmcore.ref import Ref
from dmcore.table import Table
from dmcore.units import SECTOR

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Mapping, Sequence
    from types import TracebackType
    from typing import Self

    from dmcore.abi.devt import DevT
    from dmcore.abi.dm import DeviceInfo, TableLine
    from dmcore.target import Message, Resolve, Status

__all__ = ["Device"]

R = TypeVar("R")

_FIRST_PAUSE = 0.001
_LONGEST_PAUSE = 0.1
_STATUS_TRIES = 8


def _resolver(devices: Mapping[str, str] | None) -> Resolve:
    known = devices or {}

    def resolve(ref: Ref) -> str:
        if ref.name in known:
            return Ref(known[ref.name]).name
        if ref.is_number or ref.is_path:
            return ref.name
        raise SpecError("devices", ref.name, "the table names this device, but nothing says which one it is")

    return resolve


def _check_timeout(timeout: float) -> None:
    if not 0 <= timeout < float("inf"):
        raise SpecError("timeout", timeout, "seconds, not negative and not endless")


def _settled(control: Control, request: Callable[[int], DeviceInfo], timeout: float) -> DeviceInfo:
    """Do a request that makes a uevent; where udev runs, wait up to `timeout` seconds until it is done with it."""
    if not control.udev:
        return request(0)
    with udev.transaction() as cookie:
        info = request(cookie.begin())
        if info.uevent_generated:
            cookie.wait(timeout)
        return info


def _node(control: Control, name: str, dev: DevT) -> Path:
    """Return a node for the device: udev's where udev runs, else one of our own making."""
    if control.udev:
        plain = Path(f"/dev/dm-{dev.minor}")
        for path in (nodes.node_path(name), plain):
            if nodes.is_node(path, dev):
                return path
    return nodes.make_node(name, dev)


def _failed(line: TableLine) -> Status | None:
    """Return the status of a target that failed and whose table the kernel does not tell any more; None for others."""
    kind = registry.find(line.type)
    failed = kind.failed if kind else None
    return failed[1] if failed and line.params.strip() == failed[0] else None


def _statuses(lines: Sequence[TableLine], found: Sequence[TableLine]) -> list[Status]:
    """Return the typed status of each line of a table, from the texts of table and status."""
    failed = [_failed(line) for line in lines]
    told = [
        line if status is None else replace(line, type="error", params="")
        for line, status in zip(lines, failed, strict=True)
    ]
    table = Table.from_lines(told).lines if told else ()
    return [
        line.target.parse_status(text.params) if status is None else status
        for line, text, status in zip(table, found, failed, strict=True)
    ]


def _text(lines: Sequence[TableLine]) -> str:
    return "\n".join(str(line).rstrip() for line in lines)


class Device:
    """A dm device that was created by this object (`create`) or before it (`find`).

    A context manager that removes the device at its end. Methods that ask the kernel raise DeviceMissing once the
    device is gone, whoever removed it. Waiting has a bound everywhere except in the kernel's own suspend, which takes
    as long as the I/O below it.

    Attributes:
        control: The control node that serves it.
        name: Device name.
        uuid: Device uuid, "" if it has none.
        dev: Device number.
        path: Its block device node.

    Args:
        control: The control node that serves it.
        info: What the kernel says of it.
        path: Its block device node.
        owns_node: The node is of our own making: `remove` need not look whether it still is this device's.
    """

    def __init__(self, control: Control, info: DeviceInfo, path: Path, *, owns_node: bool = False) -> None:
        self.control = control
        self.name = info.name
        self.uuid = info.uuid
        self.dev = info.dev
        self.path = path
        self._removed = False
        self._owns_node = owns_node

    @classmethod
    def create(
        cls,
        control: Control,
        name: str,
        table: Table,
        *,
        uuid: str = "",
        readonly: bool = False,
        minor: int | None = None,
        devices: Mapping[str, str] | None = None,
        secure: bool = False,
        timeout: float = 10.0,
    ) -> Self:
        """Create a device, load its table and resume it, as one step: on any failure, Ctrl-C included, nothing is left.

        Args:
            control: The control node.
            name: 1..127 bytes without '/'; not "control", "." or "..".
            table: What it does; checked and encoded before anything is created.
            uuid: Up to 128 bytes.
            readonly: Load the table read-only, as is always done with one that must be (`Table.readonly`).
            minor: Minor number to take; the lowest free one if None.
            devices: Which device ("7:0" or a path) stands for a `Ref` name of the table; numbers and absolute
                paths need no entry.
            secure: The table holds a key, see `Control.load`; one that knows so (`Table.secret`) is always loaded so.
            timeout: Seconds for udev, where it runs, and for taking the device down after a failure.

        Raises:
            SpecError: A bad argument, a device of the table that `devices` does not name, or one that is this device.
            DeviceBusy: Name or uuid are taken.
            TableRejected: The kernel does not accept the table; `kernel_log` says why.
        """
        _check_timeout(timeout)
        lines = table.encode(_resolver(devices))
        taken = not uuid and control.exists(name)
        made = False
        try:
            dev = control.create(name, uuid, minor=minor).dev
            made = True
            refuse_fatal(control, lines, dev)
            control.load(name, lines, readonly=readonly or table.readonly, secure=secure or table.secret)
            info = _settled(control, lambda cookie: control.resume(name, cookie=cookie), timeout)
            path = _node(control, name, info.dev)
            return cls(control, info, path, owns_node=not control.udev)
        except BaseException as error:
            if made or not (taken or isinstance(error, DmError)):
                _discard(control, name, uuid, timeout, error)
            raise

    @classmethod
    def find(cls, control: Control, selector: Selector) -> Self:
        """Return the device that exists already.

        Raises:
            DeviceMissing: There is none.
            IoctlError: It has no node, and making one failed.
        """
        info = control.info(selector)
        return cls(control, info, _node(control, info.name, info.dev))

    @property
    def selector(self) -> Selector:
        """How commands find it: by uuid if it has one, since a name may be given to another device later."""
        return Uuid(self.uuid) if self.uuid else self.name

    @property
    def ref(self) -> Ref:
        """The device as a table above it names it: "major:minor"."""
        return Ref(str(self.dev))

    @property
    def size(self) -> int:
        """Bytes of the live table; 0 without one."""
        lines = self.control.table(self.selector)
        return SECTOR * (lines[-1].start + lines[-1].length) if lines else 0

    @property
    def removed(self) -> bool:
        """Whether `remove` succeeded."""
        return self._removed

    def info(self, *, inactive: bool = False) -> DeviceInfo:
        """Return its state; see `Control.info`."""
        return self.control.info(self.selector, inactive=inactive)

    def table(self, *, inactive: bool = False) -> Table:
        """Return the live (or staged) table as the kernel reports it, devices as "major:minor".

        Raises:
            SpecError: There is no such table.
        """
        return Table.from_lines(self.control.table(self.selector, inactive=inactive))

    def table_text(self, *, inactive: bool = False) -> str:
        """Return the table's lines as text, without blanks at their ends and without keys; "" without a table."""
        return _text(self.control.table(self.selector, inactive=inactive))

    def status(self, *, noflush: bool = False) -> list[Status]:
        """Return the typed status of each line of the live table; [] without one.

        Raises:
            ParseError: Status text that the target's class does not understand.
            IoctlError: EAGAIN if the table was replaced again and again while being read.
        """
        for _ in range(_STATUS_TRIES):
            lines = self.control.table(self.selector)
            found = self.control.status(self.selector, noflush=noflush)
            if [(line.start, line.length, line.type) for line in lines] == [
                (line.start, line.length, line.type) for line in found
            ]:
                return _statuses(lines, found)
        raise IoctlError(errno.EAGAIN, "DM_TABLE_STATUS", self.name, "the table keeps changing")

    def status_text(self, *, noflush: bool = False) -> str:
        """Return the status lines as text."""
        return _text(self.control.status(self.selector, noflush=noflush))

    def deps(self) -> tuple[DevT, ...]:
        """Return the devices below, each once, newest opened first."""
        return self.control.deps(self.selector)

    def suspend(self, *, noflush: bool = False, lockfs: bool = True) -> None:
        """Hold back new I/O and wait for what is in flight; see `Control.suspend`."""
        self.control.suspend(self.selector, noflush=noflush, lockfs=lockfs)

    def resume(self, *, noflush: bool = False, lockfs: bool = True, timeout: float = 10.0) -> None:
        """Let I/O go on, with the staged table if there is one.

        If that fails, the staged table is gone, and the device goes on with the old one before this raises.

        Raises:
            TableRejected: The staged table was refused.
        """
        _check_timeout(timeout)
        try:
            _settled(
                self.control,
                lambda cookie: self.control.resume(
                    self.selector, noflush=noflush, lockfs=lockfs, cookie=cookie
                ),
                timeout,
            )
        except BaseException as error:
            self._go_on(error)
            raise

    @contextlib.contextmanager
    def suspended(self, *, noflush: bool = False, lockfs: bool = True) -> Generator[Self]:
        """Keep the device suspended during the block."""
        try:
            self.suspend(noflush=noflush, lockfs=lockfs)
            yield self
        finally:
            self.resume()

    def reload(
        self,
        table: Table,
        *,
        noflush: bool = False,
        lockfs: bool = True,
        readonly: bool = False,
        devices: Mapping[str, str] | None = None,
        secure: bool = False,
    ) -> None:
        """Replace the live table, under I/O: load, suspend, resume.

        A table that is rejected at load changes nothing. One that is rejected at resume, and any other failure between,
        leaves the device running with the old table and nothing staged. The exception are targets that refuse in their
        own preresume (thin-pool, cache): the kernel has swapped by then, the device stays suspended with the refused
        table, and a note on the error says so; load a table that it accepts.

        Args:
            table: The new table.
            noflush: Suspend without freezing and flushing; see `Control.suspend`.
            lockfs: Freeze a mounted file system while suspended.
            readonly: Make the device read-only; False makes it writable.
            devices: As for `create`.
            secure: As for `create`.

        Raises:
            TableRejected: The kernel does not accept the table.
            SpecError: As for `create`; also a table that stands on this device through others.
        """
        lines = table.encode(_resolver(devices))
        refuse_fatal(self.control, lines, self.dev)
        staged = False
        try:
            self.control.load(
                self.selector, lines, readonly=readonly or table.readonly, secure=secure or table.secret
            )
            staged = True
            self.suspend(noflush=noflush, lockfs=lockfs)
            self.resume(noflush=noflush, lockfs=lockfs)
        except BaseException as error:
            if staged or not isinstance(error, DmError):
                self._go_on(error)
            raise

    def _go_on(self, error: BaseException) -> None:
        """Bring a device back that a failure left suspended: I/O must not hang; what fails here becomes a note."""
        try:
            state = self.info()
            if state.inactive:
                self.control.clear(self.selector)
            if state.suspended and state.live:
                self.control.resume(self.selector)
        except DmError as second:
            error.add_note(f"{self.name} could not be brought back: {second}")

    def message(self, text: str, sector: int = 0, *, secure: bool = False) -> str:
        """Send a message to the target at `sector`; return its reply, "" if none. See `Control.message`."""
        return self.control.message(self.selector, text, sector, secure=secure)

    def send(self, message: Message[R], sector: int = 0) -> R:
        """Send a typed message to the target at `sector`; return its reply.

        Raises:
            IoctlError: The target refused it.
            ParseError: A reply that the message's class does not understand.
        """
        return message.parse_reply(self.message(message.encode(), sector, secure=message.secret))

    def wait(self, event_nr: int | None = None, *, timeout: float = 10.0) -> int:
        """Wait until the event number differs from `event_nr`, and return it.

        Target events, renames and removal count; suspend, load and resume do not.

        Args:
            event_nr: Number seen last; the present one if None.
            timeout: Seconds.

        Raises:
            IoctlError: ETIMEDOUT.
            DeviceMissing: The device was removed.
        """
        _check_timeout(timeout)
        deadline = time.monotonic() + timeout
        with Control(self.control.path) as own:
            poller = select.poll()
            poller.register(own, select.POLLIN)
            seen = own.info(self.selector).event_nr
            last = seen if event_nr is None else event_nr
            while seen == last:
                left = deadline - time.monotonic()
                if left <= 0:
                    detail = f"the event number is still {last} after {timeout} s"
                    raise IoctlError(errno.ETIMEDOUT, "DM_DEV_WAIT", self.name, detail)
                if poller.poll(left * 1000):
                    own.arm_poll()
                seen = own.info(self.selector).event_nr
            return seen

    def rename(self, name: str, *, timeout: float = 10.0) -> None:
        """Give it another name; `name` and `path` follow.

        Raises:
            DeviceBusy: The name is taken, also by the device itself.
        """
        _check_timeout(timeout)
        old = self.name
        _settled(self.control, lambda cookie: self.control.rename(old, name, cookie=cookie), timeout)
        self.name = name
        nodes.remove_node(old, self.dev)
        self.path = _node(self.control, name, self.dev)

    def remove(self, *, timeout: float = 5.0, deferred: bool = True) -> None:
        """Remove the device and its node; no-op once it is gone.

        A device that is still open is tried again for `timeout` seconds. It is resumed if it was suspended: I/O held
        back would keep it open for ever.

        Args:
            timeout: Seconds.
            deferred: Let the kernel remove it at its last close if it is open to the end.

        Raises:
            DeviceBusy: It is still open; `detail` says who holds it and whether it goes at its last close.
        """
        _check_timeout(timeout)
        if self._removed:
            return
        deadline = time.monotonic() + timeout
        pause = _FIRST_PAUSE
        while True:
            try:
                _settled(
                    self.control, lambda cookie: self.control.remove(self.selector, cookie=cookie), timeout
                )
                break
            except DeviceMissing:
                break
            except DeviceBusy as busy:
                self._go_on(busy)
                if time.monotonic() >= deadline:
                    self._leave_to_kernel(busy, timeout, deferred=deferred)
                    break
                time.sleep(pause)
                pause = min(2 * pause, _LONGEST_PAUSE)
        self._removed = True
        nodes.remove_node(self.name, None if self._owns_node else self.dev)

    def _leave_to_kernel(self, busy: DeviceBusy, timeout: float, *, deferred: bool) -> None:
        """Mark a device that stays open; return if it went after all, else raise."""
        try:
            held = self.info()
            who = holders(self.dev)
            marked = deferred and self.control.remove(self.selector, deferred=True).deferred_remove
        except DeviceMissing:
            return
        if deferred and not marked:
            return
        if marked:
            nodes.remove_node(self.name, self.dev)
        detail = [
            f"still open after {timeout} s, open_count {held.open_count}",
            f"held by {', '.join(who)}" if who else "nobody that /sys or /proc show holds it",
            *(["the kernel removes it at its last close"] if marked else []),
            *getattr(busy, "__notes__", ()),
        ]
        raise DeviceBusy(errno.EBUSY, "DM_DEV_REMOVE", self.name, "\n".join(detail)) from busy

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.remove()

    def __repr__(self) -> str:
        return f"<Device {self.name} {self.dev}{' (removed)' if self._removed else ''}>"


def _discard(control: Control, name: str, uuid: str, timeout: float, error: BaseException) -> None:
    """Remove what a failed `create` made, and nothing of anybody else's; what fails here becomes a note."""
    try:
        info = control.info(name)
        if info.uuid == uuid:
            Device(control, info, nodes.node_path(name)).remove(timeout=timeout)
    except DeviceMissing:
        return
    except DmError as second:
        error.add_note(f"the half-made device is still there: {second}")
