"""The device-mapper control interface: `struct dm_ioctl`, command numbers, flags, and the values that replies hold.

The payloads behind the header are in `dm_records`. Pure: bytes on one side, frozen values on the other, no I/O. Whatever a reply holds, unpacking ends with a value or
AbiError. Source: include/uapi/linux/dm-ioctl.h; drivers/md/dm-ioctl.c fills the replies.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import IntEnum
from typing import Final, NamedTuple

from dmcore.abi.devt import DevT
from dmcore.errors import AbiError, SpecError
from dmcore.params import masked

__all__ = [
    "CLIENT_VERSION",
    "HEADER_SIZE",
    "MPATH_PROBE_PATHS",
    "NAME_MAX",
    "SIZE_MAX",
    "TYPE_MAX",
    "U64_MAX",
    "UUID_MAX",
    "Buffer",
    "Command",
    "DeviceEntry",
    "DeviceInfo",
    "DmFlag",
    "DmIoctl",
    "TableLine",
    "Version",
    "checked_dev",
    "decode_text",
    "encode_text",
]

Buffer = bytes | bytearray
"""What requests and replies are made of."""
Version = tuple[int, int, int]
"""Major, minor, patch level."""

CLIENT_VERSION: Final[Version] = (4, 0, 0)
"""What we send: every kernel with interface 4.x takes it, and none behaves differently for a newer one."""

HEADER_SIZE: Final = 312
NAME_MAX: Final = 127
"""Bytes of a device name; DM_NAME_LEN less the NUL."""
UUID_MAX: Final = 128
"""Bytes of a device uuid; DM_UUID_LEN less the NUL."""
TYPE_MAX: Final = 15
"""Bytes of a target's name; DM_MAX_TYPE_NAME less the NUL."""
SIZE_MAX: Final = 1 << 30
"""Largest buffer the kernel takes: DM_MAX_TARGETS * DM_MAX_TARGET_PARAMS."""

MPATH_PROBE_PATHS: Final = 0xFD12
"""The one request that goes to the block device (kernels from 6.16 on), not to the control node."""

_HEADER: Final = struct.Struct("=3IIIIiIIIQ128s129s7x")
_VERSION: Final = struct.Struct("=3I")
_HEADER_MIN: Final = 305
U64_MAX: Final = (1 << 64) - 1
"""Largest sector number or length that a record can hold."""


class Command(IntEnum):
    """Command numbers; `request` is what ioctl(2) takes."""

    DM_VERSION = 0
    DM_REMOVE_ALL = 1
    DM_LIST_DEVICES = 2
    DM_DEV_CREATE = 3
    DM_DEV_REMOVE = 4
    DM_DEV_RENAME = 5
    DM_DEV_SUSPEND = 6
    DM_DEV_STATUS = 7
    DM_DEV_WAIT = 8
    DM_TABLE_LOAD = 9
    DM_TABLE_CLEAR = 10
    DM_TABLE_DEPS = 11
    DM_TABLE_STATUS = 12
    DM_LIST_VERSIONS = 13
    DM_TARGET_MSG = 14
    DM_DEV_SET_GEOMETRY = 15
    DM_DEV_ARM_POLL = 16
    DM_GET_TARGET_VERSION = 17

    @property
    def request(self) -> int:
        """The ioctl request: _IOWR(0xfd, number, struct dm_ioctl)."""
        return 0xC138FD00 | self


class DmFlag:
    """Bits of `flags`, plain numbers because every command combines and tests some."""

    READONLY: Final = 0x1
    SUSPEND: Final = 0x2
    PERSISTENT_DEV: Final = 0x8
    STATUS_TABLE: Final = 0x10
    ACTIVE_PRESENT: Final = 0x20
    INACTIVE_PRESENT: Final = 0x40
    BUFFER_FULL: Final = 0x100
    SKIP_BDGET: Final = 0x200
    SKIP_LOCKFS: Final = 0x400
    NOFLUSH: Final = 0x800
    QUERY_INACTIVE_TABLE: Final = 0x1000
    UEVENT_GENERATED: Final = 0x2000
    UUID: Final = 0x4000
    SECURE_DATA: Final = 0x8000
    DATA_OUT: Final = 0x10000
    DEFERRED_REMOVE: Final = 0x20000
    INTERNAL_SUSPEND: Final = 0x40000
    IMA_MEASUREMENT: Final = 0x80000


def encode_text(text: str) -> bytes:
    """Return the bytes of kernel text; bytes that are no UTF-8 travel as lone surrogates, as in file names.

    Raises:
        SpecError: Surrogates that stand for no byte.
    """
    try:
        return text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        raise SpecError("text", "...", "holds surrogates that stand for no byte") from None


