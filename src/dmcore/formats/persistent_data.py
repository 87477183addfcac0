"""What thin, cache, era and clone keep their metadata in: checksummed blocks, btrees, arrays, bitsets and space maps.

Sources: drivers/md/persistent-data (dm-block-manager.c, dm-btree-internal.h, dm-btree-spine.c, dm-array.c, dm-bitset.c,
dm-space-map-common.c, dm-space-map-metadata.c). All numbers are little-endian.

The disk is an array of 4096-byte blocks. Every block begins with its checksum, and says where it is. Reading is bounded:
a block that a structure reaches twice is refused, so none takes more steps than the disk has blocks.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple, Protocol

from dmcore.errors import FormatError
from dmcore.formats.crc32c import crc32c
from dmcore.units import SECTOR

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = [
    "ARRAY_BLOCK",
    "BITMAP_BLOCK",
    "BLOCK",
    "BLOCK_SECTORS",
    "INDEX_BLOCK",
    "MOST_BITMAPS",
    "MOST_BLOCKS",
    "NODE",
    "PER_BITMAP",
    "ROOT_BYTES",
    "ArrayTree",
    "Counts",
    "Disk",
    "Kind",
    "Node",
    "Reader",
    "SpaceMapRoot",
    "pack_bitmap",
    "per_array_block",
    "per_node",
    "stamp",
    "unpack_bitmap",
]

BLOCK = 4096
BLOCK_SECTORS = BLOCK // SECTOR
PER_BITMAP = (BLOCK - 16) * 4
"""Blocks whose reference counts one block of a space map holds."""
MOST_BITMAPS = 255
MOST_BLOCKS = MOST_BITMAPS * PER_BITMAP
"""Blocks of metadata that can be used; what a larger disk has behind them is left alone."""
ROOT_BYTES = 128
"""Bytes a superblock keeps for the root of a space map."""

NODE_HEADER = struct.Struct("<IIQIIII")
ARRAY_HEADER = struct.Struct("<IIIIQ")
INDEX_ENTRY = struct.Struct("<QII")
INTERNAL, LEAF = 1, 2

_ROOT = struct.Struct("<QQQQ")
_U64 = struct.Struct("<Q")
_COUNT = struct.Struct("<I")


class Disk(Protocol):
    """A disk as far as metadata need it; `dmcore.model.block.BlockDevice` is one."""

    sectors: int

    def read(self, sector: int, count: int) -> bytearray:
        """Return `count` sectors."""
        ...

    def write(self, sector: int, data: memoryview) -> None:
        """Write whole sectors."""
        ...

    def flush(self) -> None:
        """Make what was written durable."""
        ...


class Kind(NamedTuple):
    """A kind of block.

    Attributes:
        name: What it is, for errors.
        xor: What its checksum is combined with, so that one kind is never taken for another.
        place: Byte where its own number stands.
    """

    name: str
    xor: int
    place: int = 8


NODE = Kind("btree node", 121107)
ARRAY_BLOCK = Kind("array block", 595846735, 16)
INDEX_BLOCK = Kind("index of a space map", 160478)
BITMAP_BLOCK = Kind("bitmap of a space map", 240779)


def per_node(value_size: int) -> int:
    """Return how many entries a btree node has room for."""
    return (BLOCK - NODE_HEADER.size) // (8 + value_size) // 3 * 3


def per_array_block(value_size: int) -> int:
    """Return how many values an array block has room for."""
    return (BLOCK - ARRAY_HEADER.size) // value_size


def _checksum(kind: Kind, data: bytes | bytearray | memoryview) -> int:
    return crc32c(memoryview(data)[4:]) ^ kind.xor


def stamp(kind: Kind, number: int, data: bytearray) -> bytearray:
    """Put a block's number and checksum into it."""
    _U64.pack_into(data, kind.place, number)
    _COUNT.pack_into(data, 0, _checksum(kind, data))
    return data


class Node(NamedTuple):
    """A btree node.

    Attributes:
        number: Its block.
        leaf: Whether its values are the tree's; otherwise they are numbers of nodes below.
        keys: Sorted.
        values: One for each key.
    """

    number: int
    leaf: bool
    keys: tuple[int, ...]
    values: list[bytes]

    @property
    def children(self) -> list[int]:
        """The blocks that the values name: of an internal node, or of a leaf whose values begin with one."""
        return [_U64.unpack_from(value)[0] for value in self.values]


@dataclass(slots=True)
class ArrayTree:
    """An array on the disk.

    Attributes:
        blocks: Where its blocks are, in order.
        data: The values, one behind the other.
    """

    blocks: list[int] = field(default_factory=list[int])
    data: bytearray = field(default_factory=bytearray)


