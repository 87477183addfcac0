"""One run of a verb: the control node, how devices are named, and requests with dmsetup's words for their failures."""

from __future__ import annotations

import errno
import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from dmcore.abi.devt import DevT
from dmcore.abi.dm import NAME_MAX, UUID_MAX, Command, DeviceInfo, DmFlag, DmIoctl, encode_text
from dmcore.cli._dmsetup.failed import Failed
from dmcore.cli._dmsetup.mangling import mangle, unmangle
from dmcore.cli._dmsetup.nodes import Nodes
from dmcore.cli._dmsetup.options import cookie
from dmcore.errors import IoctlError, SpecError
from dmcore.kernel.control import Control
from dmcore.kernel.control_node import SMALL_ROOM, Logs

if TYPE_CHECKING:
    from collections.abc import Callable

    from dmcore.cli._dmsetup.options import Options
    from dmcore.cli._dmsetup.report import Report
    from dmcore.cli._dmsetup.tree import Tree

__all__ = ["Reply", "Session", "Where"]

_COMMANDS = {
    "create": Command.DM_DEV_CREATE, "reload": Command.DM_TABLE_LOAD, "remove": Command.DM_DEV_REMOVE,
    "remove_all": Command.DM_REMOVE_ALL, "suspend": Command.DM_DEV_SUSPEND, "resume": Command.DM_DEV_SUSPEND,
    "info": Command.DM_DEV_STATUS, "deps": Command.DM_TABLE_DEPS, "rename": Command.DM_DEV_RENAME,
    "version": Command.DM_VERSION, "status": Command.DM_TABLE_STATUS, "table": Command.DM_TABLE_STATUS,
    "waitevent": Command.DM_DEV_WAIT, "names": Command.DM_LIST_DEVICES, "clear": Command.DM_TABLE_CLEAR,
    "mknodes": Command.DM_DEV_STATUS, "versions": Command.DM_LIST_VERSIONS, "message": Command.DM_TARGET_MSG,
    "setgeometry": Command.DM_DEV_SET_GEOMETRY, "target-version": Command.DM_GET_TARGET_VERSION,
}  # fmt: skip
_ANSWERED = frozenset({"deps", "status", "table", "waitevent", "names", "versions", "target-version"})
_MAY_BE_MISSING = frozenset({"info", "mknodes", "status"})
_LOGGED = {"reload": Logs.FROM_NOW, "resume": Logs.SINCE_LOAD, "message": Logs.FROM_NOW}
_REPLY_ROOM = 1 << 20
"""Bytes for a message's reply: it cannot be asked for again without carrying the message out again."""
_NO_DM_RULES, _NO_SUBSYSTEM_RULES, _NO_FALLBACK, _PRIMARY = 0x01, 0x02, 0x20, 0x40
_UDEV_SECONDS = 180.0
"""Bound of a wait for udev, which itself gives up an event after as long."""


@dataclass(frozen=True, slots=True)
class Where:
    """Which device, as the request names it.

    Attributes:
        name: The kernel's spelling of its name, "" if it is not named so.
        uuid: The same of its uuid.
        dev: Its number.
    """

    name: str = ""
    uuid: str = ""
    dev: DevT | None = None

    def __str__(self) -> str:
        number = f"({self.dev})" if self.dev is not None else ""
        return f"{self.name} {self.uuid}{number}"


@dataclass(frozen=True, slots=True)
class Reply:
    """What the kernel answered.

    Attributes:
        header: The reply's header; the request's own where there is no such device.
        buffer: The whole reply.
        exists: Whether there is such a device.
    """

    header: DmIoctl
    buffer: bytearray
    exists: bool = True

    @property
    def info(self) -> DeviceInfo:
        """The device's state."""
        return DeviceInfo(self.header)

    @property
    def name(self) -> str:
        """The device's name as people see it."""
        return unmangle(self.header.name)

    @property
    def uuid(self) -> str:
        """The device's uuid as people see it."""
        return unmangle(self.header.uuid)