def decode_text(raw: Buffer) -> str:
    """Return kernel bytes as text; the inverse of `encode_text`."""
    return raw.decode("utf-8", "surrogateescape")


def _limited(field: str, text: str, limit: int) -> bytes:
    raw = encode_text(text)
    if len(raw) > limit:
        raise SpecError(field, text, f"{len(raw)} bytes, the kernel keeps at most {limit}")
    if b"\0" in raw:
        raise SpecError(field, text, "NUL ends the kernel's strings")
    return raw


def checked_dev(value: int, offset: int) -> DevT:
    """Return the device number that stands at `offset` of a reply.

    Raises:
        AbiError: More than the 32 bits that the kernel's encoding has.
    """
    if value >> 32:
        message = f"{value:#x} is no device number"
        raise AbiError(message, offset)
    return DevT.from_huge(value)


class DmIoctl(NamedTuple):
    """`struct dm_ioctl`, 312 bytes in the machine's byte order: the head of every request and reply.

    Attributes:
        flags: Bits of `DmFlag`.
        name: Device name, at most 127 bytes.
        uuid: Device uuid, at most 128 bytes.
        dev: Device number in the form of `DevT.huge`, 0 for none.
        event_nr: Out: events so far. In: the udev cookie (resume, remove, rename) or the last event seen (wait).
        target_count: Number of target records in the payload.
        open_count: Openers of the device (out).
        data_size: In: bytes of the whole buffer. Out: bytes that the kernel wrote.
        data_start: Offset of the payload.
        version: In: the client's interface version. Out: the kernel's, also after most errors.
    """

    flags: int = 0
    name: str = ""
    uuid: str = ""
    dev: int = 0
    event_nr: int = 0
    target_count: int = 0
    open_count: int = 0
    data_size: int = HEADER_SIZE
    data_start: int = HEADER_SIZE
    version: Version = CLIENT_VERSION

    def pack_into(self, buffer: bytearray, data_size: int = 0) -> None:
        """Write the header to the start of `buffer`, with `data_size` in place of the value's own if given.

        Raises:
            SpecError: A name or uuid that is too long (the kernel would cut it) or holds NUL.
        """
        name = _limited("name", self.name, NAME_MAX) if self.name else b""
        uuid = _limited("uuid", self.uuid, UUID_MAX) if self.uuid else b""
        _HEADER.pack_into(
            buffer,
            0,
            *self.version,
            data_size or self.data_size,
            self.data_start,
            self.target_count,
            self.open_count,
            self.flags,
            self.event_nr,
            0,
            self.dev,
            name,
            uuid,
        )

    def pack(self) -> bytes:
        """Return the 312 bytes; raises as `pack_into`."""
        buffer = bytearray(HEADER_SIZE)
        self.pack_into(buffer)
        return bytes(buffer)

    @classmethod
    def unpack(cls, data: Buffer) -> DmIoctl:
        """Return the header at the start of `data`.

        Raises:
            AbiError: Fewer than 312 bytes, a name or uuid without its NUL, or a size or offset outside `data`.
        """
        if len(data) < HEADER_SIZE:
            message = f"dm_ioctl has {HEADER_SIZE} bytes, got {len(data)}"
            raise AbiError(message, len(data))
        major, minor, patch, size, start, targets, opens, flags, event_nr, _padding, dev, name, uuid = (
            _HEADER.unpack_from(data)
        )
        if name[-1] | uuid[-1] and (b"\0" not in name or b"\0" not in uuid):
            raise AbiError("a name or uuid without an end", 48)
        if size > len(data):
            message = f"the kernel says it wrote {size} bytes into {len(data)}"
            raise AbiError(message, 12)
        return cls(
            flags,
            decode_text(name.partition(b"\0")[0]) if name[0] else "",
            decode_text(uuid.partition(b"\0")[0]) if uuid[0] else "",
            dev,
            event_nr,
            targets,
            opens,
            size,
            start,
            (major, minor, patch),
        )

    @staticmethod
    def version_of(data: Buffer) -> Version:
        """Return the version at the start of a request or reply, whatever else is in it."""
        return _VERSION.unpack_from(data)

    def payload(self) -> tuple[int, int]:
        """Return first and last+1 byte of the payload that the kernel wrote; equal if there is none.

        Raises:
            AbiError: A payload that starts inside the header.
        """
        if self.data_size <= _HEADER_MIN or self.data_size <= self.data_start:
            return HEADER_SIZE, HEADER_SIZE
        if self.data_start < HEADER_SIZE:
            message = f"the payload starts at {self.data_start}, inside the header"
            raise AbiError(message, 16)
        return self.data_start, self.data_size


