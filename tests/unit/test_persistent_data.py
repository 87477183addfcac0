from __future__ import annotations

import errno
import random
import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from persistent_audit import array_blocks, audit

from dmcore.errors import FormatError
from dmcore.formats.crc32c import crc32c, crc32c_rows
from dmcore.formats.persistent_data import (
    BLOCK,
    NODE,
    Kind,
    Reader,
    SpaceMapRoot,
    pack_bitmap,
    per_array_block,
    per_node,
    stamp,
    unpack_bitmap,
)
from dmcore.formats.persistent_writer import Array, Bitset, Metadata
from dmcore.model.stores import MemoryStore

SUPER = Kind("superblock of a test", 7)


def _commit(metadata: Metadata) -> SpaceMapRoot:
    kept = []

    def superblock(root: bytes) -> bytearray:
        kept.append(SpaceMapRoot.decode(root, 0))
        return bytearray(BLOCK)

    metadata.commit(SUPER, superblock)
    return kept[0]


def test_crc32c_is_the_standard_without_its_final_inversion():
    assert crc32c(b"123456789") ^ 0xFFFFFFFF == 0xE3069283
    data = random.Random(1).randbytes(301)
    whole = crc32c(data + bytes(777))
    assert whole == crc32c(bytes(777), crc32c(data[100:], crc32c(data[:100])))
    assert crc32c(b"") == 0xFFFFFFFF


def test_crc32c_of_many_rows_and_of_much_data_is_that_of_bytes_one_by_one():
    def slowly(data, crc):
        for byte in data:
            crc ^= byte
            for _ in range(8):
                crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
        return crc

    chance = random.Random(4)
    for width in (0, 1, 3, 4, 5, 63, 511, 512, 513, 1033):
        data = chance.randbytes(3 * width)
        rows = np.frombuffer(data, np.uint8).reshape(3, width)
        found = [slowly(data[width * row : width * (row + 1)], 0x12345678) for row in range(3)]
        assert crc32c_rows(rows, 0x12345678).tolist() == found
    much = chance.randbytes(1 << 20 | 77)
    crc = 0xFFFFFFFF
    for at in range(0, len(much), 1000):
        crc = crc32c(much[at : at + 1000], crc)
    assert crc32c(much) == crc32c(much) == crc


def test_sizes_are_the_kernels():
    assert (per_node(8), per_node(4), per_node(12), per_node(24)) == (252, 336, 201, 126)
    assert (per_array_block(8), per_array_block(4)) == (509, 1018)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(0, 3), min_size=4, max_size=64).filter(lambda counts: len(counts) % 4 == 0))
