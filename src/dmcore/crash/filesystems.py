"""The file systems that a crash state can be checked with on this machine, by name."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from dmcore.crash.checkers import NoFileSystem
from dmcore.crash.ext import Ext
from dmcore.errors import SpecError, Unsupported

if TYPE_CHECKING:
    from dmcore.crash.checkers import FileSystem
    from dmcore.crash.log import CrashLog

__all__ = ["MOUNTED", "NAMES", "device_size", "filesystem"]

NAMES = ("none", "ext2", "ext3", "ext4", "xfs", "btrfs", "f2fs")
MOUNTED = ("xfs", "btrfs", "f2fs")
"""File systems that only the kernel recovers: states of these are checked where they can be mounted."""


def filesystem(name: str, *, timeout: float = 120) -> FileSystem:
    """Return what recovers a file system without mounting it.

    Raises:
        SpecError: No such name.
        Unsupported: Only a kernel recovers it, or the tools are missing.
    """
    if name == "none":
        return NoFileSystem()
    if name in ("ext2", "ext3", "ext4"):
        return Ext(name, timeout=timeout)
    if name in MOUNTED:
        raise Unsupported(
            f"a kernel that mounts {name}",
            "only a mount replays its log",
            "pytest-dm explore, which mounts it in a guest, or the dm_crash fixture",
        )
    raise SpecError("fs", name, f"is one of {', '.join(NAMES)}")


def device_size(log: CrashLog) -> int:
    """Return the bytes of device that a file system in the log takes; 0 if none is known.

    A log reaches as far as something was written; a file system's device often further.
    """
    size = 0
    for entry in range(len(log.index)):
        offset, length = log.index.extent_of(entry)
        source = log.index.data_offset(entry)
        if source >= 0 and offset <= 65536 and length:
            size = max(size, *(_size_of(log, at, offset, length, source) for at in (0, 1024, 65536)))
    return size


def _size_of(log: CrashLog, at: int, offset: int, length: int, source: int) -> int:
    """Return what a super block at byte `at` says, if a write has one."""
    if not offset <= at <= offset + length - 512:
        return 0
    data = log.index.read(source + at - offset, 512)
    if at == 0 and data[:4] == b"XFSB":
        block, blocks = struct.unpack_from(">IQ", data, 4)
        return int(block * blocks)
    if at == 1024 and data[0x38:0x3A] == b"\x53\xef":
        (low,), (shift,), (high,) = (struct.unpack_from("<I", data, place) for place in (0x4, 0x18, 0x150))
        wide = struct.unpack_from("<I", data, 0x60)[0] & 0x80
        return int(low | high << 32 if wide else low) * (1024 << min(int(shift), 6))
    if at == 1024 and data[:4] == b"\x10\x20\xf5\xf2":
        return int(struct.unpack_from("<Q", data, 0x24)[0]) << min(
            int(struct.unpack_from("<I", data, 0x10)[0]), 16
        )
    if at == 65536 and data[0x40:0x48] == b"_BHRfS_M":
        return int(struct.unpack_from("<Q", data, 0xD1)[0])
    return 0
