"""The metadata of cache: which blocks of the origin are on the cache device. Sources: drivers/md/dm-cache-metadata.c.

Versions 1 and 2 differ in where the dirty bits are: in the mappings, or in a bitset of their own.
"""

from __future__ import annotations

import struct
from enum import IntFlag
from typing import NamedTuple

from dmcore.errors import FormatError
from dmcore.formats.persistent_data import BLOCK, BLOCK_SECTORS, ROOT_BYTES, Kind, Reader, SpaceMapRoot

__all__ = [
    "DIRTY",
    "FLAG_BITS",
    "NO_STATISTICS",
    "SUPERBLOCK",
    "VALID",
    "CacheFlag",
    "Statistics",
    "SuperBlock",
]

SUPERBLOCK = Kind("superblock of a cache", 9031977)
VALID, DIRTY = 1, 2
"""Flags of a mapping, which is the origin's block shifted by `FLAG_BITS`, and them."""
FLAG_BITS = 16

_MAGIC = 1623043
_VERSIONS = 1, 2
_HEAD = struct.Struct("<IIQ16xQI16sI")
_TAIL = struct.Struct("<QQQQQIIIIIIIIIIIIIQ")
_TAIL_AT = _HEAD.size + ROOT_BYTES


class CacheFlag(IntFlag):
    """Flags of the superblock."""

    CLEAN_SHUTDOWN = 1
    NEEDS_CHECK = 2


class Statistics(NamedTuple):
    """What was counted until the last clean end."""

    read_hits: int
    read_misses: int
    write_hits: int
    write_misses: int


NO_STATISTICS = Statistics(0, 0, 0, 0)


class SuperBlock(NamedTuple):
    """Block 0.

    Attributes:
        space_map: Which blocks of the metadata device are used.
        flags: Without CLEAN_SHUTDOWN the dirty bits and hints do not count: every block is dirty.
        version: 1 or 2.
        policy: Name of the policy that wrote the hints.
        policy_version: Its version.
        hint_size: Bytes of a hint; 0 for none.
        mappings: Root of the array of mappings, one for each block of the cache device.
        hints: Root of the array of hints; 0 for none.
        discards: Root of the bitset of discarded blocks.
        discard_sectors: Sectors of a block of that bitset.
        discard_blocks: Its bits.
        block_sectors: Sectors of a block.
        blocks: Blocks of the cache device.
        statistics: Hits and misses.
        dirty: Root of the bitset of dirty blocks; 0 in version 1.
    """

    space_map: SpaceMapRoot
    flags: CacheFlag
    version: int
    policy: str
    policy_version: tuple[int, int, int]
    hint_size: int
    mappings: int
    hints: int
    discards: int
    discard_sectors: int
    discard_blocks: int
    block_sectors: int
    blocks: int
    statistics: Statistics
    dirty: int

    @classmethod
    def read(cls, reader: Reader) -> SuperBlock | None:
        """Read block 0; None if it is all zeros, and a cache may be made.

        Raises:
            FormatError: It is something else, damaged, or needs features that are not known.
        """
        data = reader.raw(0, SUPERBLOCK.name)
        if not any(data):
            return None
        _, flags, _, magic, version, policy, hint_size = _HEAD.unpack_from(data)
        if magic != _MAGIC:
            raise FormatError(
                f"no metadata of a cache: the magic is {magic:#x}, and should be {_MAGIC:#x}", 32
            )
        reader.block(0, SUPERBLOCK)
        if version not in _VERSIONS:
            raise FormatError(f"metadata of a cache of version {version}; 1 and 2 are known", 40)
        tail = _TAIL.unpack_from(data, _TAIL_AT)
        mappings, hints, discards, discard_sectors, discard_blocks, block, _, blocks = tail[:8]
        if tail[9] or tail[10]:
            raise FormatError(
                f"metadata of a cache with unknown features, {tail[9]:#x} and {tail[10]:#x}", 248
            )
        return cls(
            SpaceMapRoot.decode(data, _HEAD.size),
            CacheFlag(flags),
            version,
            policy.split(b"\0")[0].decode("ascii", "replace"),
            (tail[15], tail[16], tail[17]),
            hint_size,
            mappings,
            hints,
            discards,
            discard_sectors,
            discard_blocks,
            block,
            blocks,
            Statistics(*tail[11:15]),
            tail[18] if version == 2 else 0,
        )

    def encode(self) -> bytearray:
        """Return block 0, without its checksum."""
        data = bytearray(BLOCK)
        name = self.policy.encode()
        _HEAD.pack_into(data, 0, 0, self.flags, 0, _MAGIC, self.version, name, self.hint_size)
        data[_HEAD.size : _TAIL_AT] = self.space_map.encode()
        roots = (self.mappings, self.hints, self.discards, self.discard_sectors, self.discard_blocks)
        sizes = (self.block_sectors, BLOCK_SECTORS, self.blocks)
        rest = (0, 0, 0, *self.statistics, *self.policy_version, self.dirty)
        _TAIL.pack_into(data, _TAIL_AT, *roots, *sizes, *rest)
        return data
