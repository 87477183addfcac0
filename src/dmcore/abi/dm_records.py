"""The payloads of the control interface: tables, device lists, dependencies, versions, messages.

Every walk goes by the kernel's own offsets but moves forward only and stays inside the reply: hostile or torn bytes end
in AbiError. Source: drivers/md/dm-ioctl.c.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Final

from dmcore.abi.dm import (
    TYPE_MAX,
    U64_MAX,
    Buffer,
    DeviceEntry,
    DmFlag,
    DmIoctl,
    TableLine,
    Version,
    checked_dev,
    decode_text,
    encode_text,
)
from dmcore.errors import AbiError, SpecError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from dmcore.abi.devt import DevT

__all__ = [
    "pack_lines",
    "pack_message",
    "unpack_deps",
    "unpack_lines",
    "unpack_names",
    "unpack_reply",
    "unpack_versions",
]

_SPEC: Final = struct.Struct("=QQiI16s")
_NAME: Final = struct.Struct("=QI")
_NAME_TAIL: Final = struct.Struct("=II")
_VERSION: Final = struct.Struct("=I3I")
_DEPS: Final = struct.Struct("=II")
_SECTOR: Final = struct.Struct("=Q")
_HAS_UUID: Final = 1


def _string(data: Buffer, start: int, end: int) -> tuple[str, int]:
    """Return the NUL-terminated text at `start` and the offset of its NUL."""
    nul = data.find(0, start, end)
    if nul < 0:
        raise AbiError("text without an end", start)
    return decode_text(data[start:nul]), nul


def _align(offset: int) -> int:
    return (offset + 7) & ~7


def pack_lines(lines: Iterable[TableLine]) -> tuple[bytearray, int]:
    """Return the payload of DM_TABLE_LOAD and the number of its records (`populate_table()`)."""
    payload = bytearray()
    count = 0
    for count, line in enumerate(lines, 1):  # noqa: B007 - the last count is the number of lines
        params = encode_text(line.params)
        size = _align(_SPEC.size + len(params) + 1)
        payload += _SPEC.pack(line.start, line.length, 0, size, encode_text(line.type))
        payload += params
        payload += bytes(size - _SPEC.size - len(params))
    return payload, count


def unpack_lines(header: DmIoctl, data: Buffer) -> list[TableLine]:
    """Return the records of DM_TABLE_STATUS and DM_DEV_WAIT, walked by their count (`retrieve_status()`).

    Raises:
        AbiError: Records that leave the reply, overlap, or have no end.
    """
    first, end = header.payload()
    lines: list[TableLine] = []
    offset = first
    for _ in range(header.target_count):
        if offset + _SPEC.size > end:
            message = f"target {len(lines)} of {header.target_count} lies outside the reply"
            raise AbiError(message, offset)
        start, length, _status, following, raw = _SPEC.unpack_from(data, offset)
        params, nul = _string(data, offset + _SPEC.size, end)
        kind = raw.partition(b"\0")[0]
        if not 0 < len(kind) <= TYPE_MAX:
            raise AbiError("a target name without text or end", offset + 24)
        lines.append(TableLine(start, length, decode_text(kind), params))
        if first + following <= nul and len(lines) < header.target_count:
            raise AbiError("the next target starts inside this one", offset + 20)
        offset = first + following
    return lines


def unpack_names(header: DmIoctl, data: Buffer) -> list[DeviceEntry]:
    """Return the records of DM_LIST_DEVICES asked for with the UUID flag (`list_devices()`).

    Raises:
        AbiError: Records that leave the reply, do not move forward, or have no end.
    """
    offset, end = header.payload()
    entries: list[DeviceEntry] = []
    while offset < end:
        if offset + _NAME.size > end:
            raise AbiError("half a device record", offset)
        dev, following = _NAME.unpack_from(data, offset)
        if dev == 0 and not entries:
            return entries
        name, nul = _string(data, offset + _NAME.size, end)
        tail = offset + _align(nul + 1 - offset)
        if tail + _NAME_TAIL.size > end:
            raise AbiError("a device record without its event number", tail)
        event_nr, flags = _NAME_TAIL.unpack_from(data, tail)
        last = tail + _NAME_TAIL.size
        uuid = ""
        if flags & _HAS_UUID:
            uuid, last = _string(data, last, end)
        entries.append(DeviceEntry(name, checked_dev(dev, offset), event_nr, uuid))
        if not following:
            return entries
        if offset + following < last:
            raise AbiError("the next device record starts inside this one", offset + 8)
        offset += following
    if entries:
        raise AbiError("a device record is missing", offset)
    return entries


def unpack_versions(header: DmIoctl, data: Buffer) -> dict[str, Version]:
    """Return the records of DM_LIST_VERSIONS and DM_GET_TARGET_VERSION, newest registered first.

    Raises:
        AbiError: Records that leave the reply, do not move forward, or have no end.
    """
    offset, end = header.payload()
    versions: dict[str, Version] = {}
    while offset < end:
        if offset + _VERSION.size > end:
            raise AbiError("half a version record", offset)
        following, major, minor, patch = _VERSION.unpack_from(data, offset)
        name, nul = _string(data, offset + _VERSION.size, end)
        versions[name] = (major, minor, patch)
        if not following:
            return versions
        if offset + following <= nul:
            raise AbiError("the next version record starts inside this one", offset)
        offset += following
    if versions:
        raise AbiError("a version record is missing", offset)
    return versions


def unpack_deps(header: DmIoctl, data: Buffer) -> tuple[DevT, ...]:
    """Return the devices below, newest opened first (`retrieve_deps()`).

    Raises:
        AbiError: More devices than the reply holds.
    """
    offset, end = header.payload()
    if offset == end:
        return ()
    if offset + _DEPS.size > end:
        raise AbiError("half a dependency record", offset)
    count, _padding = _DEPS.unpack_from(data, offset)
    offset += _DEPS.size
    if offset + 8 * count > end:
        message = f"{count} dependencies do not fit the reply"
        raise AbiError(message, offset)
    return tuple(checked_dev(value, offset) for value in struct.unpack_from(f"={count}Q", data, offset))


def pack_message(sector: int, text: str) -> bytes:
    """Return the payload of DM_TARGET_MSG.

    Raises:
        SpecError: An empty text, one with NUL, or a sector that is no 64-bit number.
    """
    if not 0 <= sector <= U64_MAX:
        raise SpecError("sector", sector, "a 64-bit number, not negative")
    if not text.strip():
        raise SpecError("message", text, "a message has at least one word")
    if "\0" in text:
        raise SpecError("message", "...", "NUL ends the kernel's strings")
    return _SECTOR.pack(sector) + encode_text(text) + b"\0"


def unpack_reply(header: DmIoctl, data: Buffer) -> str:
    """Return the text that a message was answered with; "" if there is none.

    Raises:
        AbiError: The flag says there is one, but none is in the reply.
    """
    if not header.flags & DmFlag.DATA_OUT:
        return ""
    start, end = header.payload()
    return _string(data, start, end)[0]
