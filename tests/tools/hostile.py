"""Hostile metadata: for each format an image, a way to damage it by a few bytes of instructions, and what reads it.

Used by `tests/unit/test_hostile_metadata.py` and by the coverage-guided `tests/tools/fuzz.py`. A reader may raise what users are
told to expect (`EXPECTED`); everything else, a hang and a runaway allocation are bugs.
"""

from __future__ import annotations

import functools
import hashlib
import struct
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

from dmcore.errors import DmError
from dmcore.formats.cache import VALID
from dmcore.formats.crc32c import crc32c
from dmcore.formats.log_writes import LogReader
from dmcore.formats.luks import parse_luks
from dmcore.lvm import open_lvm
from dmcore.model.stores import MemoryStore
from dmcore.model.targets._cache import CacheMetadata
from dmcore.table import Table
from dmcore.verity import format_verity, open_verity
from dmcore.volume import open_volume

EXPECTED = (DmError, OSError, ExceptionGroup)
_BLOCK = 4096
_SPECIAL = [
    0,
    1,
    2,
    0x7F,
    0x80,
    0xFF,
    0x7FFF,
    0xFFFF,
    2**31 - 1,
    2**31,
    2**32 - 1,
    2**63 - 1,
    2**63,
    2**64 - 1,
]
_DATA = Path(__file__).parents[1] / "data"


class Format(NamedTuple):
    """A format.

    Attributes:
        image: Makes an image that is in order.
        read: Reads an image, all of it that its reader looks at.
        stamp: Puts the checksums of a damaged image right, given the image it was made of; None: there are none.
    """

    image: Callable[[], bytes]
    read: Callable[[bytes], object]
    stamp: Callable[[bytes, bytearray], None] | None = None


@functools.cache
def image(name: str) -> bytes:
    """Return the image of a format that is in order."""
    return FORMATS[name].image()


@functools.cache
def _places(name: str) -> list[int]:
    """Return where the image has 64 bytes that are not all zeros, and those around."""
    data = image(name)
    used = [at for at in range(0, len(data), 64) if len(set(data[at : at + 64])) > 1]
    return sorted({near for at in used for near in (at, at + 64) if near < len(data)})