def test_two_bits_of_a_bitmap_are_a_count_high_bit_first(counts):
    packed = pack_bitmap(bytes(counts))
    assert unpack_bitmap(packed) == bytes(counts)
    for entry, count in enumerate(counts):
        pair = packed[entry // 4] >> 2 * (entry % 4) & 3
        assert count == (pair & 1) << 1 | pair >> 1


@pytest.mark.parametrize("count", [0, 1, 508, 509, 510, 5000, 130_000])
def test_arrays_survive_and_every_block_is_counted(count):
    disk = MemoryStore(2048 * BLOCK)
    metadata = Metadata(disk)
    array = Array(metadata, 8)
    array.resize(count, struct.pack("<Q", 7))
    root = array.save()
    space_map = _commit(metadata)
    assert space_map.allocated == metadata.used
    audit(disk, space_map, [(root, 8, array_blocks)])
    again = Metadata.open(disk, space_map)
    tree = again.reader.array(root, 8, count, "array")
    assert tree.data == struct.pack("<Q", 7) * count
    if not count:
        return
    array = Array(again, 8, root, tree)
    used = again.used
    array.data[-8:] = bytes(8)
    array.touch(count - 1)
    root = array.save()
    space_map = _commit(again)
    audit(disk, space_map, [(root, 8, array_blocks)])
    assert again.used == used, "a change moves blocks, and takes none"
    array.resize(count // 2, bytes(8))
    root = array.save()
    space_map = _commit(again)
    audit(disk, space_map, [(root, 8, array_blocks)])
    assert Reader(disk).array(root, 8, count // 2, "array").data == struct.pack("<Q", 7) * (count // 2)


def test_shared_trees_are_copied_and_counts_of_three_go_to_a_btree():
    disk = MemoryStore(256 * BLOCK)
    metadata = Metadata(disk)
    bits = Bitset(metadata)
    bits.resize_bits(100_000)
    bits.set(77_777)
    root = bits.save()
    for _ in range(3):
        metadata.take(root)
    space_map = _commit(metadata)
    audit(disk, space_map, [(root, 8, array_blocks)] * 4)
    bits.set(0)
    other = bits.save()
    space_map = _commit(metadata)
    assert other != root
    audit(disk, space_map, [(root, 8, array_blocks)] * 3 + [(other, 8, array_blocks)])
    reader = Reader(disk)
    assert list(Bitset(metadata, root, reader.bitset(root, 100_000, "bits"), 100_000)) == [77_777]
    assert list(Bitset(metadata, other, reader.bitset(other, 100_000, "bits"), 100_000)) == [0, 77_777]
    for _ in range(3):
        metadata.drop_array(root)
    metadata.drop_array(other)
    audit(disk, _commit(metadata), [])


def test_a_btree_of_three_levels():
    disk = MemoryStore(512 * BLOCK)
    metadata = Metadata(disk)
    entries = [(3 * key, struct.pack("<I396x", key)) for key in range(per_node(400) * 252 + 1)]
    root = metadata.tree(entries, 400)
    space_map = _commit(metadata)
    assert list(Reader(disk).btree(root, 400)) == entries
    audit(disk, space_map, [(root, 400, None)])


def test_a_full_disk_keeps_its_last_transaction():
    disk = MemoryStore(16 * BLOCK)
    metadata = Metadata(disk)
    array = Array(metadata, 8)
    array.resize(500, bytes(8))
    root = array.save()
    space_map = _commit(metadata)
    array.resize(20_000, bytes(8))
    with pytest.raises(OSError) as caught:
        array.save()
    assert caught.value.errno == errno.ENOSPC
    audit(disk, space_map, [(root, 8, array_blocks)])
    assert len(Reader(disk).array(root, 8, 500, "array").data) == 4000


def _damaged(disk, number, at, data, *, kind=NODE):
    block = Reader(disk).raw(number, "block")
    block[at : at + len(data)] = data
    if kind is not None:
        stamp(kind, number, block)
    disk.write(number * 8, memoryview(block))


@pytest.mark.parametrize(
    ("at", "data", "words"),
    [
        (0, b"\0\0\0\0", "checksum"),
        (8, b"\x09", "says it is block 9"),
        (4, b"\0", "neither internal nor a leaf"),
        (16, b"\xff\xff", "has 65535 entries"),
        (20, b"\xff\xff", "room for 65535"),
        (24, b"\x04", "values of 4 bytes"),
        (32, b"\xff", "not in order"),
    ],
)
def test_refuses_a_damaged_node_and_says_what_is_wrong(at, data, words):
    disk = MemoryStore(64 * BLOCK)
    metadata = Metadata(disk)
    root = metadata.tree([(1, bytes(8)), (2, bytes(8))], 8)
    _commit(metadata)
    _damaged(disk, root, at, data, kind=None if at in {0, 8} else NODE)
    with pytest.raises(FormatError, match=words) as caught:
        list(Reader(disk).btree(root, 8))
    assert caught.value.offset == root * BLOCK


def test_refuses_a_tree_that_comes_back_to_itself():
    disk = MemoryStore(64 * BLOCK)
    metadata = Metadata(disk)
    root = metadata.tree([(key, bytes(8)) for key in range(300)], 8)
    _commit(metadata)
    node = Reader(disk).node(root, 8)
    assert not node.leaf
    _damaged(disk, root, 32 + 8 * 252 + 8, struct.pack("<Q", root))
    with pytest.raises(FormatError, match="twice"):
        list(Reader(disk).btree(root, 8))


@settings(max_examples=80, deadline=None)
@given(st.data())
def test_any_damage_with_right_checksums_ends_in_an_error_or_in_values(data):
    disk = MemoryStore(64 * BLOCK)
    metadata = Metadata(disk)
    bits = Bitset(metadata)
    bits.resize_bits(70_000)
    root = bits.save()
    space_map = _commit(metadata)
    number = data.draw(st.integers(1, metadata.used))
    at = data.draw(st.integers(4, 200) | st.integers(4, BLOCK - 9))
    kinds = [Kind(*kind) for kind in (("n", 121107), ("a", 595846735, 16), ("i", 160478), ("b", 240779))]
    kind = data.draw(st.sampled_from(kinds))
    _damaged(disk, number, at, data.draw(st.binary(min_size=1, max_size=8)), kind=kind)
    reader = Reader(disk)
    for read in (lambda: reader.bitset(root, 70_000, "bits"), lambda: reader.counts(space_map)):
        try:
            read()
        except FormatError:
            continue
