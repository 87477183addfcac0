"""integrity: a tag for each block, checked when it is read, or kept for the layer above.

Source: drivers/md/dm-integrity.c (dm_integrity_ctr, dm_integrity_map_continue, integrity_metadata, dm_integrity_rw_tag,
integrity_recalc, dm_integrity_resume, dm_integrity_postsuspend, dm_integrity_status, bitmap_block_work).
"""

from __future__ import annotations

import errno
from dataclasses import replace
from typing import TYPE_CHECKING

from dmcore.errors import FormatError, SpecError
from dmcore.formats.hashes import digest_size, new_hash
from dmcore.formats.integrity import SB_SECTORS, Flags
from dmcore.model.block import FUA, SYNC, fault, pieces
from dmcore.model.target import Area, ModelTarget
from dmcore.model.targets._integrity_bitmap import Bitmap
from dmcore.model.targets._integrity_head import begin, log2_bit, unsafe
from dmcore.model.targets._integrity_inline import Inline, check_inline
from dmcore.model.targets._integrity_journal import Entry, Journal
from dmcore.model.targets._integrity_tags import Tags
from dmcore.targets.integrity import Algorithm, Integrity, Mode
from dmcore.units import SECTOR

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from dmcore.formats.hashes import Hash
    from dmcore.model.target import Context
    from dmcore.model.targets._integrity_cipher import JournalCipher

__all__ = ["MODEL"]

_DEFAULT_WATERMARK = 50
_DEFAULT_TIME = 10000
_RECALCULATE = 32768


def _made(algorithm: Algorithm | None) -> Hash | None:
    if algorithm is None:
        return None
    return new_hash(algorithm.name, None if algorithm.key is None else algorithm.key.reveal())