def damaged(name: str, instructions: bytes) -> bytes:
    """Return the image of a format, damaged: the first byte says whether checksums are put right, then 4 bytes each say where and what."""
    seed, places = image(name), _places(name)
    data = bytearray(seed)
    for where, kind, value in struct.iter_unpack(
        "<HBB", instructions[1 : 1 + (len(instructions) - 1) // 4 * 4]
    ):
        at = places[(where >> 5) % len(places)] + (where & 31) * 2 + (kind >> 7)
        if kind % 4 == 0:
            new = bytes([value])
        elif kind % 4 == 3:
            origin = places[value % len(places)]
            new = seed[origin : origin + 8]
        else:
            size = 4 if kind % 4 == 1 else 8
            number = (
                _SPECIAL[value % len(_SPECIAL)]
                if value < 128
                else int.from_bytes(data[at : at + size], "little") + value - 192
            )
            new = (number % 2 ** (8 * size)).to_bytes(size, "little")
        new = new[: len(data) - at]
        data[at : at + len(new)] = new
    stamp = FORMATS[name].stamp
    if stamp is not None and instructions[:1] and instructions[0] & 1:
        stamp(seed, data)
    return bytes(data)


def read(name: str, data: bytes) -> str:
    """Read an image; return how that ended: "" or the name of the error, which is one of `EXPECTED`."""
    try:
        FORMATS[name].read(data)
    except EXPECTED as error:
        return type(error).__name__
    return ""


# -- checksums ---------------------------------------------------------------------------------------------------------


def _stamp_blocks(seed: bytes, data: bytearray) -> None:
    """Blocks of the persistent-data library: what a block's checksum is mixed with is what it was in the seed."""
    for at in range(0, len(data), _BLOCK):
        old, new = seed[at : at + _BLOCK], data[at : at + _BLOCK]
        if old != new:
            mixed = int.from_bytes(old[:4], "little") ^ crc32c(old[4:])
            data[at : at + 4] = (crc32c(new[4:]) ^ mixed).to_bytes(4, "little")


def _stamp_luks2(seed: bytes, data: bytearray) -> None:
    for at in (0, 16384):
        data[at + 448 : at + 512] = bytes(64)
        data[at + 448 : at + 480] = hashlib.sha256(data[at : at + 16384]).digest()


def _stamp_lvm(seed: bytes, data: bytearray) -> None:
    def crc(part: bytes) -> bytes:
        return (zlib.crc32(part, 0xF597A6CF ^ 0xFFFFFFFF) ^ 0xFFFFFFFF).to_bytes(4, "little")

    data[512 + 16 : 512 + 20] = crc(data[512 + 20 : 1024])
    offset, length = struct.unpack_from("<QQ", data, _BLOCK + 40)
    if length < 1 << 16 and offset < 1 << 16:
        data[_BLOCK + 56 : _BLOCK + 60] = crc(data[_BLOCK + offset : _BLOCK + offset + length])
    data[_BLOCK : _BLOCK + 4] = crc(data[_BLOCK + 4 : _BLOCK + 512])


# -- images, and their readers -----------------------------------------------------------------------------------------


def _store(data: bytes | int, word: str) -> MemoryStore:
    size = data if isinstance(data, int) else len(data)
    store = MemoryStore(size, word=word)
    if not isinstance(data, int):
        for at in range(0, size, 1 << 16):
            if data[at : at + (1 << 16)].strip(b"\0"):
                store.write(at // 512, memoryview(data)[at : at + (1 << 16)])
    return store


def _bytes(store: MemoryStore) -> bytes:
    return bytes(store.read(0, store.sectors))


def _use(table: str, disks: dict[str, MemoryStore]) -> None:
    """Open a volume, read it, settle it, and write to it."""
    with open_volume(table, disks) as volume:
        volume.status_text()
        volume.read(0, volume.size)
        volume.settle()
        volume.write(0, b"w" * 4096)
        volume.flush()


_POOL = "0 2560 thin-pool meta data 128 0 1 error_if_no_space"


def _thin_image() -> bytes:
    disks = {"meta": _store(32 * _BLOCK, "meta"), "data": _store(2560 * 512, "data")}
    with open_volume(_POOL, disks) as pool:
        for text in ("create_thin 0", "create_thin 7"):
            pool.message(text)
        with open_volume("0 1280 thin pool 0", {"pool": pool}) as thin:
            thin.write(0, b"a" * 5 * 65536)
            pool.message("create_snap 1 0")
            thin.write(65536, b"b" * 512)
        pool.message("reserve_metadata_snap")
    return _bytes(disks["meta"])


def _read_thin(data: bytes) -> None:
    disks = {"meta": _store(data, "meta"), "data": _store(2560 * 512, "data")}
    with open_volume(_POOL, disks) as pool:
        for dev_id in (0, 1, 7):
            with open_volume(f"0 1280 thin pool {dev_id}", {"pool": pool}) as thin:
                thin.read(0, thin.size)
                thin.write(0, b"w" * 512)
                thin.discard(65536, 65536)
        pool.message("release_metadata_snap")
        pool.message("delete 1")


def _cache_disks(meta: bytes | int) -> dict[str, MemoryStore]:
    return {
        "meta": _store(meta, "meta"),
        "fast": _store(8 * 32768, "fast"),
        "slow": _store(2048 * 512, "slow"),
    }


_CACHE = "0 2048 cache meta fast slow 64 1 metadata2 smq 0"


def _cache_image() -> bytes:
    disks = _cache_disks(64 * _BLOCK)
    open_volume(_CACHE, disks).close()
    metadata = CacheMetadata(disks["meta"], 64, 2)
    for cblock, oblock in ((3, 5), (4, 9)):
        struct.pack_into("<Q", metadata._mappings.data, 8 * cblock, oblock << 16 | VALID)
        metadata._mappings.touch(cblock)
    metadata.commit(clean=True, needs_check=False)
    return _bytes(disks["meta"])


def _era_image() -> bytes:
    disks = {"meta": _store(64 * _BLOCK, "meta"), "origin": _store(256 * 512, "origin")}
    with open_volume("0 256 era meta origin 8", disks) as volume:
        for step in range(3):
            volume.write(step * 8192, b"e" * 4096)
            volume.message("checkpoint")
        volume.message("take_metadata_snap")
    return _bytes(disks["meta"])


def _clone_disks(meta: bytes | int) -> dict[str, MemoryStore]:
    return {
        "meta": _store(meta, "meta"),
        "dest": _store(256 * 512, "dest"),
        "source": _store(256 * 512, "source"),
    }


def _clone_image() -> bytes:
    disks = _clone_disks(32 * _BLOCK)
    with open_volume("0 256 clone meta dest source 8 1 no_hydration", disks) as volume:
        volume.write(4096, b"c" * 8192)
    return _bytes(disks["meta"])


def _snapshot_image() -> bytes:
    disks = {"base": _store(256 * 512, "base"), "cow": _store(512 * 512, "cow")}
    with open_volume("0 256 snapshot base cow P 8", disks) as volume:
        volume.write(0, b"s" * 8192)
        volume.write(65536, b"t" * 4096)
    return _bytes(disks["cow"])


_WRITECACHE = "0 256 writecache s origin cache 4096 0"


def _writecache_image() -> bytes:
    disks = {"origin": _store(256 * 512, "origin"), "cache": _store(9 * _BLOCK, "cache")}
    volume = open_volume(_WRITECACHE, disks)
    volume.write(0, b"w" * 8192)
    volume.write(32768, b"v" * 4096)
    volume.flush()
    return _bytes(disks["cache"])


_INTEGRITY = (
    "0 64 integrity dev 0 - J 4 internal_hash:crc32 journal_sectors:200 interleave_sectors:256 fix_padding"
)


def _integrity_image() -> bytes:
    disks = {"dev": _store(1024 * 512, "dev")}
    volume = open_volume(_INTEGRITY, disks)
    volume.write(0, b"i" * 64 * 512)
    volume.flush()
    return _bytes(disks["dev"])


_RAID = "0 256 raid raid5_ls 1 8 3 m0 d0 m1 d1 m2 d2"


@functools.cache
def _raid_images() -> dict[str, bytes]:
    names = [f"{kind}{number}" for kind in "md" for number in range(3)]
    disks = {name: _store(65536, name) for name in names}
    with open_volume(_RAID, disks) as volume:
        volume.write(0, b"r" * 65536)
        volume.settle()
    return {name: _bytes(store) for name, store in disks.items()}


def _raid_disks(first: bytes) -> dict[str, MemoryStore]:
    return {name: _store(first if name == "m0" else data, name) for name, data in _raid_images().items()}


@functools.cache
def _verity() -> tuple[bytes, bytes]:
    data, tree = _store(150 * _BLOCK, "data"), _store(8 * _BLOCK, "tree")
    root = format_verity(data, tree, salt=b"salt")
    return root, _bytes(tree)


def _read_verity(data: bytes) -> None:
    with open_verity(_store(150 * _BLOCK, "data"), _store(data, "tree"), _verity()[0]) as volume:
        volume.read(0, min(volume.size, 1 << 20))


def _luks1_image() -> bytes:
    head = bytearray(8192)
    struct.pack_into(
        ">6sH32s32s32sII20s32sI40s", head, 0, b"LUKS\xba\xbe", 1, b"aes", b"xts-plain64", b"sha256", 4096, 64,
        b"d" * 20, b"s" * 32, 1000, b"12345678-1234-1234-1234-123456789012",
    )  # fmt: skip
    for slot in range(8):
        active = 0x00AC71F3 if slot == 0 else 0xDEAD
        struct.pack_into(">II32sII", head, 208 + 48 * slot, active, 1000, b"t" * 32, 8 + 512 * slot, 4000)
    return bytes(head)


def _luks2_image() -> bytes:
    text = (_DATA / "volumes" / "luks2.json").read_bytes()
    data = bytearray(32768)
    for at, magic in ((0, b"LUKS\xba\xbe"), (16384, b"SKUL\xba\xbe")):
        struct.pack_into(
            ">6sHQQ48s32s64s40s48sQ", data, at, magic, 2, 16384, 3, b"", b"sha256", b"x" * 64,
            b"12345678-1234-1234-1234-123456789012", b"", at,
        )  # fmt: skip
        data[at + 4096 : at + 4096 + len(text)] = text
    _stamp_luks2(b"", data)
    return bytes(data)


def _read_luks(data: bytes) -> None:
    parse_luks(lambda offset, length: data[offset : offset + length].ljust(length, b"\0"), 16 << 20)


_LVM_TEXT = b"""vg { id = "x" extent_size = 8 physical_volumes { pv0 { id = "abcdef-0123-4567-8901-2345-6789-ABCDEF" pe_start = 64 } }
logical_volumes { one { segment_count = 2
 segment2 { start_extent = 2 extent_count = 1 type = "striped" stripe_count = 1 stripes = ["pv0", 7] }
 segment1 { start_extent = 0 extent_count = 2 type = "striped" stripe_count = 1 stripes = [ "pv0", 1 ] } } } }
\0"""


def _lvm_image() -> bytes:
    data = bytearray(32768 + 128 * 512)
    uuid = b"abcdef" + b"0123456789" * 2 + b"ABCDEF"
    struct.pack_into("<8sQII8s", data, 512, b"LABELONE", 1, 0, 32, b"LVM2 001")
    struct.pack_into("<32sQ8Q", data, 544, uuid, len(data), 32768, 0, 0, 0, _BLOCK, _BLOCK, 0, 0)
    struct.pack_into("<I16sIQQ", data, _BLOCK, 0, b" LVM2 x[5A%r0N*>", 1, _BLOCK, _BLOCK)
    struct.pack_into("<QQII", data, _BLOCK + 40, 512, len(_LVM_TEXT), 0, 0)
    data[_BLOCK + 512 : _BLOCK + 512 + len(_LVM_TEXT)] = _LVM_TEXT
    _stamp_lvm(b"", data)
    return bytes(data)


def _read_lvm(data: bytes) -> None:
    with open_lvm([_store(data, "disk")], "vg/one") as volume:
        volume.read(0, min(volume.size, 1 << 20))


def _read_log(data: bytes) -> None:
    reader = LogReader(data)
    for entry in reader:
        reader.extent(entry)
        reader.read(entry)
    list(reader.beyond())


_TABLES = b"""0 2048 crypt aes-cbc-plain64 000102030405060708090a0b0c0d0e0f 0 7:0 0 2 sector_size:4096 iv_large_sectors
2048 8192 raid raid6_zr 3 8 region_size 1024 4 - 7:1 - 7:2 - - 7:3 7:4
10240 1024 cache 7:0 7:1 7:2 64 1 writeback smq 2 migration_threshold 2048
11264 64 striped 2 16 7:0 0 7:1 128
11328 8 flakey 7:0 0 5 3 5 corrupt_bio_byte 32 r 1 0
"""


def _disks_of(name: str, more: Iterable[tuple[str, int]]) -> Callable[[bytes], dict[str, MemoryStore]]:
    return lambda data: {name: _store(data, name), **{other: _store(size, other) for other, size in more}}


def _used(table: str, disks: Callable[[bytes], dict[str, MemoryStore]]) -> Callable[[bytes], None]:
    return lambda data: _use(table, disks(data))


FORMATS = {
    "thin": Format(_thin_image, _read_thin, _stamp_blocks),
    "cache": Format(_cache_image, _used(_CACHE, _cache_disks), _stamp_blocks),
    "era": Format(
        _era_image, _used("0 256 era meta origin 8", _disks_of("meta", [("origin", 131072)])), _stamp_blocks
    ),
    "clone": Format(_clone_image, _used("0 256 clone meta dest source 8", _clone_disks), _stamp_blocks),
    "snapshot": Format(
        _snapshot_image, _used("0 256 snapshot base cow P 8", _disks_of("cow", [("base", 131072)]))
    ),
    "writecache": Format(_writecache_image, _used(_WRITECACHE, _disks_of("cache", [("origin", 131072)]))),
    "integrity": Format(_integrity_image, _used(_INTEGRITY, _disks_of("dev", []))),
    "raid": Format(lambda: _raid_images()["m0"], _used(_RAID, _raid_disks)),
    "verity": Format(lambda: _verity()[1], _read_verity),
    "luks1": Format(_luks1_image, _read_luks),
    "luks2": Format(_luks2_image, _read_luks, _stamp_luks2),
    "lvm2": Format(_lvm_image, _read_lvm, _stamp_lvm),
    "log-writes": Format((_DATA / "log_writes" / "log-512.bin").read_bytes, _read_log),
    "table": Format(lambda: _TABLES, lambda data: Table.parse(data.decode("utf-8", "surrogateescape"))),
}
"""All formats by name; "table" is table text."""
