"""What dmzadm and vdoformat write on a new device, for which no distribution at hand has the tools.

Sources: drivers/md/dm-zoned-metadata.c (dmz_check_sb, dmz_load_mapping), drivers/md/dm-vdo/encodings.c
(vdo_parse_geometry_block, vdo_decode_component_states, vdo_configure_slab).
"""

from __future__ import annotations

import struct
import zlib
from uuid import UUID

BLOCK = 4096
VOLUME = UUID("0d4d0d4d-0000-4000-8000-00000000d4d1")


def zoned_blocks(
    zones: int, zone_blocks: int, *, reserved: int, chunks: int, regular: int = 0
) -> dict[int, bytes]:
    """Return the metadata of an empty zoned device by their first block; zones of 2^15 blocks at most.

    Args:
        zones: All of them, those of a regular device in front included.
        zone_blocks: Blocks of a zone.
        reserved: Sequential zones that only reclaiming writes.
        chunks: Zones of data.
        regular: Zones of the regular device; the zoned device behind it has a superblock of its own.
    """
    mapping = -(-chunks * 8 // BLOCK)
    assert 1 + mapping + zones <= zone_blocks, "a set fills one zone"

    def superblock(at: int) -> bytes:
        content = struct.pack(
            "<IIQQIIIII4x32s16s16s", int.from_bytes(b"DBZD", "little"), 2, 0, at, 1 + mapping + zones, reserved, chunks,
            mapping, zones, b"dmcore", VOLUME.bytes, VOLUME.bytes,
        ).ljust(BLOCK, b"\0")  # fmt: skip
        # The generation, 0, is where the sum begins, and nothing is inverted.
        told = zlib.crc32(content, 0xFFFFFFFF) ^ 0xFFFFFFFF
        return content[:44] + struct.pack("<I", told) + content[48:]

    unmapped = b"\xff" * (mapping * BLOCK)
    found = {at: superblock(at) + unmapped + bytes(zones * BLOCK) for at in (0, zone_blocks)}
    if regular:
        found[regular * zone_blocks] = superblock(regular * zone_blocks)
    return found


def vdo_image(slabs: int, logical: int, *, nonce: int = 0x1234) -> tuple[int, dict[int, bytes]]:
    """Return how many blocks a new vdo takes, and what is not zero on it, by block. It has no room for an index.

    Args:
        slabs: Slabs of 16 MiB.
        logical: Blocks that it offers.
    """
    slab, journal, recovery, roots, summary = 4096, 224, 512, 60, 64
    data = 2  # the geometry's block, one for an index, and then the superblock
    start = data + 1
    size = start + roots + slabs * slab + recovery + summary
    depot = start + roots

    def head(component: int, version: int, length: int) -> bytes:
        return struct.pack("<IIIQ", component, version, 0, length)

    def summed(content: bytes) -> bytes:
        return content + struct.pack("<I", zlib.crc32(content, 0xFFFFFFFF))

    regions = struct.pack("<IQIQ", 0, 1, 1, data)
    geometry = (
        struct.pack("<IQ16sQ", 0, nonce, VOLUME.bytes, 0) + regions + struct.pack("<II?", 256, 0, False)
    )
    first = b"dmvdo001" + head(5, 5, 32 + len(geometry)) + geometry
    references = -(-(slab - journal) // (504 * 8))
    flushing = (journal * 3 + 3) // 4
    blocking = flushing + (journal - flushing) * 5 // 7
    scrubbing = journal - (1 + 2048 // ((BLOCK - 32) * 8 // 25))
    partitions = (
        (3, size - summary, summary),
        (2, depot + slabs * slab, recovery),
        (1, depot, slabs * slab),
        (0, start, roots),
    )
    components = b"".join([
        struct.pack("<III", 0, 67, 0),
        struct.pack("<IIIQQQQQQQQ", 41, 0, 1, 0, 0, logical, size, slab, recovery, journal, nonce),
        head(1, 3, 17 + 25 * len(partitions)), struct.pack("<QQB", size - summary - recovery, size - summary - recovery, len(partitions)),
        *(struct.pack("<BQQQ", number, at, 0, blocks) for number, at, blocks in partitions),
        head(2, 7, 24), struct.pack("<QQQ", 1, 0, 0),
        head(3, 2, 73),
        struct.pack(
            "<9QB", slab, slab - references - journal, references, journal, flushing, min(blocking, scrubbing), scrubbing,
            depot, depot + slabs * slab, 0,
        ),
        head(4, 2, 32), struct.pack("<QQQQ", 1, 0, start, roots),
    ])  # fmt: skip
    super_block = head(0, 12, 4 + len(components)) + components
    return size, {0: summed(first).ljust(BLOCK, b"\0"), data: summed(super_block).ljust(BLOCK, b"\0")}
