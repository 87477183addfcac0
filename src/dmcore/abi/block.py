"""Requests that every block device takes.

Source: include/uapi/linux/fs.h.
"""

from __future__ import annotations

import struct
from enum import IntEnum

__all__ = ["BlockCommand", "byte_range"]


class BlockCommand(IntEnum):
    """Requests on a block device node (numbers of a 64-bit kernel)."""

    BLKROSET = 0x125D
    BLKROGET = 0x125E
    BLKRRPART = 0x125F
    BLKFLSBUF = 0x1261
    BLKSSZGET = 0x1268
    BLKDISCARD = 0x1277
    BLKPBSZGET = 0x127B
    BLKSECDISCARD = 0x127D
    BLKZEROOUT = 0x127F
    BLKGETSIZE64 = 0x80081272


def byte_range(offset: int, length: int) -> bytes:
    """Return the argument of BLKDISCARD, BLKSECDISCARD and BLKZEROOUT: two u64 in bytes."""
    return struct.pack("=QQ", offset, length)