class _Integrity(ModelTarget[Integrity]):
    def __init__(self, target: Integrity, context: Context) -> None:
        super().__init__(target, context)
        self._dev, self._meta = self.lower[0], self.lower[-1]
        self._hash, self._mac = _made(target.internal_hash), _made(target.journal_mac)
        self._size = target.tag_size or digest_size(target.internal_hash.name if target.internal_hash else "")
        self._unit = target.block_size // SECTOR
        if target.mode is Mode.INLINE:
            check_inline(target, self._dev, self._size)
        self._mismatches = 0
        self._failed = 0
        self._uptodate = False
        self._head, self._layout, self._fresh = begin(
            target, self._dev, self._meta, tag_size=self._size, hashed=self._hash is not None, mac=self._mac
        )
        self._log2_bit = log2_bit(target, self._head, self._layout)
        self._refuse()
        self._prefix = self._head.salt if self._head.flags & Flags.FIXED_HMAC else b""
        self._tags = Tags(target, self._layout, self._meta, self._hash, self._prefix)
        inline = target.mode is Mode.INLINE
        self._inline = Inline(target, self._layout, self._dev, self._tags) if inline else None
        self.max_io_len = 0 if self._layout.separate or inline else 1 << self._head.log2_interleave
        shift = self._head.log2_block + self._log2_bit
        self._bitmap = Bitmap(self._meta, target.start, self._layout.provided, shift)
        self._journal = Journal(
            self._layout, self._meta, mac=self._section_mac, home=self._write_home, fits=self._fits,
            failed=self._error, cipher=self._cipher(),
            watermark=_DEFAULT_WATERMARK if target.journal_watermark is None else target.journal_watermark,
        )  # fmt: skip
        if self._fresh and target.mode is not Mode.RECOVERY:
            self._head = replace(self._head, log2_bit=self._log2_bit)
            self._journal.clear(0, self._head.journal_sections, 0)
            self._save()

    def _cipher(self) -> JournalCipher | None:
        if self.target.journal_crypt is None or self.target.mode is Mode.RECOVERY:
            return None
        from dmcore.model.targets._integrity_cipher import JournalCipher  # noqa: PLC0415 - brings in numpy

        return JournalCipher(self.target.journal_crypt, self._layout)

    def _refuse(self) -> None:
        """Refuse what superblock and table together do not allow."""
        provided, flags = self._layout.provided, self._head.flags
        if self.context.length > provided:
            reason = f"the line is longer than the {provided} sectors that there is room for"
            raise SpecError("length", self.context.length, reason)
        if flags & Flags.RECALCULATING and self._hash is None:
            raise SpecError("internal_hash", None, "needed: the device is being recalculated")
        if (
            flags & Flags.RECALCULATING
            and self._head.recalculated < provided
            and unsafe(self.target, self._head.flags)
        ):
            raise fault(errno.EOPNOTSUPP)

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
        self._reread()
        if self._failed:
            return
        if self._head.flags & Flags.DIRTY_BITMAP:
            self._resume_dirty()
        else:
            if not self._uptodate and not self._fresh and self._inline is None:
                self._journal.replay(keep=self.target.mode is Mode.JOURNAL)
            if self.target.reset_recalculate:
                self._again()
            if self.target.mode is Mode.BITMAP:
                self._head = replace(
                    self._head, flags=self._head.flags | Flags.DIRTY_BITMAP, log2_bit=self._log2_bit
                )
                self._bitmap.clear()
                if self._recalculating:
                    self._bitmap.mark(self._bitmap.writing, self._head.recalculated, self._layout.provided)
                self._bitmap.stale[:] = self._bitmap.writing
                self._bitmap.save()
        self._fresh = self._uptodate = False
        self._save()

    def _reread(self) -> None:
        """Take over how far a table before this one came, which has been live since the constructor read the superblock."""
        try:
            found, _, _ = begin(
                self.target,
                self._dev,
                self._meta,
                tag_size=self._size,
                hashed=self._hash is not None,
                mac=self._mac,
            )
        except OSError as error:
            return self._error(error.errno or errno.EIO)
        except (FormatError, SpecError):
            return self._error(errno.EINVAL)
        flags = found.flags | self._head.flags & Flags.RECALCULATING
        self._head = replace(
            self._head, flags=flags, recalculated=found.recalculated, log2_bit=found.log2_bit
        )
        return None

    def _again(self) -> None:
        self._head = replace(self._head, flags=self._head.flags | Flags.RECALCULATING, recalculated=0)

    def _resume_dirty(self) -> None:
        bitmap = self._bitmap
        bitmap.load()
        same = self._head.log2_bit == self._log2_bit
        if self.target.mode is Mode.BITMAP:
            if not same or self.target.reset_recalculate:
                bitmap.mark(bitmap.writing, 0, self._layout.provided)
                bitmap.save()
            self._head = replace(self._head, log2_bit=self._log2_bit)
            bitmap.stale[:] = bitmap.writing
            if any(bitmap.writing):
                self._again()
            return
        if not same or any(bitmap.writing) or self.target.reset_recalculate:
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
            self._bitmap.clear()
            self._bitmap.save()

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
                    if self._inline is not None:
                        self._inline.write(first, memoryview(data), SYNC)
                    else:
                        self._tags.write(first, self._tags.made(first, data))
                except OSError as error:
                    self._error(error.errno or errno.EIO)
                    return
            at += count
            self._head = replace(self._head, recalculated=at)
        self._bitmap.stale[:] = bytes(len(self._bitmap.stale))
        self._save()

    def _stale_part(self, first: int, end: int) -> tuple[int, int]:
        """Return what of a range has to be made anew: in bitmap mode, from the first marked block to the last."""
        if self.target.mode is not Mode.BITMAP:
            return first, end
        while first < end and not self._bitmap.is_stale(first, first + self._unit):
            first += self._unit
        while first < end and not self._bitmap.is_stale(end - self._unit, end):
            end -= self._unit
        return first, end

    # -- tags --------------------------------------------------------------------------------------------------------

    def _error(self, number: int) -> None:
        """Count a mismatch; let every request fail from now on, with the first errno (dm_integrity_io_error)."""
        if number == errno.EILSEQ:
            self._mismatches += 1
        self._failed = self._failed or number

    def _fits(self, entry: Entry) -> bool:
        return self._hash is None or self._tags.made(entry.sector, entry.data) == entry.tag

    def _section_mac(self, section: int) -> Hash | None:
        if self._mac is None:
            return None
        mac = self._mac.copy()
        if self._prefix:
            mac.update(self._prefix + section.to_bytes(8, "little"))
        return mac

    def _write_home(self, entry: Entry) -> None:
        try:
            self._tags.write(entry.sector, entry.tag)
            self._dev.write(self._layout.data_sector(entry.sector), memoryview(entry.data))
        except OSError as error:
            self._error(error.errno or errno.EIO)

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
        if self._inline is not None:
            check = not self._unchecked(sector, sector + len(buffer) // SECTOR)
            if not self._inline.read(sector, buffer, flags, check=check):
                self._mismatches += 1
                raise fault(errno.EILSEQ)
            return
        self._begin(changes=False)
        for first, count, entries in self._parts(sector, len(buffer) // SECTOR):
            part = buffer[(first - sector) * SECTOR : (first - sector + count) * SECTOR]
            if entries:
                part[:] = b"".join(entry.data for entry in entries)
                continue
            self._dev.readinto(self._layout.data_sector(first), part, flags)
            if self._unchecked(first, first + count):
                continue
            if not self._tags.fit(first, part, self._tags.read(first, count)):
                self._mismatches += 1
                raise fault(errno.EILSEQ)

    def _unchecked(self, first: int, end: int) -> bool:
        if self._hash is None or self.target.mode is Mode.RECOVERY:
            return True
        if self._recalculating and end > self._head.recalculated:
            return True
        return self.target.mode is Mode.BITMAP and self._bitmap.is_stale(first, end)

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
                part[:] = self._tags.read(first, count)

    def write(self, sector: int, data: memoryview, flags: int) -> None:
        """Write data and their tags; without a hash, the journal takes zeros for tags, other modes leave them."""
        if self._inline is not None:
            self._inline.write(sector, data, flags)
            return
        self._begin(changes=True)
        if self._hash is not None:
            tags: bytes | None = self._tags.made(sector, data)
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
            if self.target.mode is Mode.BITMAP:
                self._bitmap.will_write(sector, sector + len(data) // SECTOR)
            try:
                self._dev.write(self._layout.data_sector(sector), data, flags & ~FUA)
            finally:
                if tags is not None:
                    self._tags.write(sector, tags)
        if flags & FUA:
            self.flush()

    def flush(self) -> None:
        """Commit the journal; flush what is below."""
        if self._inline is None:
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
            if self.target.mode is Mode.BITMAP:
                self._bitmap.will_write(first, first + length)
            for step in pieces(first, length, 2048):
                self._tags.write(step.sector, self._tags.of_discarded(step.sector, step.length))
            self._dev.discard(self._layout.data_sector(first), length)

    # -- what it says ------------------------------------------------------------------------------------------------

    def status(self) -> str:
        """Return the mismatches, the sectors that there is room for, and how far tags were made anew."""
        at = self._head.recalculated if self._recalculating else "-"
        return f"{self._mismatches} {self._layout.provided} {at}"

    def params(self) -> str:
        """Return the line with the numbers in effect, as newer kernels (7.2, 6.12.118) or as older ones print them."""
        target, layout = self.target, self._layout
        journal, bitmap = target.mode is Mode.JOURNAL, target.mode is Mode.BITMAP
        older = "integrity.numbers_of_mode" not in self.context.features
        entries = self._journal.entries or 1
        watermark = ((entries - self._journal.threshold) * 100 + entries // 2) // entries
        time = _DEFAULT_TIME if target.commit_time is None else target.commit_time
        interval = _DEFAULT_TIME if target.bitmap_flush_interval is None else target.bitmap_flush_interval
        said = replace(
            target,
            tag_size=self._size,
            journal_sectors=layout.initial - SB_SECTORS if journal or older else None,
            interleave_sectors=1 << self._head.log2_interleave if older or self._inline is None else None,
            buffer_sectors=1 << layout.log2_buffer,
            journal_watermark=watermark if journal else None,
            commit_time=time if journal else None,
            sectors_per_bit=self._unit << self._log2_bit if bitmap else None,
            bitmap_flush_interval=interval if bitmap else None,
            recalculate=self._recalculating,
            reset_recalculate=target.reset_recalculate,
            legacy_recalculate=target.legacy_recalculate
            or (self._recalculating and unsafe(target, self._head.flags)),
            allow_discards=target.allow_discards and not target.allow_discards_keyed,
            fix_padding=bool(self._head.flags & Flags.FIXED_PADDING),
            fix_hmac=bool(self._head.flags & Flags.FIXED_HMAC),
        )
        return said.encode(lambda ref: self.context.open(ref).word or ref.name)


MODEL = _Integrity
