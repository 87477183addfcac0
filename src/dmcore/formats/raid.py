"""Metadata of a raid set's device: dm-raid's superblock, and md's bitmap at byte 4096.

Sources: drivers/md/dm-raid.c (struct dm_raid_superblock, super_sync), drivers/md/md-bitmap.c (md_bitmap_new_disk_sb).
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from dmcore.errors import FormatError

__all__ = [
    "BITMAP_AT",
    "BITMAP_BYTES",
    "BYTES",
    "DONE",
    "FAR_SETS",
    "OFFSET",
    "BitmapSuper",
    "SuperBlock",
    "layout_number",
]

DONE = 2**64 - 1
"""An offset up to which everything is in sync (MaxSector)."""

BYTES = 512
"""Bytes of the superblock with what pads it."""

OFFSET = 1 << 16
"""In a layout of raid10: the copies are of the format offset."""

FAR_SETS = 1 << 18
"""In a layout of raid10: the copies stay within sets of devices, and the last one takes what is over."""

BITMAP_AT = 4096
"""First byte of the bitmap's own superblock; its bits follow."""

BITMAP_BYTES = 256
"""Bytes of that."""

_MAGIC = 0x64526D44
_V190 = 1
_RESHAPING = 1
_HEAD = struct.Struct("<IIIIQQQQIII")
_MORE = struct.Struct("<IQIIIiQQQQ3QI")
_BITMAP = struct.Struct("<II16xQQQIIII")
_BITMAP_MAGIC = 0x6D746962
_BITMAP_VERSIONS = (3, 4)
_ALGORITHMS = {
    "raid4": 4, "raid5_n": 5, "raid5_la": 0, "raid5_ra": 1, "raid5_ls": 2, "raid5_rs": 3,
    "raid6_zr": 8, "raid6_nr": 9, "raid6_nc": 10,
    "raid6_n_6": 5, "raid6_la_6": 16, "raid6_ra_6": 17, "raid6_ls_6": 18, "raid6_rs_6": 19,
}  # fmt: skip


def layout_number(kind: str, copies: int = 2, form: str = "near", *, near_sets: bool = False) -> int:
    """Return md's number of a layout: an algorithm of parity, or near and far copies of raid10 with their flags."""
    if not kind.startswith("raid10"):
        return _ALGORITHMS.get(kind, 0)
    if form == "near":
        return copies | 1 << 8
    flags = (OFFSET if form == "offset" else 0) | (0 if near_sets else FAR_SETS)
    return 1 | copies << 8 | flags


@dataclass(slots=True, kw_only=True)
class SuperBlock:
    """The superblock of one device; sizes and offsets in sectors.

    Attributes:
        devices: Of the set.
        position: Of this device, from 0.
        events: The higher, the fresher.
        failed: Bit n: device n failed.
        recovery_offset: Up to where this device's content was made; `DONE` for all of it.
        resync_offset: Up to where the set is in sync; `DONE` for all of it.
        level: 4 is told as 5.
        layout: See `layout_number`.
        chunk: Sectors in a row on one device.
        array_sectors: Of the set.
        data_offset: Where data begin on the device.
        sectors: Of data on each device.
        reshaping: A reshape was under way.
    """

    devices: int
    position: int
    events: int
    failed: int
    recovery_offset: int
    resync_offset: int
    level: int
    layout: int
    chunk: int
    array_sectors: int
    data_offset: int
    sectors: int
    reshaping: bool = False

    @classmethod
    def decode(cls, data: bytes | bytearray) -> SuperBlock | None:
        """Read a superblock; None if there is none.

        Raises:
            FormatError: It has features that no kernel knows, or is of the time before them (dm-raid below 1.9).
        """
        magic, compat, devices, position, events, failed, recovery, resync, level, layout, chunk = (
            _HEAD.unpack_from(data)
        )
        if magic != _MAGIC:
            return None
        if compat != _V190:
            raise FormatError(f"a raid superblock with compatible features {compat:#x}; only 1 is known", 4)
        flags, _, _, _, _, _, array, offset, _, sectors, *more = _MORE.unpack_from(data, _HEAD.size)
        if more[3]:
            raise FormatError(f"a raid superblock with incompatible features {more[3]:#x}", 144)
        return cls(
            devices=devices,
            position=position,
            events=events,
            failed=failed | more[0] << 64 | more[1] << 128 | more[2] << 192,
            recovery_offset=recovery,
            resync_offset=resync,
            level=level,
            layout=layout,
            chunk=chunk,
            array_sectors=array,
            data_offset=offset,
            sectors=sectors,
            reshaping=bool(flags & _RESHAPING),
        )

    def encode(self) -> bytes:
        """Return the superblock of `BYTES`."""
        words = [self.failed >> shift & DONE for shift in (0, 64, 128, 192)]
        head = _HEAD.pack(
            _MAGIC,
            _V190,
            self.devices,
            self.position,
            self.events,
            words[0],
            self.recovery_offset,
            self.resync_offset,
            self.level,
            self.layout,
            self.chunk,
        )
        more = _MORE.pack(
            0,
            DONE,
            self.level,
            self.layout,
            self.chunk,
            0,
            self.array_sectors,
            self.data_offset,
            self.data_offset,
            self.sectors,
            *words[1:],
            0,
        )
        return (head + more).ljust(BYTES, b"\0")


@dataclass(slots=True, kw_only=True)
class BitmapSuper:
    """The head of the bitmap; its bits, one for each region that may not be in sync, follow.

    Attributes:
        events: Of the set when it was written.
        sync_sectors: Sectors that the bits are for.
        region_bytes: Bytes of a region, a power of two.
        daemon_sleep: Seconds between its updates.
        write_behind: Writes that may be outstanding.
    """

    events: int
    sync_sectors: int
    region_bytes: int
    daemon_sleep: int = 5
    write_behind: int = 0

    @classmethod
    def decode(cls, data: bytes | bytearray) -> BitmapSuper | None:
        """Read the head; None if there is none.

        Raises:
            FormatError: Another version, or regions of no size.
        """
        magic, version, events, _, sectors, _, region, sleep, behind = _BITMAP.unpack_from(data)
        if magic != _BITMAP_MAGIC:
            return None
        if version not in _BITMAP_VERSIONS:
            raise FormatError(f"a raid bitmap of version {version}; 3 and 4 are known", BITMAP_AT + 4)
        if region < BYTES or region & (region - 1):
            raise FormatError(f"a raid bitmap with regions of {region} bytes", BITMAP_AT + 52)
        return cls(
            events=events, sync_sectors=sectors, region_bytes=region, daemon_sleep=sleep, write_behind=behind
        )

    def encode(self) -> bytes:
        """Return the head of `BITMAP_BYTES`."""
        return _BITMAP.pack(
            _BITMAP_MAGIC,
            4,
            self.events,
            self.events,
            self.sync_sectors,
            0,
            self.region_bytes,
            self.daemon_sleep,
            self.write_behind,
        ).ljust(BITMAP_BYTES, b"\0")