class SpaceMapRoot(NamedTuple):
    """Where a space map is.

    Attributes:
        blocks: Blocks it counts references of.
        allocated: How many of them are in use.
        bitmaps: The index block, of a space map of metadata; the root of a btree, of one of data.
        counts: Root of the btree with the counts that do not fit into two bits.
    """

    blocks: int
    allocated: int
    bitmaps: int
    counts: int

    @classmethod
    def decode(cls, data: bytes | bytearray | memoryview, offset: int) -> SpaceMapRoot:
        """Read a root from a superblock."""
        return cls(*_ROOT.unpack_from(data, offset))

    def encode(self) -> bytes:
        """Return the root's bytes, padded for a superblock."""
        return _ROOT.pack(*self).ljust(ROOT_BYTES, b"\0")


@dataclass(slots=True)
class Counts:
    """Reference counts.

    Attributes:
        small: A byte for each block: 0, 1, 2, or 3 for one of `large`.
        large: Counts from 3 on, by block.
        index: The index of the bitmaps: `(block, free, none free before)`.
        nodes: Blocks of the btree of large counts.
    """

    small: bytearray
    large: dict[int, int]
    index: list[tuple[int, int, int]]
    nodes: list[int]


_HIGH_FIRST = bytes((0, 2, 1, 3))
"""Two bits of a bitmap for a count, and back: the lower bit of a pair is the higher one of the count."""
_OF_BYTE = tuple(bytes(_HIGH_FIRST[byte >> 2 * entry & 3] for byte in range(256)) for entry in range(4))


def unpack_bitmap(data: bytes | bytearray) -> bytearray:
    """Return a byte for each two bits of a bitmap: the counts 0 to 3."""
    counts = bytearray(4 * len(data))
    for entry, table in enumerate(_OF_BYTE):
        counts[entry::4] = data.translate(table)
    return counts