class Session:
    """The state of one run.

    Args:
        options: The command line.

    Attributes:
        options: The same.
        mangling: How odd bytes in names are spelled; "none": as they are.
        several: Whether the verb is about more than one device, so that each line says which.
        report: Where the verb's rows go; None where it prints no columns.
        concise_begun: Whether a concise specification was begun on stdout.
        turn: How many times the verb was begun: --count and --interval repeat it.
    """

    def __init__(self, options: Options) -> None:
        self.options = options
        self.mangling = options.mangling
        self.several = False
        self.report: Report | None = None
        self.concise_begun = False
        self.turn = 0
        self._disabled = "DM_DISABLE_UDEV" in os.environ

    @cached_property
    def control(self) -> Control:
        """The control node, opened at the first request."""
        return Control()

    @cached_property
    def nodes(self) -> Nodes:
        """The folder of the nodes."""
        return Nodes.of(self.options, checking=self.syncs and not self.relies_on_udev)

    def close(self) -> None:
        """Close the control node if it was opened."""
        if "control" in self.__dict__:
            self.control.close()

    @cached_property
    def tree(self) -> Tree:
        """All devices, and what each stands on."""
        from dmcore.cli._dmsetup.tree import build  # noqa: PLC0415 - few need it

        return build(self)

    @property
    def syncs(self) -> bool:
        """Whether to wait for udev."""
        return self.control.udev and not self._disabled and not self.options.has("noudevsync")

    @property
    def relies_on_udev(self) -> bool:
        """Whether nodes are udev's alone."""
        usual = os.environ.get("DM_DEV_DIR") in {None, "", "/dev", "/dev/"}
        trusted = bool(self.transaction) or not self.options.has("verifyudev")
        return self.control.udev and not self._disabled and usual and trusted

    @cached_property
    def transaction(self) -> int:
        """Number of the udev transaction that somebody else waits for, 0 without."""
        asked = os.environ.get("DM_UDEV_COOKIE", "")
        return self.options.cookie or (cookie(asked) if asked else 0)

    def flag(self, name: str, bit: int) -> int:
        """Return `bit` if the option stands there, else 0."""
        return bit if self.options.has(name) else 0

    def spell(self, text: str, what: str, limit: int) -> str:
        """Return the kernel's spelling of a name or uuid."""
        return text if self.mangling == "none" else mangle(text, what, self.mangling, limit)

    def shown(self, text: str) -> str:
        """Return a kernel's name or uuid as people see it."""
        return text if self.mangling == "none" else unmangle(text)

    def spell_name(self, name: str, what: str = "name") -> str:
        """Return the kernel's spelling of a name that is no path."""
        if len(encode_text(name)) > NAME_MAX:
            raise Failed(f'Name "{name}" too long.')
        return self.spell(name, what, NAME_MAX)

    def named(self, name: str) -> Where:
        """Return the device of a name, or of a path to its node."""
        if "/" not in name:
            return Where(self.spell_name(name))
        return Where(self._name_of_path(name))

    def _name_of_path(self, path: str) -> str:
        base = path.rpartition("/")[2]
        found = Path(path)
        try:
            number = found.stat().st_rdev
        except OSError:
            found = self.nodes.folder.parent / path
            if len(path) < 3 or path.count("/") != 1 or path.startswith("/") or not found.exists():
                raise Failed(f"Device {path} not found") from None
            number = found.stat().st_rdev
        names = [base, *self.nodes.names()] if found == Path(path) else self.nodes.names()
        for name in names:
            node = self.nodes.path(name)
            if node.exists() and node.stat().st_rdev == number:
                return name
        return self._name_of_number(number, base)

    def _name_of_number(self, number: int, base: str) -> str:
        """Find the device in the kernel's list; dmsetup finds devices with a node in /dev/mapper only."""
        for entry in self.control.list_devices():
            if entry.dev.rdev == number:
                return entry.name
        raise Failed(f"Device {base} not found")

    def where(self, name: str | None) -> Where:
        """Return the device that a name or path, else -u, else -j and -m stand for.

        Raises:
            Failed: None of them is there, or a name that cannot be.
        """
        if name is not None:
            return self.named(name)
        uuid = self.options.value("uuid")
        if uuid is not None:
            return Where(uuid=self.spell(uuid, "UUID", UUID_MAX))
        dev = self.number()
        if dev is None:
            raise Failed("No device specified.")
        return Where(dev=dev)

    def number(self) -> DevT | None:
        """Return the device number of -j and -m, None without."""
        major, minor = self.options.major, self.options.minor
        if major is None or minor is None:
            return None
        if major <= 0:
            raise Failed("Missing major number for persistent device.", "Couldn't create ioctl argument.")
        try:
            return DevT(major, minor)
        except SpecError as error:
            raise Failed(f"dmcore: {error}") from None

    def ask(
        self,
        verb: str,
        where: Where = Where(),
        *,
        flags: int = 0,
        payload: bytes | bytearray = b"",
        count: int = 0,
        event_nr: int = 0,
    ) -> Reply:
        """Do one request.

        Args:
            verb: libdevmapper's name of it.
            where: Which device.
            flags: Bits of `DmFlag`; those of --inactive and --noopencount are added.
            payload: What goes behind the header.
            count: Records of the payload.
            event_nr: The event to wait for, or a udev cookie.

        Raises:
            Failed: The kernel refused it; its log lines stand below dmsetup's line.
        """
        flags |= self.flag("inactive", DmFlag.QUERY_INACTIVE_TABLE) | self.flag(
            "noopencount", DmFlag.SKIP_BDGET
        )
        dev = where.dev.huge if where.dev is not None else 0
        flags |= DmFlag.PERSISTENT_DEV if where.dev is not None else 0
        name = "" if verb == "reload" and where.dev is not None else where.name
        header = DmIoctl(flags, name, where.uuid, dev, event_nr, target_count=count)
        try:
            reply, buffer = self.control.request(
                _COMMANDS[verb],
                header,
                payload=payload,
                room=_REPLY_ROOM if verb == "message" else SMALL_ROOM if verb in _ANSWERED else 0,
                subject=where,
                logs=_LOGGED.get(verb, Logs.NONE),
                interruptible=verb in {"suspend", "waitevent"},
            )
        except IoctlError as error:
            if error.errno == errno.ENXIO and verb in _MAY_BE_MISSING:
                return Reply(header, bytearray(), exists=False)
            line = f"device-mapper: {verb} ioctl on {where} failed: {error.strerror}"
            raise Failed(line, *(f"  kernel: {text}" for text in error.kernel_log)) from None
        except SpecError as error:
            raise Failed(f"dmcore: {error}") from None
        if verb == "message" and reply.flags & DmFlag.BUFFER_FULL:
            raise Failed(
                f"dmcore: the message was carried out, but its reply is longer than {_REPLY_ROOM} bytes"
            )
        if verb == "reload":
            self.control.loaded()
        return Reply(reply, buffer)

    def ask_with_uevent(self, request: Callable[[int], Reply]) -> Reply:
        """Do a request that makes a uevent, given its cookie, and wait until udev has handled it."""
        flags = _PRIMARY
        if self.options.has("noudevrules"):
            flags |= _NO_DM_RULES | _NO_SUBSYSTEM_RULES
        if self.relies_on_udev:
            flags |= _NO_FALLBACK
        if self._disabled:
            flags |= _NO_DM_RULES | _NO_SUBSYSTEM_RULES
        if not self.syncs:
            return request(flags << 16)
        if self.transaction:
            return self._in_transaction(request, flags)
        from dmcore.kernel import udev  # noqa: PLC0415 - only where udev runs

        with udev.transaction(flags) as mine:
            reply = request(mine.begin() or flags << 16)
            if reply.info.uevent_generated and mine.works and not mine.wait(_UDEV_SECONDS):
                raise Failed(f"dmcore: udev did not handle the event within {_UDEV_SECONDS:g} s")
            return reply

    def _in_transaction(self, request: Callable[[int], Reply], flags: int) -> Reply:
        """Count the request in somebody else's transaction, which the one who made it waits for."""
        from dmcore.cli._dmsetup.cookies import find  # noqa: PLC0415 - only where udev runs

        semaphore = find(self.transaction)
        semaphore.add(1)
        try:
            reply = request(flags << 16 | self.transaction & 0xFFFF)
        except BaseException:
            semaphore.add(-1)
            raise
        if not reply.info.uevent_generated:
            semaphore.add(-1)
        return reply

    @property
    def own_nodes(self) -> Nodes | None:
        """The nodes if they are ours to make, None if they are udev's."""
        return None if self.relies_on_udev else self.nodes
