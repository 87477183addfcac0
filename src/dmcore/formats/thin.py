"""The metadata of a thin-pool: superblock, devices, mappings. Source: drivers/md/dm-thin-metadata.c, version 2."""

from __future__ import annotations

import struct
from typing import NamedTuple

from dmcore.errors import FormatError
from dmcore.formats.persistent_data import BLOCK, BLOCK_SECTORS, ROOT_BYTES, Kind, Reader, SpaceMapRoot

__all__ = ["DETAILS", "NEEDS_CHECK", "SUPERBLOCK", "Details", "SuperBlock", "pack_mapping", "unpack_mapping"]

SUPERBLOCK = Kind("superblock of a thin-pool", 160774)
NEEDS_CHECK = 1

_MAGIC = 27022010
_VERSION = 2
_HEAD = struct.Struct("<IIQ16sQIIQQ")
_TAIL = struct.Struct("<QQIIQIII")
_DATA_MAP = 64
_METADATA_MAP = _DATA_MAP + ROOT_BYTES
_TAIL_AT = _METADATA_MAP + ROOT_BYTES
_TIME_BITS = 24
_VALUE = struct.Struct("<Q")
DETAILS = struct.Struct("<QQII")


class SuperBlock(NamedTuple):
    """Block 0.

    Attributes:
        flags: `NEEDS_CHECK`, or nothing.
        time: Number of snapshots made so far.
        transaction_id: The number that users set.
        held_root: Block of the metadata snapshot; 0 without one.
        data_map: Which blocks of the data device are used.
        metadata_map: Which blocks of the metadata device are used.
        mappings: Root of the btree with a root of mappings for each device.
        details: Root of the btree with `Details` for each device.
        block_sectors: Sectors of a block of data.
        blocks: Blocks of the metadata device when it was formatted.
        uuid: Not used by kernels.
    """

    flags: int
    time: int
    transaction_id: int
    held_root: int
    data_map: SpaceMapRoot
    metadata_map: SpaceMapRoot
    mappings: int
    details: int
    block_sectors: int
    blocks: int
    uuid: bytes = bytes(16)

    @classmethod
    def read(cls, reader: Reader, number: int = 0) -> SuperBlock | None:
        """Read a superblock, or its copy in block `number`; None if it is all zeros, and a pool may be made.

        Raises:
            FormatError: It is something else, damaged, or of a kind that is not known.
        """
        data = reader.raw(number, SUPERBLOCK.name)
        if not any(data):
            return None
        _, flags, _, uuid, magic, version, time, transaction_id, held = _HEAD.unpack_from(data)
        if magic != _MAGIC:
            reason = f"no metadata of a thin-pool: the magic is {magic:#x}, and should be {_MAGIC:#x}"
            raise FormatError(reason, number * BLOCK + 32)
        reader.block(number, SUPERBLOCK)
        tail = _TAIL.unpack_from(data, _TAIL_AT)
        mappings, details, block_sectors, metadata_block, blocks, *features = tail
        if version not in {1, _VERSION} or metadata_block != BLOCK_SECTORS or any(features[1:]):
            reason = f"metadata of a thin-pool of version {version}, with features {features}, are not known"
            raise FormatError(reason, number * BLOCK + 40)
        data_map, metadata_map = (SpaceMapRoot.decode(data, at) for at in (_DATA_MAP, _METADATA_MAP))
        head = (flags, time, transaction_id, held)
        return cls(*head, data_map, metadata_map, mappings, details, block_sectors, blocks, uuid)

    def encode(self) -> bytearray:
        """Return block 0, without its checksum."""
        data = bytearray(BLOCK)
        head = (self.flags, 0, self.uuid, _MAGIC, _VERSION, self.time, self.transaction_id, self.held_root)
        _HEAD.pack_into(data, 0, 0, *head)
        data[_DATA_MAP : _DATA_MAP + ROOT_BYTES] = self.data_map.encode()
        data[_METADATA_MAP : _METADATA_MAP + ROOT_BYTES] = self.metadata_map.encode()
        tail = (self.mappings, self.details, self.block_sectors, BLOCK_SECTORS, self.blocks, 0, 0, 0)
        _TAIL.pack_into(data, _TAIL_AT, *tail)
        return data


class Details(NamedTuple):
    """A device of a pool.

    Attributes:
        mapped: Blocks it has.
        transaction_id: The pool's, when the device was made.
        created: The pool's time then.
        snapshotted: The pool's time when it was last shot, or made as a snapshot.
    """

    mapped: int
    transaction_id: int
    created: int
    snapshotted: int

    @classmethod
    def decode(cls, value: bytes) -> Details:
        """Read a value of the btree."""
        return cls(*DETAILS.unpack(value))

    def encode(self) -> bytes:
        """Return a value of the btree."""
        return DETAILS.pack(*self)


def unpack_mapping(value: bytes) -> tuple[int, int]:
    """Return the block of data, and the pool's time when it was mapped."""
    (both,) = _VALUE.unpack(value)
    return both >> _TIME_BITS, both & (1 << _TIME_BITS) - 1


def pack_mapping(block: int, time: int) -> bytes:
    """Return a value of a btree of mappings."""
    return _VALUE.pack(block << _TIME_BITS | time & (1 << _TIME_BITS) - 1)
