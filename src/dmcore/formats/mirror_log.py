"""The disk log of a mirror: a header, and at byte 1024 a bit per region that is set for a clean one.

Sources: drivers/md/dm-log.c (struct log_header_disk, create_log_context, disk_resume).
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dmcore.errors import FormatError

if TYPE_CHECKING:
    from typing import Self

__all__ = ["BITS_AT", "MAGIC", "VERSION", "Header", "bitmap_bytes", "log_bytes"]

MAGIC = 0x4D695272
VERSION = 2
BITS_AT = 1024
"""First byte of the bits; region N is bit N % 8 of byte N // 8."""

_HEADER = struct.Struct("<IIQ")
_OLD_VERSION = 1
"""The same on little-endian machines."""
_WORD_BITS = 64


def bitmap_bytes(regions: int) -> int:
    """Return the bytes of the bits of `regions`: whole words of a 64-bit kernel."""
    return max(-(-regions // _WORD_BITS), 1) * (_WORD_BITS // 8)


def log_bytes(regions: int, block_size: int) -> int:
    """Return what is read and written of a log device with logical blocks of `block_size` bytes."""
    return -(-(BITS_AT + bitmap_bytes(regions)) // block_size) * block_size


@dataclass(frozen=True, slots=True)
class Header:
    """The header.

    Attributes:
        regions: Regions whose bits count; those beyond are new, and not clean.
        version: Of the format.
    """

    regions: int
    version: int = VERSION

    def encode(self) -> bytes:
        """Return its bytes."""
        return _HEADER.pack(MAGIC, self.version, self.regions)

    @classmethod
    def decode(cls, data: bytes | bytearray | memoryview) -> Self | None:
        """Read a header; None if there is none.

        Raises:
            FormatError: One of another version, which the kernel does not take.
        """
        magic, version, regions = _HEADER.unpack_from(data)
        if magic != MAGIC:
            return None
        if version not in {_OLD_VERSION, VERSION}:
            raise FormatError(f"a mirror log of version {version}; only {VERSION} is known", 4)
        return cls(regions)
