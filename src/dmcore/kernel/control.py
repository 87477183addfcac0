"""Every command of the device-mapper control node.

Source: drivers/md/dm-ioctl.c (ctl_ioctl and the function named at each command). Checked on 6.1, 6.12 and 7.2.
"""

from __future__ import annotations

import errno
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dmcore.abi.devt import DevT
from dmcore.abi.dm import (
    HEADER_SIZE,
    MPATH_PROBE_PATHS,
    NAME_MAX,
    UUID_MAX,
    Command,
    DeviceEntry,
    DeviceInfo,
    DmFlag,
    DmIoctl,
    TableLine,
    Version,
    encode_text,
)
from dmcore.abi.dm_records import (
    pack_lines,
    pack_message,
    unpack_deps,
    unpack_lines,
    unpack_names,
    unpack_reply,
    unpack_versions,
)
from dmcore.errors import (
    AbiError,
    DeviceBusy,
    DeviceMissing,
    IoctlError,
    SpecError,
    TableRejected,
    Unsupported,
)
from dmcore.kernel.control_node import CONTROL, ROOM, SMALL_ROOM, ControlNode, Kinds, Logs
from dmcore.kernel.syscalls import COPIED, ioctl

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["CONTROL", "Control", "Selector", "Uuid", "probe_paths"]

_RESERVED = frozenset({"control", ".", ".."})
_CREATE_KINDS: Kinds = {errno.EBUSY: DeviceBusy}
_RESUME_KINDS: Kinds = {
    errno.EBUSY: DeviceBusy,
    errno.ENXIO: DeviceMissing,
    errno.EINVAL: TableRejected,
}
_NOT_THE_TABLE = frozenset({errno.EACCES, errno.ENOTTY, errno.EFAULT, errno.EINTR, errno.EBADF})


@dataclass(frozen=True, slots=True)
class Uuid:
    """Selects a device by its uuid.

    Attributes:
        text: The uuid, 1..128 bytes.
    """

    text: str

    def __str__(self) -> str:
        return f"uuid {self.text}"


Selector = str | Uuid | DevT
"""How a command finds its device: by name, uuid, or number."""


def _select(selector: Selector) -> tuple[str, str, int]:
    """Return name, uuid and number for a header; exactly one is set, as the kernel's lookup wants it."""
    if isinstance(selector, DevT):
        return "", "", selector.huge
    if isinstance(selector, Uuid):
        if not selector.text:
            raise SpecError("uuid", selector.text, "an empty uuid selects nothing")
        return "", selector.text, 0
    if not selector:
        raise SpecError("name", selector, "an empty name selects nothing")
    return selector, "", 0


def _check_name(field: str, name: str) -> None:
    """Refuse names that some kernel refuses, cuts, or cannot make a node for (`check_name()`)."""
    if not 0 < len(encode_text(name)) <= NAME_MAX:
        raise SpecError(field, name, f"a device name has 1..{NAME_MAX} bytes")
    if "/" in name or "\0" in name:
        raise SpecError(field, name, "'/' and NUL cannot stand in a device name")
    if name in _RESERVED:
        raise SpecError(field, name, "this name stands for something else in /dev/mapper")


def _check_cookie(cookie: int) -> None:
    if not 0 <= cookie < 1 << 32:
        raise SpecError("cookie", cookie, "a 32-bit number, 0 for none")


def probe_paths(fd: int) -> None:
    """Probe the active paths of a multipath device (`multipath_ioctl()`), `fd` being its open block device.

    Raises:
        IoctlError: ENOTCONN if no path is left; ENOTTY or the lower device's errno where the kernel (before 6.16) or
            the target does not know the request.
    """
    try:
        ioctl(fd, MPATH_PROBE_PATHS)
    except OSError as error:
        raise IoctlError(error.errno or errno.EIO, "DM_MPATH_PROBE_PATHS", f"fd {fd}") from error


