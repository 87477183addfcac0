"""The persistent exception store: which chunks of an origin a snapshot holds, on its COW device.

Source: drivers/md/dm-snap-persistent.c, version 1. All numbers are little-endian. Chunk 0 holds the header. An area, one
chunk of records, is followed by as many chunks of data as it has records, then the next area. The first record without a
new chunk ends the store.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, NamedTuple, Protocol

from dmcore.errors import FormatError
from dmcore.units import SECTOR

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = [
    "DEFAULT_CHUNK",
    "FIRST_FREE",
    "RECORD",
    "Header",
    "Place",
    "area_chunk",
    "per_area",
    "read_area",
    "walk",
]

DEFAULT_CHUNK = 32
"""Sectors of a chunk where a table says 0."""
FIRST_FREE = 2
"""The first chunk of data."""
RECORD = struct.Struct("<QQ")

_HEADER = struct.Struct("<IIII")
_MAGIC = 0x70416E53
_VERSION = 1
_MOST_CHUNK = (2**31 - 1) // SECTOR
_PIECE = 1 << 16


class _Disk(Protocol):
    sectors: int

    def read(self, sector: int, count: int) -> bytearray: ...


class Header(NamedTuple):
    """Chunk 0.

    Attributes:
        valid: Whether the snapshot can be used; one that cannot never will again.
        chunk: Sectors of a chunk.
    """

    valid: bool
    chunk: int

    @classmethod
    def read(cls, disk: _Disk) -> Header | None:
        """Read the header; None if there is none (a magic of 0), and a store may be made.

        Raises:
            FormatError: It is something else, of another version, or has an impossible chunk size.
        """
        magic, valid, version, chunk = _HEADER.unpack_from(disk.read(0, 1))
        if not magic:
            return None
        if magic != _MAGIC:
            reason = f"no exception store: the magic is {magic:#x}, and should be {_MAGIC:#x}"
            raise FormatError(reason, 0)
        if not chunk or chunk & (chunk - 1) or chunk > _MOST_CHUNK:
            reason = f"an exception store with chunks of {chunk} sectors; they are a power of two up to 2^21"
            raise FormatError(reason, 12)
        if version != _VERSION:
            raise FormatError(f"an exception store of version {version}; only {_VERSION} is known", 8)
        return cls(bool(valid), chunk)

    def encode(self) -> bytes:
        """Return the header's bytes; the rest of its chunk is zero."""
        return _HEADER.pack(_MAGIC, self.valid, _VERSION, self.chunk)


def per_area(chunk: int) -> int:
    """Return the number of records in an area, for chunks of so many sectors."""
    return chunk * SECTOR // RECORD.size


def area_chunk(area: int, chunk: int) -> int:
    """Return the chunk that an area is."""
    return 1 + area * (per_area(chunk) + 1)


def read_area(disk: _Disk, area: int, chunk: int) -> bytearray:
    """Return an area up to the piece of 64 KiB in which its records end.

    Raises:
        FormatError: It does not lie on the disk.
    """
    first = area_chunk(area, chunk) * chunk
    if first + chunk > disk.sectors:
        reason = (
            f"area {area} of the exception store would end behind the COW device, at sector {first + chunk}"
        )
        raise FormatError(reason, first * SECTOR)
    found = bytearray()
    while len(found) < chunk * SECTOR:
        found += disk.read(first + len(found) // SECTOR, min(_PIECE, chunk * SECTOR - len(found)) // SECTOR)
        if any(not new for _, new in RECORD.iter_unpack(memoryview(found)[-_PIECE:])):
            break
    return found


class Place(NamedTuple):
    """A record: where it is, the origin's chunk, and the chunk of the COW device that holds it."""

    area: int
    record: int
    old: int
    new: int


def walk(disk: _Disk, chunk: int) -> Iterator[Place]:
    """Yield the records of a store.

    Raises:
        FormatError: A record names a chunk that is not on the COW device, or holds metadata; or the store has no end there.
    """
    stride = per_area(chunk) + 1
    area = 0
    while True:
        for index, (old, new) in enumerate(RECORD.iter_unpack(read_area(disk, area, chunk))):
            if not new:
                return
            if (new + 1) * chunk > disk.sectors or new % stride == 1:
                what = "holds metadata" if new % stride == 1 else "is behind the end of the COW device"
                reason = (
                    f"record {index} of area {area} says that chunk {old} is in chunk {new}, which {what}"
                )
                raise FormatError(reason, area_chunk(area, chunk) * chunk * SECTOR + index * RECORD.size)
            yield Place(area, index, old, new)
        area += 1
