"""The loop driver's interface: `struct loop_info64`, `struct loop_config`, command numbers, flags.

Source: include/uapi/linux/loop.h.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import IntEnum, IntFlag

from dmcore.errors import AbiError, SpecError

__all__ = [
    "BLOCK_SIZE_MAX",
    "LO_NAME_SIZE",
    "LoopCommand",
    "LoopConfig",
    "LoopControlCommand",
    "LoopFlags",
    "LoopInfo",
]

LO_NAME_SIZE = 64
"""Bytes of a backing file's name that the driver keeps, the NUL included."""

BLOCK_SIZE_MAX = 4096
"""Largest logical block size every kernel takes; newer ones with huge pages take more."""

_INFO = struct.Struct("=QQQQQIIII64s64s32s2Q")
_CONFIG_HEAD = struct.Struct("=II")
_RESERVED = bytes(64)


class LoopControlCommand(IntEnum):
    """Requests on /dev/loop-control."""

    CTL_ADD = 0x4C80
    CTL_REMOVE = 0x4C81
    CTL_GET_FREE = 0x4C82


class LoopCommand(IntEnum):
    """Requests on a loop device."""

    SET_FD = 0x4C00
    CLR_FD = 0x4C01
    SET_STATUS = 0x4C02
    GET_STATUS = 0x4C03
    SET_STATUS64 = 0x4C04
    GET_STATUS64 = 0x4C05
    CHANGE_FD = 0x4C06
    SET_CAPACITY = 0x4C07
    SET_DIRECT_IO = 0x4C08
    SET_BLOCK_SIZE = 0x4C09
    CONFIGURE = 0x4C0A


class LoopFlags(IntFlag):
    """`lo_flags`; LOOP_CONFIGURE takes these four and no others."""

    READ_ONLY = 1
    AUTOCLEAR = 4
    PARTSCAN = 8
    DIRECT_IO = 16


def _text(raw: bytes) -> bytes:
    return raw.partition(b"\0")[0]


_NO_FLAGS = LoopFlags(0)


@dataclass(frozen=True, slots=True)
class LoopInfo:
    """`struct loop_info64`, 232 bytes.

    Attributes:
        device: Device number of the backing file's file system (out).
        inode: Inode of the backing file (out).
        rdevice: Device number of the backing file, if it is a device (out).
        offset: First byte of the backing file that is used.
        size_limit: Bytes of it that are used at most; 0 = to its end.
        number: Index of the loop device (out).
        flags: `lo_flags`.
        file_name: What the driver reports as backing file; cut to 63 bytes by whoever fills it in.
    """

    offset: int = 0
    size_limit: int = 0
    flags: LoopFlags = _NO_FLAGS
    file_name: bytes = b""
    device: int = 0
    inode: int = 0
    rdevice: int = 0
    number: int = 0

    SIZE = _INFO.size

    def __post_init__(self) -> None:
        for field in ("offset", "size_limit"):
            value = getattr(self, field)
            if not 0 <= value < 1 << 63:
                raise SpecError(field, value, "the loop driver takes 0..2^63-1 bytes")
        if len(self.file_name) >= LO_NAME_SIZE:
            raise SpecError("file_name", self.file_name, f"at most {LO_NAME_SIZE - 1} bytes")

    def pack(self) -> bytes:
        """Return the kernel's bytes."""
        head = (self.device, self.inode, self.rdevice, self.offset, self.size_limit, self.number, 0, 0)
        return _INFO.pack(*head, self.flags, self.file_name, b"", b"", 0, 0)

    @classmethod
    def unpack(cls, data: bytes | bytearray) -> LoopInfo:
        """Return the value of the kernel's bytes.

        Raises:
            AbiError: Fewer than 232 bytes.
        """
        if len(data) < _INFO.size:
            message = f"loop_info64 has {_INFO.size} bytes, got {len(data)}"
            raise AbiError(message, len(data))
        fields = _INFO.unpack_from(data)
        device, inode, rdevice, offset, size_limit, number, _type, _key_size, flags, file_name = fields[:10]
        return cls(
            offset=offset,
            size_limit=size_limit,
            flags=LoopFlags(flags),
            file_name=_text(file_name),
            device=device,
            inode=inode,
            rdevice=rdevice,
            number=number,
        )


@dataclass(frozen=True, slots=True)
class LoopConfig:
    """`struct loop_config`, 304 bytes: everything LOOP_CONFIGURE sets at once.

    Attributes:
        fd: The backing file, as an open file descriptor.
        block_size: Logical block size in bytes, a power of two in 512..4096; 0 = the driver's choice.
        info: Offset, size limit, flags and name.
    """

    fd: int
    block_size: int
    info: LoopInfo

    SIZE = _CONFIG_HEAD.size + _INFO.size + len(_RESERVED)

    def __post_init__(self) -> None:
        size = self.block_size
        if size and (size < 512 or size > BLOCK_SIZE_MAX or size & (size - 1)):
            raise SpecError("block_size", size, f"a power of two from 512 to {BLOCK_SIZE_MAX}, or 0")

    def pack(self) -> bytes:
        """Return the kernel's bytes."""
        return _CONFIG_HEAD.pack(self.fd, self.block_size) + self.info.pack() + _RESERVED

    @classmethod
    def unpack(cls, data: bytes | bytearray) -> LoopConfig:
        """Return the value of the kernel's bytes.

        Raises:
            AbiError: Fewer than 304 bytes.
        """
        if len(data) < cls.SIZE:
            message = f"loop_config has {cls.SIZE} bytes, got {len(data)}"
            raise AbiError(message, len(data))
        fd, block_size = _CONFIG_HEAD.unpack_from(data)
        return cls(fd, block_size, LoopInfo.unpack(data[_CONFIG_HEAD.size :]))
