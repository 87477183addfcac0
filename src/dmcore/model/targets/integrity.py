"""integrity: a tag for each block, checked when it is read, or kept for the layer above.

Source: drivers/md/dm-integrity.c (dm_integrity_ctr, dm_integrity_map_continue, integrity_metadata, dm_integrity_rw_tag,
integrity_recalc, dm_integrity_resume, dm_integrity_postsuspend, dm_integrity_status, bitmap_block_work).
"""

from __future__ import annotations

import errno
from dataclasses import replace
from random import SystemRandom
from typing import TYPE_CHECKING

from dmcore.errors import SpecError, Unsupported
from dmcore.formats.hashes import digest_size, new_hash
from dmcore.formats.integrity import SB_SECTORS, Flags, Layout, Superblock
from dmcore.model.block import FUA, SYNC, fault, pieces
from dmcore.model.stores import read_exactly
from dmcore.model.target import Area, ModelTarget
from dmcore.model.targets._integrity_journal import Entry, Journal
from dmcore.targets.integrity import Algorithm, Integrity, Mode
from dmcore.units import SECTOR

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from dmcore.formats.hashes import Hash
    from dmcore.model.target import Context

__all__ = ["MODEL"]

_DEFAULT_INTERLEAVE = 32768
_DEFAULT_BUFFER = 128
_DEFAULT_WATERMARK = 50
_DEFAULT_TIME = 10000
_DEFAULT_BIT = 32768
_MOST_JOURNAL = 131072
_FILLER = b"\xf6"
_RECALCULATE = 32768
_BITMAP_SECTORS = 8


def _log2(value: int) -> int:
    return value.bit_length() - 1


def _made(algorithm: Algorithm) -> Hash:
    return new_hash(algorithm.name, None if algorithm.key is None else algorithm.key.reveal())


