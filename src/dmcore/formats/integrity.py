"""dm-integrity on disk: the superblock, and where data, tags and journal are.

Source: drivers/md/dm-integrity.c (struct superblock, sb_set_version, sb_mac, calculate_journal_section_size,
calculate_device_limits, get_provided_data_sectors, get_area_and_offset, get_metadata_sector_and_offset, get_data_sector).
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, replace
from enum import IntFlag
from typing import TYPE_CHECKING

from dmcore.errors import FormatError

if TYPE_CHECKING:
    from dmcore.formats.hashes import Hash

__all__ = ["SB_SECTORS", "Flags", "Layout", "Superblock"]

SB_SECTORS = 8
_MAGIC = b"integrt\0"
_FIELDS = struct.Struct("<8sBBHIQIBBxxQ8x16s")
_NEWEST = 7
_PADDING_SECTORS = 8
_SECTOR = 512


class Flags(IntFlag):
    """Flags of the superblock."""

    JOURNAL_MAC = 1
    RECALCULATING = 2
    DIRTY_BITMAP = 4
    FIXED_PADDING = 8
    FIXED_HMAC = 16
    INLINE = 32
    DISCARD_KEYED = 64


_NONE = Flags(0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Superblock:
    """The superblock, 4 KiB of which the first 512 bytes are used.

    Attributes:
        log2_interleave: Log2 of the sectors of data between two runs of tags; 0 with a device for tags.
        tag_size: Bytes.
        journal_sections: Number of the journal's sections.
        provided: Sectors of data that there is room for.
        flags: See there.
        log2_block: Log2 of the sectors of a block.
        log2_bit: Log2 of the blocks that a bit of the bitmap stands for.
        recalculated: Sector up to which tags were made anew.
        salt: 16 bytes, used with FIXED_HMAC.
    """

    log2_interleave: int
    tag_size: int
    journal_sections: int
    provided: int = 0
    flags: Flags = _NONE
    log2_block: int = 0
    log2_bit: int = 0
    recalculated: int = 0
    salt: bytes = bytes(16)

    @property
    def entry_size(self) -> int:
        """Bytes of an entry of the journal: the sector, the last words of each sector's data, the tag."""
        return -(-(8 + (8 << self.log2_block) + self.tag_size) // 8) * 8

    @property
    def section_entries(self) -> int:
        """Blocks in a section of the journal: as many entries as fit in its 8 sectors of them."""
        return (504 - (8 if self.flags & Flags.JOURNAL_MAC else 0)) // self.entry_size * 8

    @property
    def section_sectors(self) -> int:
        """Sectors of a section of the journal."""
        return (self.section_entries << self.log2_block) + 8

    def version(self, *, bitmap: bool, separate: bool) -> int:
        """Return the version that tells old kernels what they need: with mode B, and a device for tags."""
        for flag, version in (
            (Flags.DISCARD_KEYED, 7), (Flags.INLINE, 6), (Flags.FIXED_HMAC, 5), (Flags.FIXED_PADDING, 4),
        ):  # fmt: skip
            if self.flags & flag:
                return version
        if bitmap or self.flags & Flags.DIRTY_BITMAP:
            return 3
        return 2 if separate or self.flags & Flags.RECALCULATING else 1

    def encode(self, *, bitmap: bool, separate: bool, mac: Hash | None = None) -> bytes:
        """Return its 4 KiB; `mac` protects it."""
        fields = bytearray(
            _FIELDS.pack(
                _MAGIC, self.version(bitmap=bitmap, separate=separate), self.log2_interleave, self.tag_size,
                self.journal_sections, self.provided, self.flags, self.log2_block, self.log2_bit,
                self.recalculated, self.salt,
            ).ljust(SB_SECTORS * _SECTOR, b"\0")
        )  # fmt: skip
        if mac is not None and self.flags & Flags.FIXED_HMAC:
            end = _SECTOR - mac.digest_size
            mac.update(fields[:end])
            fields[end:_SECTOR] = mac.digest()
        return bytes(fields)

    @classmethod
    def decode(
        cls, data: bytes | bytearray, *, mac: Hash | None = None, offset: int = 0
    ) -> Superblock | None:
        """Read one, at byte `offset` of its disk; None for 4 KiB of zeros, which want to be formatted.

        Raises:
            FormatError: It is none, or cannot be.
        """
        (
            magic,
            version,
            log2_interleave,
            tag_size,
            sections,
            provided,
            flags,
            log2_block,
            log2_bit,
            at,
            salt,
        ) = _FIELDS.unpack_from(data)
        if magic != _MAGIC:
            if any(data):
                raise FormatError("no superblock of integrity, and no zeros that could be formatted", offset)
            return None
        if not 1 <= version <= _NEWEST:
            raise FormatError(f"integrity superblock of version {version}, not 1..{_NEWEST}", offset + 8)
        if not tag_size:
            raise FormatError("integrity superblock with tags of 0 bytes", offset + 10)
        if flags & ~sum(Flags):
            raise FormatError(f"integrity superblock with unknown flags {flags:#x}", offset + 24)
        if log2_block > 3:
            raise FormatError(f"integrity superblock with blocks of 2^{log2_block} sectors", offset + 28)
        if mac is not None and flags & Flags.FIXED_HMAC:
            end = _SECTOR - mac.digest_size
            mac.update(data[:end])
            if mac.digest() != data[end:_SECTOR]:
                raise FormatError("the integrity superblock does not match its MAC", offset + end)
        return cls(
            log2_interleave=log2_interleave,
            tag_size=tag_size,
            journal_sections=sections,
            provided=provided,
            flags=Flags(flags),
            log2_block=log2_block,
            log2_bit=log2_bit,
            recalculated=at,
            salt=salt,
        )


class Layout:
    """Where everything is, from the superblock and the sizes of the disks. Sectors of 512 bytes.

    Args:
        head: The superblock; its `provided` is not looked at.
        start: First sector used, on the device for tags if there is one.
        data_sectors: Size of the data device.
        meta_sectors: Size of the device for tags; None if there is no such device.
        log2_buffer: Log2 of the sectors of tags that are read at once.

    Attributes:
        provided: Sectors of data.
        section_entries: Blocks in a section of the journal.
        section_sectors: Its size.
        entry_size: Bytes of its entries.
        initial: Sectors of superblock and journal.
        run: Sectors of tags in front of each piece of data (1 with a device for tags).
        inline: Tags stand beside the data (mode I).
        log2_buffer: As given, or less where that does not fit.

    Raises:
        FormatError: The disk is too small, or the superblock impossible.
    """

    def __init__(
        self, head: Superblock, *, start: int, data_sectors: int, meta_sectors: int | None, log2_buffer: int
    ) -> None:
        self.head, self.start = head, start
        self.separate = meta_sectors is not None
        self._meta_sectors = data_sectors if meta_sectors is None else meta_sectors
        self.block_sectors = 1 << head.log2_block
        if head.log2_interleave if self.separate else not 3 <= head.log2_interleave <= 31:
            what = f"integrity superblock with 2^{head.log2_interleave} sectors between tags"
            raise FormatError(what, start * _SECTOR + 9)
        self.entry_size, self.section_entries = head.entry_size, head.section_entries
        self.section_sectors = head.section_sectors
        self.initial = SB_SECTORS + self.section_sectors * head.journal_sections
        self.log2_buffer = log2_buffer
        too_small = FormatError("the disk is too small for integrity with this journal", start * _SECTOR)
        if self.initial + _PADDING_SECTORS >= self._meta_sectors or self.initial >= 1 << 32:
            raise too_small
        self.inline = bool(head.flags & Flags.INLINE)
        if self.inline:
            self.run = 0
            self.provided = max(self._meta_sectors - self.initial, 0) & -8
        elif self.separate:
            self.run = 1
            self.provided = data_sectors & -self.block_sectors
            while not self._tags_fit():
                if self.log2_buffer <= 3:
                    raise too_small
                self.log2_buffer -= 1
        else:
            padding = 4096 if head.flags & Flags.FIXED_PADDING else _SECTOR << 8
            tags = head.tag_size << (head.log2_interleave - head.log2_block)
            self.run = -(-tags // padding) * padding // _SECTOR
            self.provided = self._most()
            self.log2_buffer = min(log2_buffer, (self.run & -self.run).bit_length() - 1)
        if not self.provided:
            raise too_small

    def _tags_fit(self) -> bool:
        tags = (self.provided >> self.head.log2_block) * self.head.tag_size
        unit = _SECTOR << self.log2_buffer
        return self.initial + (-(-tags // unit) << self.log2_buffer) <= self._meta_sectors

    def _most(self) -> int:
        """Return the most sectors, a multiple of 8, whose last one is still on the disk."""
        found = 0
        for bit in reversed(range(3, self._meta_sectors.bit_length())):
            if self.data_sector((found | 1 << bit) - 1) < self._meta_sectors:
                found |= 1 << bit
        return found

    def _area(self, sector: int) -> tuple[int, int]:
        if self.separate:
            return 0, sector
        return sector >> self.head.log2_interleave, sector & ((1 << self.head.log2_interleave) - 1)

    def data_sector(self, sector: int) -> int:
        """Return where on the data device a sector is."""
        if self.separate:
            return sector
        if self.inline:
            return self.start + self.initial + sector
        area, offset = self._area(sector)
        return (
            self.start + self.initial + (area << self.head.log2_interleave) + (area + 1) * self.run + offset
        )

    def tag_byte(self, sector: int) -> int:
        """Return the byte, on the device for tags, where the tag of the block at `sector` begins."""
        area, offset = self._area(sector)
        first = (area << self.head.log2_interleave) + area * self.run
        first = first >> self.log2_buffer << self.log2_buffer
        tags = (offset >> self.head.log2_block) * self.head.tag_size
        return (self.start + self.initial + first) * _SECTOR + tags

    def together(self, sector: int, count: int) -> int:
        """Return how many of `count` sectors stand together, with their tags."""
        if self.separate or self.inline:
            return count
        interleave = 1 << self.head.log2_interleave
        return min(count, interleave - sector % interleave)

    @staticmethod
    def format(
        head: Superblock,
        *,
        sections: int,
        start: int,
        data_sectors: int,
        meta_sectors: int | None,
        log2_buffer: int,
    ) -> Layout:
        """Return the layout of a new device, with at most `sections` sections of the journal (initialize_superblock)."""

        def attempt(count: int, buffer: int) -> Layout:
            tried = replace(head, journal_sections=count)
            return Layout(
                tried, start=start, data_sectors=data_sectors, meta_sectors=meta_sectors, log2_buffer=buffer
            )

        if meta_sectors is None:
            return attempt(sections, log2_buffer)
        while True:
            found: Layout | None = None
            count = 0
            for bit in reversed(range(sections.bit_length())):
                if count | 1 << bit > sections:
                    continue
                try:
                    tried = attempt(count | 1 << bit, log2_buffer)
                except FormatError:
                    continue
                if tried.log2_buffer == log2_buffer:
                    found, count = tried, count | 1 << bit
            if found is not None:
                return found
            if log2_buffer <= 3:
                raise FormatError("the device for tags is too small", start * _SECTOR)
            log2_buffer -= 1
