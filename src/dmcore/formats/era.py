"""The metadata of era: in which era each block was written last. Sources: drivers/md/dm-era-target.c, version 1.

Blocks written in the present era are in a bitset, the writeset. Writesets of past eras are in a btree by era, until they
are digested into an array with the era of each block.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

from dmcore.errors import FormatError
from dmcore.formats.persistent_data import BLOCK, BLOCK_SECTORS, ROOT_BYTES, Kind, Reader, SpaceMapRoot

__all__ = ["NO_WRITESET", "SUPERBLOCK", "WRITESET", "SuperBlock", "Writeset"]

SUPERBLOCK = Kind("superblock of an era", 146538381)
WRITESET = struct.Struct("<IQ")
"""A writeset in the btree: its bits, and the root of its bitset."""

_MAGIC = 2126579579
_VERSION = 1
_HEAD = struct.Struct("<I4xQ16xQI")
_TAIL = struct.Struct("<IIIIIQQQQ")
_ROOT_AT = 44


class Writeset(NamedTuple):
    """The blocks that were written in an era.

    Attributes:
        bits: Blocks the device had.
        root: The bitset; 0 for none.
    """

    bits: int
    root: int


NO_WRITESET = Writeset(0, 0)


class SuperBlock(NamedTuple):
    """Block 0, or the copy that is a metadata snapshot.

    Attributes:
        space_map: Which blocks of the metadata device are used.
        block_sectors: Sectors of a block.
        blocks: Blocks of the device.
        era: The present era.
        writeset: The present writeset.
        writesets: Root of the btree of past ones.
        eras: Root of the array with the era of each block.
        snapshot: Block of the metadata snapshot; 0 for none.
    """

    space_map: SpaceMapRoot
    block_sectors: int
    blocks: int
    era: int
    writeset: Writeset
    writesets: int
    eras: int
    snapshot: int

    @classmethod
    def read(cls, reader: Reader, number: int = 0) -> SuperBlock | None:
        """Read block 0, or a snapshot; None if it is all zeros, and metadata may be made.

        Raises:
            FormatError: It is something else, or damaged.
        """
        data = reader.raw(number, SUPERBLOCK.name)
        if not any(data):
            return None
        _, _, magic, version = _HEAD.unpack_from(data)
        at = number * BLOCK
        if magic != _MAGIC:
            reason = f"no metadata of an era: the magic is {magic:#x}, and should be {_MAGIC:#x}"
            raise FormatError(reason, at + 32)
        reader.block(number, SUPERBLOCK)
        if version != _VERSION:
            raise FormatError(f"metadata of an era of version {version}; only {_VERSION} is known", at + 40)
        fields = _TAIL.unpack_from(data, _ROOT_AT + ROOT_BYTES)
        block, _, blocks, era, bits, root, writesets, eras, snapshot = fields
        where = SpaceMapRoot.decode(data, _ROOT_AT)
        return cls(where, block, blocks, era, Writeset(bits, root), writesets, eras, snapshot)

    def encode(self) -> bytearray:
        """Return the block, without its number and checksum."""
        data = bytearray(BLOCK)
        _HEAD.pack_into(data, 0, 0, 0, _MAGIC, _VERSION)
        data[_ROOT_AT : _ROOT_AT + ROOT_BYTES] = self.space_map.encode()
        fields = (*self.writeset, self.writesets, self.eras, self.snapshot)
        head = (self.block_sectors, BLOCK_SECTORS, self.blocks, self.era)
        _TAIL.pack_into(data, _ROOT_AT + ROOT_BYTES, *head, *fields)
        return data