class _Integrity(ModelTarget[Integrity]):
    def __init__(self, target: Integrity, context: Context) -> None:
        super().__init__(target, context)
        self._dev, self._meta = self.lower[0], self.lower[-1]
        if target.mode is Mode.INLINE:
            raise Unsupported(
                "mode I", "a disk with room for tags is needed", "use a kernel, or mode J, B or D"
            )
        if target.journal_crypt is not None:
            raise Unsupported(
                "journal_crypt", "the model does not encrypt journals", "leave it out, or use a kernel"
            )
        self._hash = None if target.internal_hash is None else _made(target.internal_hash)
        self._mac = None if target.journal_mac is None else _made(target.journal_mac)
        self._size = target.tag_size or digest_size(target.internal_hash.name if target.internal_hash else "")
        self._unit = target.block_size // SECTOR
        self._mismatches = 0
        self._failed = 0
        self._uptodate = False
        self._head = self._load()
        self._log2_bit = self._bits_of()
        if context.length > self._layout.provided:
            reason = f"the line is longer than the {self._layout.provided} sectors that there is room for"
            raise SpecError("length", context.length, reason)
        flags = self._head.flags
        if flags & Flags.RECALCULATING and self._hash is None:
            raise SpecError("internal_hash", None, "needed: the device is being recalculated")
        if self._head.recalculated < self._layout.provided and flags & Flags.RECALCULATING and self._unsafe():
            raise fault(errno.EOPNOTSUPP)
        self._prefix = self._head.salt if flags & Flags.FIXED_HMAC else b""
        self.max_io_len = 0 if self._layout.separate else 1 << self._head.log2_interleave
        bits = -(-self._layout.provided // (self._unit << self._log2_bit))
        self._bitmap = bytearray(-(-bits // (4096 * 8)) * 4096)
        self._stale = bytearray(len(self._bitmap))
        self._journal = Journal(
            self._layout, self._meta, mac=self._section_mac, home=self._write_home, fits=self._fits,
            failed=self._error,
            watermark=_DEFAULT_WATERMARK if target.journal_watermark is None else target.journal_watermark,
        )  # fmt: skip
        if self._fresh and target.mode is not Mode.RECOVERY:
            self._head = replace(self._head, log2_bit=self._log2_bit)
            self._journal.clear(0, self._head.journal_sections, 0)
            self._save()

    # -- the superblock ----------------------------------------------------------------------------------------------

    def _load(self) -> Superblock:
        target = self.target
        separate = target.meta_device is not None
        sizes = {
            "start": target.start,
            "data_sectors": self._dev.sectors,
            "meta_sectors": self._meta.sectors if separate else None,
        }
        log2_buffer = min(
            _log2(_DEFAULT_BUFFER if target.buffer_sectors is None else target.buffer_sectors or 1), 22
        )
        raw = read_exactly(self._meta, target.start, SB_SECTORS, "the superblock")
        check = self._mac.copy() if self._mac is not None and target.mode is not Mode.RECOVERY else None
        found = None
        if any(raw) and not (target.mode is Mode.RECOVERY and not raw.startswith(b"integrt\0")):
            found = Superblock.decode(raw, mac=check, offset=target.start * SECTOR)
        self._fresh = found is None
        if found is None:
            blank, sections = self._blank(separate=separate)
            self._layout = Layout.format(blank, sections=sections, log2_buffer=log2_buffer, **sizes)  # type: ignore[arg-type]
        else:
            self._compare(found)
            self._layout = Layout(found, log2_buffer=log2_buffer, **sizes)  # type: ignore[arg-type]
        head = replace(self._layout.head, provided=self._layout.provided)
        if target.recalculate or target.reset_recalculate:
            at = head.recalculated if head.flags & Flags.RECALCULATING else 0
            head = replace(head, flags=head.flags | Flags.RECALCULATING, recalculated=at)
        return head

    def _blank(self, *, separate: bool) -> tuple[Superblock, int]:
        """Return the superblock of a new device, and how many sections its journal may have."""
        target = self.target
        flags = Flags(0)
        if self._mac is not None:
            flags |= Flags.JOURNAL_MAC
        if target.fix_hmac and (self._hash is not None or self._mac is not None):
            flags |= Flags.FIXED_HMAC
        if target.allow_discards_keyed:
            flags |= Flags.DISCARD_KEYED
        if target.fix_padding and not separate:
            flags |= Flags.FIXED_PADDING
        interleave = min(max(_log2(target.interleave_sectors or _DEFAULT_INTERLEAVE), 3), 31)
        salt = SystemRandom().randbytes(16) if flags & Flags.FIXED_HMAC else bytes(16)
        head = Superblock(
            log2_interleave=0 if separate else interleave, tag_size=self._size, journal_sections=1, flags=flags,
            log2_block=_log2(self._unit), salt=salt,
        )  # fmt: skip
        entries = (
            (504 - (8 if self._mac is not None else 0))
            // (-(-(8 + 8 * self._unit + self._size) // 8) * 8)
            * 8
        )
        default = min(_MOST_JOURNAL, self._dev.sectors >> 7)
        sectors = default if target.journal_sectors is None else target.journal_sectors or 1
        return head, max((sectors or default) // (entries * self._unit + 8), 1)

    def _compare(self, head: Superblock) -> None:
        """Refuse a superblock that says something else than the table."""
        target = self.target
        said = {
            "tag_size": (head.tag_size, self._size),
            "block_size": (SECTOR << head.log2_block, target.block_size),
            "journal_mac": (bool(head.flags & Flags.JOURNAL_MAC), self._mac is not None),
        }
        for field, (there, given) in said.items():
            if there != given:
                raise SpecError(field, given, f"the superblock says {there}")
        if head.flags & Flags.INLINE:
            raise SpecError("mode", target.mode, "the superblock says I")
        if not head.journal_sections:
            raise SpecError("journal_sectors", 0, "the superblock has no journal")
        if head.flags & Flags.DISCARD_KEYED and not target.allow_discards_keyed:
            raise SpecError("allow_discards_keyed", value=False, reason="it cannot be disabled once enabled")

    def _unsafe(self) -> bool:
        target = self.target
        if target.legacy_recalculate:
            return False
        key = target.internal_hash is not None and target.internal_hash.key is not None
        mac = target.journal_mac is not None and target.journal_mac.key is not None
        return (key and not mac) if self._head.flags & Flags.FIXED_HMAC else (key or mac)

    def _bits_of(self) -> int:
        """Return the log2 of the blocks for a bit of the bitmap."""
        given = self.target.sectors_per_bit
        log2 = _log2(_DEFAULT_BIT) if given is None else _log2(given or 1)
        log2 = max(log2, self._head.log2_block)
        room = min(self._layout.section_sectors * self._head.journal_sections << 12, 2**32 - 1)
        while room < (self._layout.provided + (1 << log2) - 1) >> log2:
            log2 += 1
        return log2 - self._head.log2_block

    def _save(self) -> None:
        bitmap, separate = self.target.mode is Mode.BITMAP, self._layout.separate
        mac = self._mac.copy() if self._mac is not None else None
        raw = self._head.encode(bitmap=bitmap, separate=separate, mac=mac)
        self._meta.write(self.target.start, memoryview(raw), SYNC | FUA)

    # -- a table's life ----------------------------------------------------------------------------------------------

    @property
    def areas(self) -> Iterable[Area]:
        """The line's length of the data device."""
        layout = self._layout
        first = 0 if layout.separate else self.target.start + layout.initial + layout.run
        return [Area(self._dev, first, self.context.length)]

    @property
    def block_size(self) -> int:
        """The block that a tag is for."""
        return self.target.block_size

    @property
    def write_cache(self) -> bool:
        """Always: a flush commits the journal."""
        return True

    @property
    def discards(self) -> bool:
        """Whether the table allows them, and the data device takes them."""
        return (self.target.allow_discards or self.target.allow_discards_keyed) and self._dev.discards

    @property
    def tag_size(self) -> int:
        """Bytes that are there for the layer above, without a hash of our own."""
        return 0 if self._hash is not None else self._size

    @property
    def tag_interval(self) -> int:
        """The block."""
        return 0 if self._hash is not None else self.target.block_size

    def resume(self) -> None:
        """Replay the journal, or find in the bitmap what was being written."""
        if self.target.mode is Mode.RECOVERY:
            return
        if self._head.flags & Flags.DIRTY_BITMAP:
            self._resume_dirty()
        else:
            if not self._uptodate and not self._fresh:
                self._journal.replay(keep=self.target.mode is Mode.JOURNAL)
            if self.target.reset_recalculate:
                self._again()
            if self.target.mode is Mode.BITMAP:
                self._head = replace(
                    self._head, flags=self._head.flags | Flags.DIRTY_BITMAP, log2_bit=self._log2_bit
                )
                self._bitmap[:] = bytes(len(self._bitmap))
                self._stale[:] = self._bitmap
                if self._recalculating:
                    self._mark(self._bitmap, self._head.recalculated, self._layout.provided)
                    self._mark(self._stale, self._head.recalculated, self._layout.provided)
                self._write_bitmap()
        self._fresh = self._uptodate = False
        self._save()

    def _again(self) -> None:
        self._head = replace(self._head, flags=self._head.flags | Flags.RECALCULATING, recalculated=0)

    def _resume_dirty(self) -> None:
        count = len(self._bitmap) // SECTOR
        self._bitmap[:] = read_exactly(self._meta, self.target.start + SB_SECTORS, count, "the bitmap")
        same = self._head.log2_bit == self._log2_bit
        if self.target.mode is Mode.BITMAP:
            if not same or self.target.reset_recalculate:
                self._mark(self._bitmap, 0, self._layout.provided)
                self._write_bitmap()
            self._head = replace(self._head, log2_bit=self._log2_bit)
            self._stale[:] = self._bitmap
            if any(self._bitmap):
                self._again()
            return
        if not same or any(self._bitmap) or self.target.reset_recalculate:
            self._again()
        self._journal.clear(0, self._head.journal_sections, 0)
        self._head = replace(self._head, flags=self._head.flags & ~Flags.DIRTY_BITMAP)

    def postsuspend(self) -> None:
        """Write the journal home; an empty one remains."""
        if self.target.mode is Mode.JOURNAL and not self._failed:
            self._journal.finish()
        if self.target.mode is Mode.BITMAP:
            self._journal.clear(0, self._head.journal_sections, 0)
            self._head = replace(self._head, flags=self._head.flags & ~Flags.DIRTY_BITMAP)
            self._save()
        self._uptodate = True

    def settle(self) -> None:
        """Write the journal home, make tags anew if the table says so, and clear the bitmap."""
        if self.target.mode is Mode.RECOVERY or self._failed:
            return
        if self.target.mode is Mode.JOURNAL:
            self._journal.commit()
            self._journal.write_home()
        if self._recalculating and self._head.recalculated < self._layout.provided:
            self._recalculate()
        if self.target.mode is Mode.BITMAP:
            self._bitmap[:] = bytes(len(self._bitmap))
            self._write_bitmap()

    @property
    def _recalculating(self) -> bool:
        return bool(self._head.flags & Flags.RECALCULATING)

    def _recalculate(self) -> None:
        at = self._head.recalculated
        while at < self._layout.provided:
            count = self._layout.together(at, min(_RECALCULATE, self._layout.provided - at))
            first, end = self._stale_part(at, at + count)
            if first < end:
                try:
                    data = self._dev.read(self._layout.data_sector(first), end - first)
                    self._write_tags(first, self._tags(first, memoryview(data)))
                except OSError as error:
                    self._error(error.errno or errno.EIO)
                    return
            at += count
            self._head = replace(self._head, recalculated=at)
        self._stale[:] = bytes(len(self._stale))
        self._save()

    def _stale_part(self, first: int, end: int) -> tuple[int, int]:
        """Return what of a range has to be made anew: in bitmap mode, from the first marked block to the last."""
        if self.target.mode is not Mode.BITMAP:
            return first, end
        while first < end and not self._marked(self._stale, first, first + self._unit):
            first += self._unit
        while first < end and not self._marked(self._stale, end - self._unit, end):
            end -= self._unit
        return first, end

    # -- the bitmap --------------------------------------------------------------------------------------------------

    def _bits(self, first: int, end: int) -> range:
        shift = self._head.log2_block + self._log2_bit
        return range(first >> shift, ((end - 1) >> shift) + 1)

    def _mark(self, bitmap: bytearray, first: int, end: int) -> bool:
        """Set the bits of a range; return whether one was clear."""
        changed = False
        for bit in self._bits(first, end):
            if not bitmap[bit >> 3] >> (bit & 7) & 1:
                bitmap[bit >> 3] |= 1 << (bit & 7)
                changed = True
        return changed

    def _marked(self, bitmap: bytearray, first: int, end: int) -> bool:
        return any(bitmap[bit >> 3] >> (bit & 7) & 1 for bit in self._bits(first, end))

    def _write_bitmap(self) -> None:
        self._meta.write(self.target.start + SB_SECTORS, memoryview(bytes(self._bitmap)), SYNC | FUA)

    # -- tags --------------------------------------------------------------------------------------------------------

    def _error(self, number: int) -> None:
        """Count a mismatch; let every request fail from now on, with the first errno (dm_integrity_io_error)."""
        if number == errno.EILSEQ:
            self._mismatches += 1
        self._failed = self._failed or number

    def _tag(self, sector: int, data: memoryview | bytes) -> bytes:
        assert self._hash is not None
        hasher = self._hash.copy()
        hasher.update(self._prefix + sector.to_bytes(8, "little"))
        hasher.update(data)
        return hasher.digest()[: self._size].ljust(self._size, b"\0")

    def _tags(self, sector: int, data: memoryview) -> bytes:
        step = self.target.block_size
        return b"".join(
            self._tag(sector + at // SECTOR, data[at : at + step]) for at in range(0, len(data), step)
        )

    def _fits(self, entry: Entry) -> bool:
        return self._hash is None or self._tag(entry.sector, entry.data) == entry.tag

    def _section_mac(self, section: int) -> Hash | None:
        if self._mac is None:
            return None
        mac = self._mac.copy()
        if self._prefix:
            mac.update(self._prefix + section.to_bytes(8, "little"))
        return mac

    def _span(self, sector: int, count: int) -> tuple[int, int, int]:
        """Return where the tags of `count` sectors stand: first sector and sectors of the device, first byte there."""
        begin = self._layout.tag_byte(sector)
        end = begin + count // self._unit * self._size
        unit = self._meta.block_size
        first = begin // unit * unit
        return first // SECTOR, -(-(end - first) // unit) * unit // SECTOR, begin - first

    def _read_tags(self, sector: int, count: int) -> bytes:
        first, sectors, skip = self._span(sector, count)
        return bytes(self._meta.read(first, sectors)[skip : skip + count // self._unit * self._size])

    def _write_tags(self, sector: int, tags: bytes | memoryview) -> None:
        first, sectors, skip = self._span(sector, len(tags) // self._size * self._unit)
        around = self._meta.read(first, sectors)
        around[skip : skip + len(tags)] = tags
        self._meta.write(first, memoryview(around))

    def _write_home(self, entry: Entry) -> None:
        try:
            self._write_tags(entry.sector, entry.tag)
            self._dev.write(self._layout.data_sector(entry.sector), memoryview(entry.data))
        except OSError as error:
            self._error(error.errno or errno.EIO)

    def _check(self, sector: int, data: memoryview, stored: bytes) -> None:
        """Refuse data whose tags do not fit; those of discarded blocks fit any data.

        Raises:
            OSError: EILSEQ.
        """
        target, size, step = self.target, self._size, self.target.block_size
        made = self._tags(sector, data)
        if made == stored:
            return
        for at in range(0, len(made), size):
            found = stored[at : at + size]
            if made[at : at + size] == found:
                continue
            if target.allow_discards_keyed:
                fine = found == self._tag(sector + at // size * (step // SECTOR), b"")
            else:
                fine = target.allow_discards and found == _FILLER * size
            if not fine:
                self._mismatches += 1
                raise fault(errno.EILSEQ)

    # -- requests ----------------------------------------------------------------------------------------------------

    def _begin(self, *, changes: bool) -> None:
        if self._failed:
            raise fault(self._failed)
        if changes and self.target.mode is Mode.RECOVERY:
            raise fault(errno.EIO)

    def _parts(self, sector: int, count: int) -> Iterator[tuple[int, int, list[Entry]]]:
        """Cut a range where blocks stand in the journal: yield `(sector, sectors, entries)`."""
        if self.target.mode is not Mode.JOURNAL:
            yield sector, count, []
            return
        at, end = sector, sector + count
        while at < end:
            first = at
            entries: list[Entry] = []
            while at < end and (entry := self._journal.find(at)) is not None:
                entries.append(entry)
                at += self._unit
            while not entries and at < end and self._journal.find(at) is None:
                at += self._unit
            yield first, at - first, entries

    def readinto(self, sector: int, buffer: memoryview, flags: int) -> None:
        """Read, and check: EILSEQ for a block that does not fit its tag."""
        self._begin(changes=False)
        for first, count, entries in self._parts(sector, len(buffer) // SECTOR):
            part = buffer[(first - sector) * SECTOR : (first - sector + count) * SECTOR]
            if entries:
                part[:] = b"".join(entry.data for entry in entries)
                continue
            self._dev.readinto(self._layout.data_sector(first), part, flags)
            if (
                self._hash is None
                or self.target.mode is Mode.RECOVERY
                or self._unchecked(first, first + count)
            ):
                continue
            self._check(first, part, self._read_tags(first, count))

    def _unchecked(self, first: int, end: int) -> bool:
        if self._recalculating and end > self._head.recalculated:
            return True
        return self.target.mode is Mode.BITMAP and self._marked(self._stale, first, end)

    def readinto_tagged(self, sector: int, buffer: memoryview, tags: memoryview, flags: int) -> None:
        """Read data with their tags."""
        self._begin(changes=False)
        for first, count, entries in self._parts(sector, len(buffer) // SECTOR):
            before = (first - sector) // self._unit * self._size
            part = tags[before : before + count // self._unit * self._size]
            data = buffer[(first - sector) * SECTOR : (first - sector + count) * SECTOR]
            if entries:
                data[:] = b"".join(entry.data for entry in entries)
                part[:] = b"".join(entry.tag for entry in entries)
            else:
                self._dev.readinto(self._layout.data_sector(first), data, flags)
                part[:] = self._read_tags(first, count)

    def write(self, sector: int, data: memoryview, flags: int) -> None:
        """Write data and their tags; without a hash, the journal takes zeros for tags, other modes leave them."""
        self._begin(changes=True)
        if self._hash is not None:
            tags: bytes | None = self._tags(sector, data)
        else:
            tags = bytes(len(data) // self.target.block_size * self._size) if self._journalled else None
        self._write(sector, data, tags, flags)

    def write_tagged(self, sector: int, data: memoryview, tags: memoryview, flags: int) -> None:
        """Write data with the tags of the layer above."""
        self._begin(changes=True)
        self._write(sector, data, bytes(tags), flags)

    @property
    def _journalled(self) -> bool:
        return self.target.mode is Mode.JOURNAL

    def _write(self, sector: int, data: memoryview, tags: bytes | None, flags: int) -> None:
        step, size = self.target.block_size, self._size
        if self._journalled:
            assert tags is not None
            for index in range(len(data) // step):
                block = bytes(data[index * step : (index + 1) * step])
                self._journal.put(
                    Entry(sector + index * self._unit, block, tags[index * size : (index + 1) * size])
                )
        else:
            if self.target.mode is Mode.BITMAP and self._mark(
                self._bitmap, sector, sector + len(data) // SECTOR
            ):
                self._write_bitmap()
            try:
                self._dev.write(self._layout.data_sector(sector), data, flags & ~FUA)
            finally:
                if tags is not None:
                    self._write_tags(sector, tags)
        if flags & FUA:
            self.flush()

    def flush(self) -> None:
        """Commit the journal; flush what is below."""
        self._begin(changes=False)
        if self._journalled:
            self._journal.commit()
        super().flush()
        if self._failed:
            raise fault(self._failed)

    def discard(self, sector: int, count: int) -> None:
        """Discard whole blocks: their tags then fit any data, or tell so."""
        self._begin(changes=True)
        for piece in pieces(sector, count, self.max_io_len):
            first, length = piece.sector, piece.length
            if self._journalled and self._journal.conflicts(first, length):
                self._journal.commit()
                self._journal.write_home()
            if self.target.mode is Mode.BITMAP and self._mark(self._bitmap, first, first + length):
                self._write_bitmap()
            for step in pieces(first, length, 2048):
                if self.target.allow_discards_keyed:
                    blocks = range(step.sector, step.sector + step.length, self._unit)
                    tags = b"".join(self._tag(block, b"") for block in blocks)
                else:
                    tags = _FILLER * (step.length // self._unit * self._size)
                self._write_tags(step.sector, tags)
            self._dev.discard(self._layout.data_sector(first), length)

    # -- what it says ------------------------------------------------------------------------------------------------

    def status(self) -> str:
        """Return the mismatches, the sectors that there is room for, and how far tags were made anew."""
        at = self._head.recalculated if self._recalculating else "-"
        return f"{self._mismatches} {self._layout.provided} {at}"

    def params(self) -> str:
        """Return the line with the numbers in effect, as 7.2 (which knows keyed discards) or as older kernels print them."""
        target, layout = self.target, self._layout
        journal, bitmap = target.mode is Mode.JOURNAL, target.mode is Mode.BITMAP
        older = "integrity.allow_discards_keyed" not in self.context.features
        entries = self._journal.entries
        watermark = ((entries - self._journal.threshold) * 100 + entries // 2) // entries
        time = _DEFAULT_TIME if target.commit_time is None else target.commit_time
        interval = _DEFAULT_TIME if target.bitmap_flush_interval is None else target.bitmap_flush_interval
        said = replace(
            target,
            tag_size=self._size,
            journal_sectors=layout.initial - SB_SECTORS if journal or older else None,
            interleave_sectors=1 << self._head.log2_interleave,
            buffer_sectors=1 << layout.log2_buffer,
            journal_watermark=watermark if journal else None,
            commit_time=time if journal else None,
            sectors_per_bit=self._unit << self._log2_bit if bitmap else None,
            bitmap_flush_interval=interval if bitmap else None,
            recalculate=self._recalculating,
            reset_recalculate=target.reset_recalculate,
            legacy_recalculate=target.legacy_recalculate or (self._recalculating and self._unsafe()),
            allow_discards=target.allow_discards and not target.allow_discards_keyed,
            fix_padding=bool(self._head.flags & Flags.FIXED_PADDING),
            fix_hmac=bool(self._head.flags & Flags.FIXED_HMAC),
        )
        return said.encode(lambda ref: self.context.open(ref).word or ref.name)


MODEL = _Integrity
