"""The metadata of clone: which regions are on the destination. Sources: drivers/md/dm-clone-metadata.c, version 1."""

from __future__ import annotations

import struct
from typing import NamedTuple

from dmcore.errors import FormatError
from dmcore.formats.persistent_data import BLOCK, ROOT_BYTES, Kind, Reader, SpaceMapRoot

__all__ = ["SUPERBLOCK", "SuperBlock"]

SUPERBLOCK = Kind("superblock of a clone", 257649492)

_MAGIC = 0x8AF27F64
_VERSION = 1
_HEAD = struct.Struct("<I4xQ16xQI")
_TAIL = struct.Struct("<QQQ")
_ROOT_AT = 44


class SuperBlock(NamedTuple):
    """Block 0.

    Attributes:
        space_map: Which blocks of the metadata device are used.
        region_sectors: Sectors of a region.
        sectors: Sectors of the device.
        bitset: Root of the bitset with a bit for each region, set if it is on the destination.
    """

    space_map: SpaceMapRoot
    region_sectors: int
    sectors: int
    bitset: int

    @classmethod
    def read(cls, reader: Reader) -> SuperBlock | None:
        """Read block 0; None if it is all zeros, and a clone may be made.

        Raises:
            FormatError: It is something else, or damaged.
        """
        data = reader.raw(0, SUPERBLOCK.name)
        if not any(data):
            return None
        _, _, magic, version = _HEAD.unpack_from(data)
        if magic != _MAGIC:
            raise FormatError(
                f"no metadata of a clone: the magic is {magic:#x}, and should be {_MAGIC:#x}", 32
            )
        reader.block(0, SUPERBLOCK)
        if version != _VERSION:
            raise FormatError(f"metadata of a clone of version {version}; only {_VERSION} is known", 40)
        return cls(SpaceMapRoot.decode(data, _ROOT_AT), *_TAIL.unpack_from(data, _ROOT_AT + ROOT_BYTES))

    def encode(self) -> bytearray:
        """Return block 0, without its checksum."""
        data = bytearray(BLOCK)
        _HEAD.pack_into(data, 0, 0, 0, _MAGIC, _VERSION)
        data[_ROOT_AT : _ROOT_AT + ROOT_BYTES] = self.space_map.encode()
        _TAIL.pack_into(data, _ROOT_AT + ROOT_BYTES, self.region_sectors, self.sectors, self.bitset)
        return data
