"""Writing metadata as thin, cache, era and clone keep them: in transactions, of which a power cut leaves one whole.

Sources: drivers/md/persistent-data (dm-transaction-manager.c, dm-space-map-metadata.c, dm-btree.c, dm-array.c). A block that
the last transaction uses is never written over: what changes goes to free blocks, and the superblock is written last. The
block numbers are not the kernel's; how many blocks are used is.
"""

from __future__ import annotations

import errno
import os
import struct
from typing import TYPE_CHECKING

from dmcore.errors import FormatError
from dmcore.formats.persistent_data import (
    ARRAY_BLOCK,
    ARRAY_HEADER,
    BITMAP_BLOCK,
    BLOCK,
    BLOCK_SECTORS,
    INDEX_BLOCK,
    INDEX_ENTRY,
    INTERNAL,
    LEAF,
    MOST_BITMAPS,
    NODE,
    NODE_HEADER,
    PER_BITMAP,
    ArrayTree,
    Counts,
    Disk,
    Kind,
    Reader,
    SpaceMapRoot,
    pack_bitmap,
    per_array_block,
    per_node,
    stamp,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

__all__ = ["Array", "Bitset", "DataMap", "Metadata", "References"]

_U64 = struct.Struct("<Q")
_COUNT = struct.Struct("<I")
_MANY = 3


class References:
    """Counts of references to blocks, as a space map keeps them, in a transaction.

    A block that is allocated was free in the last transaction as well: until the next one is whole, that one counts
    (sm_ll_find_common_free_block). What was taken and given back in this transaction is free at once.

    Attributes:
        blocks: Blocks that are managed.
    """

    def __init__(self, counts: Counts) -> None:
        self._counts = counts
        self.blocks = len(counts.small)
        self._used = self.blocks - counts.small.count(0)
        self._held: set[int] = set()
        self._fresh: set[int] = set()
        self._cursor = 0
        self._dirty: set[int] = set()
        self._large_changed = False
        self._counts_root = counts.nodes[0] if counts.nodes else 0

    @property
    def used(self) -> int:
        """Blocks in use; those freed in this transaction are not, but cannot be used before its end."""
        return self._used

    def count(self, number: int) -> int:
        """Return how often a block is referred to."""
        small = self._counts.small[number]
        return self._counts.large[number] if small == _MANY else small

    def _set(self, number: int, count: int) -> None:
        small = self._counts.small
        if small[number] == _MANY:
            del self._counts.large[number]
            self._large_changed = True
        if count >= _MANY:
            self._counts.large[number] = count
            self._large_changed = True
        small[number] = min(count, _MANY)
        self._dirty.add(number // PER_BITMAP)

    def take(self, number: int) -> None:
        """Count one more reference to a block.

        Raises:
            FormatError: There is no such block.
        """
        if number >= self.blocks:
            raise FormatError(f"block {number} is referred to, and there are only {self.blocks}", 0)
        count = self.count(number)
        if not count:
            self._used += 1
            if number not in self._held:
                self._fresh.add(number)
        self._set(number, count + 1)

    def drop(self, number: int) -> bool:
        """Count one reference less; return whether it was the last.

        Raises:
            FormatError: The space map says that nobody refers to the block.
        """
        count = self.count(number) - 1 if number < self.blocks else -1
        if count < 0:
            raise FormatError(f"block {number} is in use, but the space map does not count that", 0)
        self._set(number, count)
        if count:
            return False
        self._used -= 1
        if number not in self._fresh:
            self._held.add(number)
        return True

    def allocate(self) -> int:
        """Take a block that was free before this transaction as well.

        Raises:
            OSError: ENOSPC: there is none.
        """
        small = self._counts.small
        for begin in (self._cursor, 0):
            at = small.find(0, begin)
            while at in self._held:
                at = small.find(0, at + 1)
            if at >= 0:
                self._cursor = at + 1
                self.take(at)
                return at
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def _bitmap(self, bitmap: int) -> tuple[bytearray, int, int]:
        """Return the block of a bitmap, the free entries in it, and where the first free one may be."""
        small = self._counts.small[bitmap * PER_BITMAP : (bitmap + 1) * PER_BITMAP]
        used = len(small) - small.count(0)
        free = small.find(0)
        # As in the kernel, blocks behind the end of the disk count as free.
        data = bytearray(16) + pack_bitmap(small.ljust(PER_BITMAP, b"\0"))
        return data, PER_BITMAP - used, free if free >= 0 else len(small)

    def _large(self) -> list[tuple[int, bytes]]:
        """Return the entries of the btree of large counts."""
        return [(number, _COUNT.pack(count)) for number, count in sorted(self._counts.large.items())]

    def extend(self, blocks: int) -> None:
        """Let it have more blocks, which are free."""
        counts = self._counts
        counts.small += bytes(blocks - self.blocks)
        self._dirty.update(range(self.blocks // PER_BITMAP, -(-blocks // PER_BITMAP)))
        counts.index += [(0, 0, 0)] * (-(-blocks // PER_BITMAP) - len(counts.index))
        self.blocks = blocks

    def begin(self) -> None:
        """Begin a transaction: what was freed in the last one can be used."""
        self._held.clear()
        self._fresh.clear()
        self._cursor = 0


class Metadata(References):
    """The blocks of a metadata disk, and the transaction that is under way.

    Attributes:
        reader: Reads the disk.
    """

    def __init__(self, disk: Disk, counts: Counts | None = None) -> None:
        self.reader = Reader(disk)
        self._disk = disk
        super().__init__(counts or Counts(bytearray(self.reader.blocks), {}, [], []))
        self._index_block = 0
        if counts is None:
            self._large_changed = True
            self._counts.index = [(0, 0, 0)] * -(-self.blocks // PER_BITMAP)
            self._dirty.update(range(len(self._counts.index)))
            self.take(0)

    @classmethod
    def open(cls, disk: Disk, root: SpaceMapRoot) -> Metadata:
        """Go on from what the disk holds.

        Raises:
            FormatError: The space map is damaged.
        """
        found = cls(disk, Reader(disk).counts(root))
        found._index_block = root.bitmaps
        return found

    # -- blocks and btrees -------------------------------------------------------------------------------------------

    def _put(self, kind: Kind, number: int, data: bytearray) -> None:
        self._disk.write(number * BLOCK_SECTORS, memoryview(stamp(kind, number, data)))

    def new(self, kind: Kind, data: bytearray) -> int:
        """Write a new block; return its number.

        Raises:
            OSError: ENOSPC without a free block; what writing says.
        """
        number = self.allocate()
        self._put(kind, number, data)
        return number

    def tree(self, entries: Sequence[tuple[int, bytes]], value_size: int) -> int:
        """Write a btree; return its root. References from its values are the caller's to count."""
        below = self._level(entries, value_size, LEAF)
        while len(below) > 1:
            below = self._level([(key, _U64.pack(number)) for key, number in below], 8, INTERNAL)
        return below[0][1]

    def _level(
        self, entries: Sequence[tuple[int, bytes]], value_size: int, flags: int
    ) -> list[tuple[int, int]]:
        """Write the nodes of one level; return the first key and the block of each."""
        most = per_node(value_size)
        made: list[tuple[int, int]] = []
        for first in range(0, len(entries) or 1, most):
            part = entries[first : first + most]
            data = bytearray(BLOCK)
            NODE_HEADER.pack_into(data, 0, 0, flags, 0, len(part), most, value_size, 0)
            struct.pack_into(f"<{len(part)}Q", data, NODE_HEADER.size, *(key for key, _ in part))
            at = NODE_HEADER.size + 8 * most
            data[at : at + len(part) * value_size] = b"".join(value for _, value in part)
            made.append((part[0][0] if part else 0, self.new(NODE, data)))
        return made

    def drop_tree(self, root: int, value_size: int, drop_value: Callable[[bytes], object]) -> None:
        """Give up a reference to a btree; with the last one, what it refers to."""
        todo = [root]
        while todo:
            number = todo.pop()
            if not self.drop(number):
                continue
            node = self.reader.node(number, value_size)
            if node.leaf:
                for value in node.values:
                    drop_value(value)
            else:
                todo += node.children

    def drop_array(self, root: int) -> None:
        """Give up a reference to an array."""
        self.drop_tree(root, 8, lambda value: self.drop(_U64.unpack(value)[0]))

    # -- the end of a transaction ------------------------------------------------------------------------------------

    def commit(self, kind: Kind, superblock: Callable[[bytes], bytearray]) -> None:
        """Write the space map, then the superblock that `superblock` makes for the map's root.

        Raises:
            OSError: ENOSPC, or what writing says; the disk still holds the last transaction then.
        """
        root = self._save_space_map()
        data = superblock(root.encode())
        self._disk.flush()
        self._put(kind, 0, data)
        self._disk.flush()
        self.begin()

    def _save_space_map(self) -> SpaceMapRoot:
        if self._dirty or not self._index_block:
            self._move_space_map()
        return SpaceMapRoot(self.blocks, self._used, self._index_block, self._counts_root)

    def _move_space_map(self) -> None:
        counts = self._counts
        if self._index_block:
            self.drop(self._index_block)
        self._index_block = self.allocate()
        moved: set[int] = set()
        while (todo := self._dirty - moved) or self._large_changed:
            for bitmap in todo:
                if counts.index[bitmap][0]:
                    self.drop(counts.index[bitmap][0])
                counts.index[bitmap] = (self.allocate(), 0, 0)
            moved |= todo
            if self._large_changed:
                self._large_changed = False
                if self._counts_root:
                    self.drop_tree(self._counts_root, _COUNT.size, lambda value: value)
                self._counts_root = self.tree(self._large(), _COUNT.size)
        for bitmap in moved:
            self._put_bitmap(bitmap)
        data = bytearray(16 + MOST_BITMAPS * INDEX_ENTRY.size)
        for at, entry in enumerate(counts.index):
            INDEX_ENTRY.pack_into(data, 16 + at * INDEX_ENTRY.size, *entry)
        self._put(INDEX_BLOCK, self._index_block, data)
        self._dirty.clear()

    def _put_bitmap(self, bitmap: int) -> None:
        number = self._counts.index[bitmap][0]
        data, free, first = self._bitmap(bitmap)
        self._counts.index[bitmap] = (number, free, first)
        self._put(BITMAP_BLOCK, number, data)


class DataMap(References):
    """The space map of a data device, kept in the metadata; `save` writes what changed.

    Args:
        metadata: Where it is kept.
        root: Its root; None for a new one without blocks.

    Raises:
        FormatError: It is damaged.
    """

    def __init__(self, metadata: Metadata, root: SpaceMapRoot | None = None) -> None:
        self._metadata = metadata
        if root is None:
            super().__init__(Counts(bytearray(), {}, [], []))
            self._index = metadata.tree([], INDEX_ENTRY.size)
            self._counts_root = metadata.tree([], _COUNT.size)
        else:
            super().__init__(metadata.reader.data_counts(root))
            self._index = root.bitmaps

    @property
    def free(self) -> int:
        """Blocks that can be allocated in this transaction."""
        return self.blocks - self._used - len(self._held)

    def save(self) -> SpaceMapRoot:
        """Write what changed; return the root."""
        index, metadata = self._counts.index, self._metadata
        if self._dirty:
            for bitmap in range(len(index)):
                if bitmap in self._dirty:
                    data, free, first = self._bitmap(bitmap)
                    index[bitmap] = (metadata.new(BITMAP_BLOCK, data), free, first)
                else:
                    metadata.take(index[bitmap][0])
            entries = [(at, INDEX_ENTRY.pack(*entry)) for at, entry in enumerate(index)]
            old, self._index = self._index, metadata.tree(entries, INDEX_ENTRY.size)
            metadata.drop_tree(
                old, INDEX_ENTRY.size, lambda value: metadata.drop(INDEX_ENTRY.unpack(value)[0])
            )
        if self._large_changed:
            old, self._counts_root = self._counts_root, metadata.tree(self._large(), _COUNT.size)
            metadata.drop_tree(old, _COUNT.size, lambda value: value)
        self._dirty.clear()
        self._large_changed = False
        return SpaceMapRoot(self.blocks, self._used, self._index, self._counts_root)


class Array:
    """An array that can be changed; `save` writes what changed since the last time.

    Args:
        metadata: Where it is kept.
        value_size: Bytes of a value.
        root: Its btree; None for a new, empty array.
        tree: What the disk holds.

    Attributes:
        data: The values; whoever changes them says so by `touch`.
        root: The btree on the disk, as of the last `save`.
    """

    def __init__(
        self, metadata: Metadata, value_size: int, root: int | None = None, tree: ArrayTree | None = None
    ) -> None:
        tree = tree or ArrayTree()
        self.data = tree.data
        self.root = metadata.tree([], 8) if root is None else root
        self.value_size = value_size
        self._metadata = metadata
        self._blocks = tree.blocks
        self._most = per_array_block(value_size)
        self._dirty: set[int] = set()
        self._resized = False

    def __len__(self) -> int:
        return len(self.data) // self.value_size

    def touch(self, index: int) -> None:
        """Let the next `save` write a value."""
        self._dirty.add(index // self._most)

    def resize(self, count: int, value: bytes) -> None:
        """Make it `count` values long; new ones are `value`."""
        before = len(self)
        if count < before:
            del self.data[count * self.value_size :]
        else:
            self.data += value * (count - before)
        self._dirty.update(range(min(before, count) // self._most, -(-count // self._most)))
        self._resized |= count != before

    def save(self) -> int:
        """Write what changed; return the root."""
        if not self._dirty and not self._resized:
            return self.root
        size, most = self.value_size, self._most
        count = -(-len(self) // most)
        kept = self._blocks
        blocks: list[int] = []
        for block in range(count):
            if block not in self._dirty:
                self._metadata.take(kept[block])
                blocks.append(kept[block])
                continue
            part = self.data[block * most * size : (block + 1) * most * size]
            data = bytearray(ARRAY_HEADER.size) + part
            ARRAY_HEADER.pack_into(data, 0, 0, most, len(part) // size, size, 0)
            blocks.append(self._metadata.new(ARRAY_BLOCK, data.ljust(BLOCK, b"\0")))
        entries = [(at, _U64.pack(number)) for at, number in enumerate(blocks)]
        self._blocks = blocks
        old, self.root = self.root, self._metadata.tree(entries, 8)
        self._metadata.drop_array(old)
        self._dirty.clear()
        self._resized = False
        return self.root


class Bitset(Array):
    """A bitset that can be changed: an array of words of 64 bits."""

    def __init__(
        self, metadata: Metadata, root: int | None = None, tree: ArrayTree | None = None, bits: int = 0
    ) -> None:
        super().__init__(metadata, 8, root, tree)
        self.bits = bits

    def resize_bits(self, bits: int) -> None:
        """Make it `bits` long; new bits are clear."""
        self.resize(-(-bits // 64), bytes(8))
        self.bits = bits

    def test(self, bit: int) -> bool:
        """Whether a bit is set."""
        return bool(self.data[bit >> 3] >> (bit & 7) & 1)

    def set(self, bit: int, *, to: bool = True) -> None:
        """Set a bit, or clear it."""
        if self.test(bit) != to:
            self.data[bit >> 3] ^= 1 << (bit & 7)
            self.touch(bit // 64)

    def clear_all(self) -> None:
        """Clear every bit."""
        self.data[:] = bytes(len(self.data))
        self._dirty.update(range(-(-len(self) // self._most)))

    def __iter__(self) -> Iterator[int]:
        """Yield the numbers of the bits that are set."""
        for byte, value in enumerate(self.data):
            for bit in range(8) if value else ():
                if value >> bit & 1 and (number := byte * 8 + bit) < self.bits:
                    yield number
