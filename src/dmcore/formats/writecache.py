"""What writecache keeps on its cache device: a superblock, an entry for each block, then the blocks.

Sources: drivers/md/dm-writecache.c (struct wc_memory_superblock, calculate_memory_size, init_memory, writecache_ctr),
version 1. All numbers are little-endian.

The superblock takes 64 bytes: magic, version, block size, 4 bytes of zeros, number of blocks, sequence count, zeros. An
entry is the sector of the origin that its block holds, and the sequence count when it was written; both all ones for a
block that was never used. The entries are padded to whole blocks. An entry counts if its sequence count is below the
superblock's; of several for one sector the one with the highest.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, NamedTuple

from dmcore.errors import FormatError
from dmcore.units import SECTOR

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import TypeAlias

    Buffer: TypeAlias = bytes | bytearray | memoryview

__all__ = [
    "ENTRY",
    "MAGIC",
    "NEVER",
    "SUPER_BYTES",
    "VERSION",
    "SuperBlock",
    "entries",
    "entries_bytes",
    "most_blocks",
]

MAGIC = 0x23489321
VERSION = 1
NEVER = 2**64 - 1
"""Sector and sequence count of an entry that was never used; sequence count of one that is free again."""
SUPER_BYTES = 64
ENTRY = struct.Struct("<QQ")

_SUPER = struct.Struct("<IIIIQQ32x")


class SuperBlock(NamedTuple):
    """The start of a cache.

    Attributes:
        block_size: Bytes of a block.
        blocks: How many blocks there are.
        seq_count: Entries with lower sequence counts are committed.
        magic: `MAGIC`; 0 while a cache is being formatted.
    """

    block_size: int
    blocks: int
    seq_count: int = 0
    magic: int = MAGIC

    @classmethod
    def decode(cls, data: Buffer, size: int) -> SuperBlock | None:
        """Read the superblock of a cache of `size` bytes; None if there is none and one may be made.

        Raises:
            FormatError: Neither a cache nor blank, another version, or more blocks than fit.
        """
        magic, version, block_size, _, blocks, seq_count = _SUPER.unpack_from(data)
        if not magic and not version:
            return None
        if magic != MAGIC:
            raise FormatError(f"not a writecache: the magic is {magic:#x}, and should be {MAGIC:#x}", 0)
        if version != VERSION:
            raise FormatError(f"a writecache of version {version}; only {VERSION} is known", 4)
        if block_size < SECTOR or block_size & (block_size - 1):
            raise FormatError(f"the block size, {block_size}, is no power of two from {SECTOR} on", 8)
        if entries_bytes(blocks, block_size) + blocks * block_size > size:
            raise FormatError(f"{blocks} blocks of {block_size} bytes do not fit into {size} bytes", 16)
        return cls(block_size, blocks, seq_count)

    def encode(self) -> bytes:
        """Return the superblock's 64 bytes."""
        return _SUPER.pack(self.magic, VERSION, self.block_size, 0, self.blocks, self.seq_count)


def entries_bytes(blocks: int, block_size: int) -> int:
    """Return the bytes before the first block: superblock and entries, in whole blocks."""
    return -(-(SUPER_BYTES + blocks * ENTRY.size) // block_size) * block_size


def most_blocks(size: int, block_size: int) -> int:
    """Return how many blocks a new cache of `size` bytes has; 0 if it is too small for one."""
    blocks = size // (block_size + ENTRY.size)
    while blocks and entries_bytes(blocks, block_size) + blocks * block_size > size:
        blocks -= 1
    return blocks


def entries(metadata: Buffer, blocks: int) -> Iterator[tuple[int, int]]:
    """Yield `(sector, sequence count)` of every entry."""
    return ENTRY.iter_unpack(memoryview(metadata)[SUPER_BYTES : SUPER_BYTES + blocks * ENTRY.size])