def pack_bitmap(counts: bytes | bytearray) -> bytes:
    """Return the bitmap for counts of 0 to 3, a multiple of 4 of them."""
    pairs = counts.translate(_HIGH_FIRST.ljust(256, b"\0"))
    packed = sum(int.from_bytes(pairs[entry::4], "little") << 2 * entry for entry in range(4))
    return packed.to_bytes(len(counts) // 4, "little")


class Reader:
    """Reads metadata of a disk.

    Attributes:
        blocks: Blocks the disk has, as far as metadata can use them.
    """

    def __init__(self, disk: Disk) -> None:
        self.disk = disk
        self.blocks = min(disk.sectors // BLOCK_SECTORS, MOST_BLOCKS)

    def raw(self, number: int, what: str) -> bytearray:
        """Return a block as it is.

        Raises:
            FormatError: The disk has no such block.
        """
        if number >= self.blocks:
            reason = f"the {what} would be block {number}, but the disk has {self.blocks}"
            raise FormatError(reason, number * BLOCK)
        return self.disk.read(number * BLOCK_SECTORS, BLOCK_SECTORS)

    def block(self, number: int, kind: Kind) -> bytearray:
        """Return a block whose number and checksum are right.

        Raises:
            FormatError: They are not, or the disk has no such block.
        """
        data = self.raw(number, kind.name)
        (says,) = _U64.unpack_from(data, kind.place)
        if says != number:
            raise FormatError(f"the {kind.name} at block {number} says it is block {says}", number * BLOCK)
        (stored,) = _COUNT.unpack_from(data)
        if stored != _checksum(kind, data):
            raise FormatError(f"the checksum of the {kind.name} at block {number} is wrong", number * BLOCK)
        return data

    def node(self, number: int, value_size: int) -> Node:
        """Return a btree node; `value_size` is that of the tree's values.

        Raises:
            FormatError: It is damaged, or a node of another tree.
        """
        data = self.block(number, NODE)
        _, flags, _, entries, most, size, _ = NODE_HEADER.unpack_from(data)

        def wrong(what: str) -> FormatError:
            return FormatError(f"the btree node at block {number} {what}", number * BLOCK)

        if not flags & (INTERNAL | LEAF):
            raise wrong("is neither internal nor a leaf")
        leaf = not flags & INTERNAL
        if size != (value_size if leaf else 8):
            raise wrong(f"has values of {size} bytes")
        if entries > most or NODE_HEADER.size + most * (8 + size) > BLOCK:
            raise wrong(f"has {entries} entries and room for {most}")
        if not leaf and not entries:
            raise wrong("is internal and empty")
        keys = struct.unpack_from(f"<{entries}Q", data, NODE_HEADER.size)
        if any(one >= other for one, other in pairwise(keys)):
            raise wrong("has keys that are not in order")
        first = NODE_HEADER.size + most * 8
        values = [bytes(data[at : at + size]) for at in range(first, first + entries * size, size)]
        return Node(number, leaf, keys, values)

    def nodes(self, root: int, value_size: int) -> Iterator[Node]:
        """Yield the nodes of a btree, each before those below it, in the order of keys.

        Raises:
            FormatError: A node is damaged, or is reached twice.
        """
        seen: set[int] = set()
        todo = [root]
        while todo:
            number = todo.pop()
            if number in seen:
                raise FormatError(f"block {number} is reached twice in one btree", number * BLOCK)
            seen.add(number)
            node = self.node(number, value_size)
            yield node
            if not node.leaf:
                todo += reversed(node.children)

    def btree(self, root: int, value_size: int) -> Iterator[tuple[int, bytes]]:
        """Yield `(key, value)` of a btree, in order.

        Raises:
            FormatError: It is damaged.
        """
        last = -1
        for node in self.nodes(root, value_size):
            if not node.leaf:
                continue
            for key, value in zip(node.keys, node.values, strict=True):
                if key <= last:
                    reason = f"key {key} of the btree node at block {node.number} is out of order"
                    raise FormatError(reason, node.number * BLOCK)
                last = key
                yield key, value

    def array(self, root: int, value_size: int, count: int, what: str) -> ArrayTree:
        """Return an array of `count` values.

        Raises:
            FormatError: It is damaged, or has another number of values.
        """
        found = ArrayTree()
        most = per_array_block(value_size)
        seen: set[int] = set()
        for key, value in self.btree(root, 8):
            (number,) = _U64.unpack(value)
            if key != len(found.blocks) or number in seen:
                reason = f"block {key} of the {what}, at {number}, is out of order"
                raise FormatError(reason, root * BLOCK)
            seen.add(number)
            found.blocks.append(number)
            left = count - key * most
            found.data += self._array_block(number, value_size, min(left, most), what)
        if len(found.data) != count * value_size:
            there = len(found.data) // value_size
            raise FormatError(f"the {what} has {there} entries, not {count}", root * BLOCK)
        return found

    def _array_block(self, number: int, value_size: int, expected: int, what: str) -> memoryview:
        data = self.block(number, ARRAY_BLOCK)
        _, most, entries, size, _ = ARRAY_HEADER.unpack_from(data)
        if size != value_size or most != per_array_block(value_size) or entries != expected:
            reason = f"a block of the {what} has {entries} of {most} values of {size} bytes, not {expected}"
            raise FormatError(reason, number * BLOCK)
        return memoryview(data)[ARRAY_HEADER.size : ARRAY_HEADER.size + entries * size]

    def bitset(self, root: int, bits: int, what: str) -> ArrayTree:
        """Return a bitset: bit i is bit i % 8 of byte i // 8 of the data, padded to words of 64 bits."""
        return self.array(root, 8, -(-bits // 64), what)

    def counts(self, root: SpaceMapRoot) -> Counts:
        """Return the reference counts of the metadata's own blocks.

        Raises:
            FormatError: The space map is damaged, or of another disk.
        """
        if not 0 < root.blocks <= self.blocks:
            reason = f"the space map is for {root.blocks} blocks, and the disk has {self.blocks}"
            raise FormatError(reason, 0)
        data = self.block(root.bitmaps, INDEX_BLOCK)
        index: list[tuple[int, int, int]] = []
        for at in range(-(-root.blocks // PER_BITMAP)):
            block, free, before = INDEX_ENTRY.unpack_from(data, 16 + at * INDEX_ENTRY.size)
            index.append((block, free, before))
        return self._counts(root, index, lambda number: self.block(number, BITMAP_BLOCK))

    def data_counts(self, root: SpaceMapRoot) -> Counts:
        """Return the reference counts of another device's blocks, whose bitmaps a btree names.

        Raises:
            FormatError: The space map is damaged.
        """
        index: list[tuple[int, int, int]] = []
        seen: set[int] = set()
        for key, value in self.btree(root.bitmaps, INDEX_ENTRY.size):
            block, free, before = INDEX_ENTRY.unpack(value)
            if key != len(index) or block in seen:
                reason = f"bitmap {key} of the data space map, at {block}, is out of order"
                raise FormatError(reason, root.bitmaps * BLOCK)
            seen.add(block)
            index.append((block, free, before))
        if len(index) != -(-root.blocks // PER_BITMAP):
            reason = f"the data space map has {len(index)} bitmaps for {root.blocks} blocks"
            raise FormatError(reason, root.bitmaps * BLOCK)
        return self._counts(root, index, lambda number: self.block(number, BITMAP_BLOCK))

    def _counts(
        self, root: SpaceMapRoot, index: list[tuple[int, int, int]], read: Callable[[int], bytearray]
    ) -> Counts:
        small = bytearray()
        for number, _, _ in index:
            small += unpack_bitmap(read(number)[16:])
        del small[root.blocks :]
        large: dict[int, int] = {}
        nodes: list[int] = []
        for node in self.nodes(root.counts, _COUNT.size):
            nodes.append(node.number)
            if node.leaf:
                values = (_COUNT.unpack(value)[0] for value in node.values)
                large.update(zip(node.keys, values, strict=True))
        if small.count(3) > sum(number < len(small) and small[number] == 3 for number in large):
            raise FormatError("a count of the space map is missing", root.counts * BLOCK)
        if len(small) - small.count(0) != root.allocated:
            there = len(small) - small.count(0)
            raise FormatError(f"the space map has {there} blocks in use, not {root.allocated}", 0)
        return Counts(small, large, index, nodes)