@dataclass(frozen=True, slots=True, repr=False)
class DeviceInfo:
    """What the header of a reply says about a device.

    Attributes:
        header: The header.
    """

    header: DmIoctl

    @property
    def name(self) -> str:
        """Device name."""
        return self.header.name

    @property
    def uuid(self) -> str:
        """Device uuid, "" if none was set."""
        return self.header.uuid

    @property
    def dev(self) -> DevT:
        """Device number; 0:0 after a removal.

        Raises:
            AbiError: A number that does not fit 32 bits.
        """
        return checked_dev(self.header.dev, 40)

    @property
    def open_count(self) -> int:
        """Openers, dm tables and mounts above included."""
        return self.header.open_count

    @property
    def event_nr(self) -> int:
        """Events so far; target events, renames and removal count, reloads do not."""
        return self.header.event_nr

    @property
    def target_count(self) -> int:
        """Lines of the live table, or of the staged one where that was asked for."""
        return self.header.target_count

    @property
    def readonly(self) -> bool:
        """Whether the disk is read-only; where the staged table was asked for, whether that table is."""
        return bool(self.header.flags & DmFlag.READONLY)

    @property
    def suspended(self) -> bool:
        """Whether I/O is held back."""
        return bool(self.header.flags & DmFlag.SUSPEND)

    @property
    def live(self) -> bool:
        """Whether a table is in use."""
        return bool(self.header.flags & DmFlag.ACTIVE_PRESENT)

    @property
    def inactive(self) -> bool:
        """Whether a table is staged; a resume would use it."""
        return bool(self.header.flags & DmFlag.INACTIVE_PRESENT)

    @property
    def deferred_remove(self) -> bool:
        """Whether the device goes away at its last close."""
        return bool(self.header.flags & DmFlag.DEFERRED_REMOVE)

    @property
    def internal_suspend(self) -> bool:
        """Whether another target above suspended it, not a user."""
        return bool(self.header.flags & DmFlag.INTERNAL_SUSPEND)

    @property
    def uevent_generated(self) -> bool:
        """Whether the command made a uevent, so that a udev cookie will be completed."""
        return bool(self.header.flags & DmFlag.UEVENT_GENERATED)

    def __repr__(self) -> str:
        states = (
            "live", "inactive", "suspended", "readonly", "deferred_remove", "internal_suspend", "uevent_generated",
        )  # fmt: skip
        said = [f"{self.name} {self.dev}", *([f"uuid {self.uuid}"] if self.uuid else ())]
        said += [state for state in states if getattr(self, state)]
        counts = f"open_count {self.open_count}, event_nr {self.event_nr}, target_count {self.target_count}"
        return f"<DeviceInfo {', '.join(said)}, {counts}>"


@dataclass(frozen=True, slots=True)
class TableLine:
    """One line of a table, or of a status, as the kernel's records hold it.

    Attributes:
        start: First sector of the dm device.
        length: Sectors.
        type: Kernel name of the target, 1..15 bytes.
        params: Parameter words, or status text; exactly as the kernel gave it, trailing blanks included. It may hold
            keys, which `str` and `repr` of the line do not show.

    Raises:
        SpecError: A value that the record cannot hold.
    """

    start: int
    length: int
    type: str
    params: str = ""

    def __post_init__(self) -> None:
        for field, value in (("start", self.start), ("length", self.length)):
            if not 0 <= value <= U64_MAX:
                raise SpecError(field, value, "sectors are 64-bit numbers, not negative")
        if not self.type:
            raise SpecError("type", self.type, "a target has a name")
        _limited("type", self.type, TYPE_MAX)
        if "\0" in self.params:
            raise SpecError("params", "...", "NUL ends the kernel's strings")

    def __str__(self) -> str:
        line = f"{self.start} {self.length} {self.type}"
        return f"{line} {masked(self.type, self.params)}" if self.params else line

    def __repr__(self) -> str:
        shown = masked(self.type, self.params)
        return f"TableLine(start={self.start}, length={self.length}, type={self.type!r}, params={shown!r})"


@dataclass(frozen=True, slots=True)
class DeviceEntry:
    """One device of the list.

    Attributes:
        name: Device name.
        dev: Device number.
        event_nr: Events so far.
        uuid: Device uuid, "" if it has none.
    """

    name: str
    dev: DevT
    event_nr: int
    uuid: str