class Control(ControlNode):
    """The control node, open: one method per command.

    Thread-safe: there is one descriptor and no state that calls share. Every command needs CAP_SYS_ADMIN. Values that
    the kernel would refuse, cut or misread are refused with SpecError before the request. A request that fails raises
    IoctlError with errno, command, device, what was asked, and for the commands that log their reasons (load, resume, message)
    the kernel log lines written since: DeviceMissing for ENXIO, DeviceBusy for EBUSY,
    TableRejected where a table was not accepted.

    Args:
        path: The node; made (mode 0600) from the number in /proc/misc if it is missing.

    Attributes:
        path: The node.
        log: The kernel log since its first use, for whoever wants to follow it.
        udev: Whether a udevd was running when the node was opened, so that nodes are udev's.

    Raises:
        Unsupported: No device-mapper in the kernel, or no permission.
    """

    def _device(
        self, command: Command, selector: Selector, flags: int = 0, *, event_nr: int = 0
    ) -> DeviceInfo:
        """Do a command that only names a device and answers with its header."""
        name, uuid, dev = _select(selector)
        header = DmIoctl(flags, name, uuid, dev, event_nr)
        suspends = command is Command.DM_DEV_SUSPEND
        reply, _ = self.request(command, header, subject=selector, interruptible=suspends)
        return DeviceInfo(reply)

    def version(self) -> Version:
        """Return the interface version of the kernel, such as (4, 48, 0)."""
        reply, _ = self.request(Command.DM_VERSION, DmIoctl())
        return reply.version

    def list_versions(self) -> dict[str, Version]:
        """Return the registered targets with their versions, newest registered first; loads no module."""
        return unpack_versions(*self.request(Command.DM_LIST_VERSIONS, DmIoctl(), room=SMALL_ROOM))

    def target_version(self, name: str) -> Version:
        """Return the version of one target, loading the module dm-NAME if need be (`get_target_version()`).

        Raises:
            Unsupported: The kernel knows no such target and has no module for it.
        """
        try:
            reply, buffer = self.request(
                Command.DM_GET_TARGET_VERSION, DmIoctl(name=name), room=SMALL_ROOM, subject=name
            )
        except IoctlError as error:
            if error.errno != errno.EINVAL:
                raise
            raise Unsupported(
                f"dm target {name}", "the kernel does not know it", f"modprobe dm-{name}"
            ) from error
        versions = unpack_versions(reply, buffer)
        if name not in versions:
            message = f"asked for target {name!r}, got {sorted(versions)}"
            raise AbiError(message, HEADER_SIZE)
        return versions[name]

    def list_devices(self, name_prefix: str = "", uuid_prefix: str = "") -> list[DeviceEntry]:
        """Return the devices whose name and uuid start so, in ascending order of the names' bytes."""
        header = DmIoctl(DmFlag.UUID, name_prefix, uuid_prefix)
        return unpack_names(*self.request(Command.DM_LIST_DEVICES, header, room=SMALL_ROOM))

    def remove_all(self, *, deferred: bool = False, i_know: bool = False) -> None:
        """Remove every unopened device of the whole machine, whoever made it (`dm_hash_remove_all()`).

        Args:
            deferred: Mark the open ones, so that they go at their last close.
            i_know: Must be True: this is for throw-away guests.
        """
        if not i_know:
            raise SpecError(
                "i_know", i_know, "this removes every dm device of the machine; pass True if meant"
            )
        self.request(Command.DM_REMOVE_ALL, DmIoctl(DmFlag.DEFERRED_REMOVE if deferred else 0))

    def arm_poll(self) -> None:
        """Forget the events so far: poll(2) on `fileno` waits for the next one (`dev_arm_poll()`)."""
        self.request(Command.DM_DEV_ARM_POLL, DmIoctl())

    def create(self, name: str, uuid: str = "", *, minor: int | None = None) -> DeviceInfo:
        """Make a device without a table; its node cannot be opened (ENXIO) before the first load (`dev_create()`).

        Args:
            name: 1..127 bytes without '/'; not "control", "." or "..".
            uuid: Up to 128 bytes; can be set later, but only once.
            minor: Use this minor number, 0..1048575; the lowest free one if None.

        Raises:
            DeviceBusy: Name or uuid are taken.
            IoctlError: ENXIO for a minor that is taken, or another refusal.
        """
        _check_name("name", name)
        dev, flags = 0, 0
        if minor is not None:
            dev, flags = DevT(0, minor).huge, DmFlag.PERSISTENT_DEV
        reply, _ = self.request(
            Command.DM_DEV_CREATE,
            DmIoctl(flags, name, uuid, dev),
            kinds=_CREATE_KINDS,
            subject=name,
            detail=f"minor {minor}" if minor is not None else "",
        )
        return DeviceInfo(reply)

    def remove(self, selector: Selector, *, deferred: bool = False, cookie: int = 0) -> DeviceInfo:
        """Remove a device with its tables (`dev_remove()`).

        Args:
            selector: Which.
            deferred: An open device is marked and goes at its last close; `deferred_remove` of the result says so.
            cookie: udev cookie for the uevent, 0 for none.

        Raises:
            DeviceBusy: It is open; nothing was changed.
        """
        _check_cookie(cookie)
        flags = DmFlag.DEFERRED_REMOVE if deferred else 0
        return self._device(Command.DM_DEV_REMOVE, selector, flags, event_nr=cookie)

    def cancel_deferred_remove(self, selector: Selector) -> None:
        """Take back the mark of a deferred removal; no-op without one (`dm_cancel_deferred_remove()`).

        It goes as a message that the kernel's core answers, no target, so that the device needs no table.

        Raises:
            DeviceBusy: The removal has begun.
        """
        self.message(selector, "@cancel_deferred_remove")

    def rename(self, name: str, new: str, *, cookie: int = 0) -> DeviceInfo:
        """Give a device another name; the kernel finds it by its name only (`dev_rename()`).

        The result still shows the old name.

        Raises:
            DeviceBusy: The new name is taken; also by the device itself.
        """
        _check_name("new", new)
        return self._rename(name, new, 0, cookie)

    def set_uuid(self, name: str, uuid: str, *, cookie: int = 0) -> DeviceInfo:
        """Give a device without a uuid one; the result still shows the old, empty one.

        Raises:
            DeviceBusy: The uuid is taken.
            IoctlError: EINVAL if the device has a uuid.
        """
        if not 0 < len(encode_text(uuid)) <= UUID_MAX or "\0" in uuid:
            raise SpecError("uuid", uuid, f"a uuid has 1..{UUID_MAX} bytes and no NUL")
        return self._rename(name, uuid, DmFlag.UUID, cookie)

    def _rename(self, name: str, new: str, flags: int, cookie: int) -> DeviceInfo:
        _check_cookie(cookie)
        header = DmIoctl(flags, _select(name)[0], event_nr=cookie)
        payload = encode_text(new) + b"\0"
        reply, _ = self.request(Command.DM_DEV_RENAME, header, payload=payload, subject=name, detail=new)
        return DeviceInfo(reply)

    def suspend(self, selector: Selector, *, noflush: bool = False, lockfs: bool = True) -> DeviceInfo:
        """Hold back new I/O and wait for what is in flight; no-op on a suspended device (`do_suspend()`).

        Waits as long as the I/O below takes. Interruptions by signals are tried again, 64 times.

        Args:
            selector: Which.
            noflush: Do not freeze or flush; targets may push I/O back instead of failing it.
            lockfs: Freeze a mounted file system first.
        """
        flags = DmFlag.SUSPEND | (DmFlag.NOFLUSH if noflush else 0) | (0 if lockfs else DmFlag.SKIP_LOCKFS)
        return self._device(Command.DM_DEV_SUSPEND, selector, flags)

    def resume(
        self, selector: Selector, *, noflush: bool = False, lockfs: bool = True, cookie: int = 0
    ) -> DeviceInfo:
        """Take a staged table into use, if there is one, and let I/O go on (`do_resume()`).

        `noflush` and `lockfs` matter where the device is not suspended yet: it is then suspended first.

        Raises:
            TableRejected: The staged table is refused now (too large for the device below, misaligned ...). It is
                gone, and the device stays suspended with the old one: another `resume` brings that back.
        """
        _check_cookie(cookie)
        name, uuid, dev = _select(selector)
        flags = (DmFlag.NOFLUSH if noflush else 0) | (0 if lockfs else DmFlag.SKIP_LOCKFS)
        reply, _ = self.request(
            Command.DM_DEV_SUSPEND,
            DmIoctl(flags, name, uuid, dev, cookie),
            kinds=_RESUME_KINDS,
            subject=selector,
            detail="resume",
            logs=Logs.SINCE_LOAD,
            interruptible=True,
        )
        return DeviceInfo(reply)

    def info(self, selector: Selector, *, inactive: bool = False) -> DeviceInfo:
        """Return the device's state; with `inactive`, `target_count` and `readonly` are of the staged table."""
        flags = DmFlag.QUERY_INACTIVE_TABLE if inactive else 0
        return self._device(Command.DM_DEV_STATUS, selector, flags)

    def load(
        self, selector: Selector, lines: Sequence[TableLine], *, readonly: bool = False, secure: bool = False
    ) -> DeviceInfo:
        """Stage a table, in place of one already staged; the live table and its I/O are not touched (`table_load()`).

        Args:
            selector: Which device.
            lines: The table, contiguous from sector 0.
            readonly: Open the devices below read-only and make the disk read-only.
            secure: The table holds a key: the kernel and we wipe our copies of the request, and no error shows it.
                (Text that the caller holds as `str` stays in the interpreter's memory until it is reused.)

        Raises:
            TableRejected: The kernel does not accept the table; nothing is staged by this call.
            DeviceMissing: No such device.
        """
        if not lines:
            raise SpecError("lines", [], "a table has at least one line")
        name, uuid, dev = _select(selector)
        flags = (DmFlag.READONLY if readonly else 0) | (DmFlag.SECURE_DATA if secure else 0)
        payload, count = pack_lines(lines)
        try:
            reply, _ = self.request(
                Command.DM_TABLE_LOAD,
                DmIoctl(flags, name, uuid, dev, target_count=count),
                payload=payload,
                room=COPIED if secure else 0,
                subject=selector,
                detail="(the table holds a key and is not shown)" if secure else lines,
                logs=Logs.FROM_NOW,
            )
        except IoctlError as error:
            if error.errno in _NOT_THE_TABLE or (error.errno == errno.ENXIO and not self.exists(selector)):
                raise
            rejected = TableRejected(
                error.errno or errno.EIO, error.command, error.device, error.detail, error.kernel_log
            )
            raise rejected from error.__cause__
        finally:
            if secure:
                payload[:] = bytes(len(payload))
        self.loaded()
        return DeviceInfo(reply)

    def exists(self, selector: Selector) -> bool:
        """Whether there is such a device."""
        try:
            self.info(selector)
        except DeviceMissing:
            return False
        return True

    def clear(self, selector: Selector) -> DeviceInfo:
        """Drop the staged table; no-op if there is none (`table_clear()`)."""
        return self._device(Command.DM_TABLE_CLEAR, selector)

    def deps(self, selector: Selector, *, inactive: bool = False) -> tuple[DevT, ...]:
        """Return the devices below, each once, newest opened first (`table_deps()`)."""
        flags = DmFlag.QUERY_INACTIVE_TABLE if inactive else 0
        return unpack_deps(*self._query(Command.DM_TABLE_DEPS, selector, flags))

    def table(self, selector: Selector, *, inactive: bool = False) -> list[TableLine]:
        """Return the table as the kernel prints it, devices as "major:minor"; empty without a table."""
        flags = DmFlag.STATUS_TABLE | (DmFlag.QUERY_INACTIVE_TABLE if inactive else 0)
        return unpack_lines(*self._query(Command.DM_TABLE_STATUS, selector, flags))

    def status(self, selector: Selector, *, inactive: bool = False, noflush: bool = False) -> list[TableLine]:
        """Return the targets' status texts (`table_status()`).

        Args:
            selector: Which device.
            inactive: Of the staged table.
            noflush: Do not make targets commit their metadata first.
        """
        flags = (DmFlag.QUERY_INACTIVE_TABLE if inactive else 0) | (DmFlag.NOFLUSH if noflush else 0)
        return unpack_lines(*self._query(Command.DM_TABLE_STATUS, selector, flags))

    def ima(self, selector: Selector, *, inactive: bool = False) -> list[TableLine]:
        """Return what the targets would have measured by IMA; empty text for targets that measure nothing."""
        flags = DmFlag.IMA_MEASUREMENT | (DmFlag.QUERY_INACTIVE_TABLE if inactive else 0)
        return unpack_lines(*self._query(Command.DM_TABLE_STATUS, selector, flags))

    def wait(self, selector: Selector, event_nr: int) -> tuple[DeviceInfo, list[TableLine]]:
        """Block until the device's event number differs from `event_nr`; return state and status (`dev_wait()`).

        The name in the result is the one asked for. Has no bound of its own: `Device.wait` has one. The removal of the device ends it. Interruptions by signals
        are tried again, 64 times, after Python's handlers ran.
        """
        if not 0 <= event_nr < 1 << 32:
            raise SpecError("event_nr", event_nr, "a 32-bit number")
        reply, buffer = self._query(Command.DM_DEV_WAIT, selector, 0, event_nr)
        return DeviceInfo(reply), unpack_lines(reply, buffer)

    def _query(
        self, command: Command, selector: Selector, flags: int, event_nr: int = 0
    ) -> tuple[DmIoctl, bytearray]:
        name, uuid, dev = _select(selector)
        header = DmIoctl(flags, name, uuid, dev, event_nr)
        waits = command is Command.DM_DEV_WAIT
        return self.request(command, header, room=SMALL_ROOM, subject=selector, interruptible=waits)

    def message(self, selector: Selector, text: str, sector: int = 0, *, secure: bool = False) -> str:
        """Send a message to the target at `sector` of the live table; return its reply, "" if none (`target_message()`).

        Args:
            selector: Which device.
            text: Words, quoted with backslashes where they hold blanks.
            sector: Any sector of the target meant.
            secure: The text holds a key: it is wiped and shown in no error; a reply is wiped with it.

        Raises:
            IoctlError: EINVAL for a message that the target does not know, or a device without a live table;
                ENOBUFS if the reply was longer than 16 KiB: the message was carried out, only the answer is lost.
        """
        payload = pack_message(sector, text)
        name, uuid, dev = _select(selector)
        detail = "(the message holds a key and is not shown)" if secure else f"message {sector} {text}"
        flags = DmFlag.SECURE_DATA if secure else 0
        header = DmIoctl(flags, name, uuid, dev)
        reply, buffer = self.request(
            Command.DM_TARGET_MSG,
            header,
            payload=payload,
            room=ROOM,
            subject=selector,
            detail=detail,
            logs=Logs.FROM_NOW,
        )
        if reply.flags & DmFlag.BUFFER_FULL:
            detail += f"\nthe message was carried out, but its reply is longer than {len(buffer)} bytes"
            raise IoctlError(errno.ENOBUFS, Command.DM_TARGET_MSG.name, str(selector), detail)
        return "" if secure else unpack_reply(reply, buffer)

    def set_geometry(
        self, selector: Selector, *, cylinders: int, heads: int, sectors: int, start: int = 0
    ) -> None:
        """Set the disk geometry that HDIO_GETGEO reports; a size change wipes it (`dev_set_geometry()`).

        Args:
            selector: Which device; it needs a live table.
            cylinders: 0..65535.
            heads: 0..255.
            sectors: Per track, 0..255.
            start: First sector, at most cylinders * heads * sectors.
        """
        limits = (("cylinders", cylinders, 65535), ("heads", heads, 255), ("sectors", sectors, 255))
        for field, value, most in (*limits, ("start", start, cylinders * heads * sectors)):
            if not 0 <= value <= most:
                raise SpecError(field, value, f"0..{most}")
        name, uuid, dev = _select(selector)
        text = f"{cylinders} {heads} {sectors} {start}"
        self.request(
            Command.DM_DEV_SET_GEOMETRY,
            DmIoctl(0, name, uuid, dev),
            payload=encode_text(text) + b"\0",
            subject=selector,
            detail=f"geometry {text}",
        )
