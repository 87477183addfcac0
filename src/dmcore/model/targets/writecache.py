"""writecache: writes go to a fast device, and from there to the origin.

Sources: drivers/md/dm-writecache.c (writecache_ctr, writecache_map_read, writecache_map_write, writecache_bio_copy_ssd,
writecache_flush, writecache_writeback, writecache_resume, writecache_suspend). Only the SSD mode: what persistent memory
holds has the same format, and opens with `s` in the table.
"""

from __future__ import annotations

import errno
from dataclasses import astuple, dataclass
from typing import TYPE_CHECKING

from dmcore.errors import FormatError, SpecError
from dmcore.formats.writecache import (
    ENTRY,
    NEVER,
    SUPER_BYTES,
    SuperBlock,
    entries_bytes,
    most_blocks,
)
from dmcore.model.block import FUA, META, SYNC, fault
from dmcore.model.stores import read_exactly
from dmcore.model.target import Area, ModelTarget
from dmcore.model.targets._writecache import Entries
from dmcore.targets.writecache import Medium, Writecache
from dmcore.units import SECTOR

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from dmcore.model.block import BlockDevice
    from dmcore.model.target import Context

__all__ = ["MODEL"]

_WATERMARKS = 50, 45
_AUTOCOMMIT = 65536
_MOST_METADATA = 1 << 30


@dataclass(slots=True)
class _Counts:
    reads: int = 0
    read_hits: int = 0
    writes: int = 0
    write_hits_uncommitted: int = 0
    write_hits_committed: int = 0
    writes_around: int = 0
    writes_allocate: int = 0
    blocked_on_freelist: int = 0
    flushes: int = 0
    discards: int = 0


class _Writecache(ModelTarget[Writecache]):
    def __init__(self, target: Writecache, context: Context) -> None:
        super().__init__(target, context)
        self._origin, self._cache = self.lower
        if target.medium is Medium.PMEM:
            raise fault(errno.EOPNOTSUPP)
        self._block = target.block_size // SECTOR
        largest = max(device.block_size for device in self.lower)
        if target.block_size < largest:
            raise SpecError("block_size", target.block_size, f"below the devices' logical block, {largest}")
        if target.start_sector >= self._cache.sectors:
            raise SpecError("start_sector", target.start_sector, "lies past the end of the cache device")
        self._size = (self._cache.sectors - target.start_sector) * SECTOR
        self._failed = False
        self._suspended = True
        self._due = False
        self._overwrote = False
        self._uncommitted = 0
        self._counts = _Counts()
        self._open()
        self._set_watermarks()
        self._cleaner = self._flush_on_suspend = False
        if target.cleaner:
            self._activate_cleaner()

    # -- metadata ----------------------------------------------------------------------------------------------------

    def _open(self) -> None:
        """Read the superblock, or format the cache where there is none (writecache_ctr, init_memory)."""
        block_size, start = self.target.block_size, self.target.start_sector
        fits = most_blocks(self._size, block_size)
        if not fits:
            raise fault(errno.ENOSPC)
        if entries_bytes(fits, block_size) > _MOST_METADATA:
            raise fault(errno.ENOMEM)
        found = SuperBlock.decode(self._cache.read(start, self._block), self._size)
        if found is None:
            found = SuperBlock(block_size, fits)
            self._format(found)
        if found.block_size != block_size:
            raise FormatError(f"the cache has blocks of {found.block_size} bytes, not {block_size}", 8)
        self._blocks = found.blocks
        self._metadata_bytes = entries_bytes(found.blocks, block_size)
        self._entries = Entries(bytearray(self._metadata_bytes), found.blocks, self._block)

    def _format(self, new: SuperBlock) -> None:
        metadata = bytearray(entries_bytes(new.blocks, new.block_size))
        metadata[:SUPER_BYTES] = new._replace(magic=0).encode()
        metadata[SUPER_BYTES : SUPER_BYTES + new.blocks * ENTRY.size] = ENTRY.pack(NEVER, NEVER) * new.blocks
        self._entries = Entries(metadata, new.blocks, self._block)
        self._entries.touch_all()
        self._commit()
        metadata[:SUPER_BYTES] = new.encode()
        self._entries.touch(0)
        self._commit()

    def _set_watermarks(self) -> None:
        given = self.target.high_watermark, self.target.low_watermark
        percents = [
            default if value is None else value for value, default in zip(given, _WATERMARKS, strict=True)
        ]
        self._high, self._low = ((self._blocks * (100 - percent) + 50) // 100 for percent in percents)

    def _activate_cleaner(self) -> None:
        self._flush_on_suspend = self._cleaner = True
        self._high = self._low = self._blocks

    def _try(self, request: Callable[[], None]) -> bool:
        """Do a request of the target's own; one that fails makes the target fail for good."""
        try:
            request()
        except OSError:
            self._failed = True
            return False
        return True

    def _commit(self) -> None:
        """Write the changed metadata (ssd_commit_flushed)."""
        start = self.target.start_sector
        for at, data in self._entries.changed():
            self._try(lambda at=at, data=data: self._cache.write(start + at // SECTOR, data, SYNC))  # type: ignore[misc]
        self._try(self._cache.flush)

    def _commit_super(self) -> None:
        length = min(max(4096, self.target.block_size), self._metadata_bytes)
        data = memoryview(self._entries.metadata)[:length]
        self._try(lambda: self._cache.write(self.target.start_sector, data, SYNC | FUA))

    def _flush(self) -> None:
        """Commit what was written since the last time (writecache_flush)."""
        entries = self._entries
        self._uncommitted = 0
        newest = entries.newest
        if newest is None:
            return
        if entries.committed(newest):
            if self._overwrote:
                self._try(self._cache.flush)
                self._overwrote = False
            return
        fresh = entries.uncommitted()
        for index in fresh:
            entries.touch(index)
        self._commit()
        entries.advance()
        self._commit_super()
        self._overwrote = False
        replaced = False
        for index in fresh:
            if (old := entries.older(index)) is not None:
                entries.release(old)
                replaced = True
        if replaced:
            self._commit()

    # -- a table's life ----------------------------------------------------------------------------------------------

    @property
    def areas(self) -> Iterable[Area]:
        """The line's length of the origin."""
        return (Area(self._origin, 0, self.context.length),)

    @property
    def block_size(self) -> int:
        """The cache's block."""
        return self.target.block_size

    @property
    def discards(self) -> bool:
        """Whether the origin takes them."""
        return self._origin.discards

    def preresume(self) -> None:
        """Read the entries from the disk, and free those that do not count."""
        size, start = self._metadata_bytes, self.target.start_sector
        data = bytearray(self._entries.metadata)
        try:
            data = read_exactly(self._cache, start, size // SECTOR, "the cache's metadata")
        except OSError:
            self._failed = True
            data[SUPER_BYTES:] = b"\xff" * (size - SUPER_BYTES)
        self._entries = Entries(data, self._blocks, self._block)
        try:
            self._entries.load()
        except FormatError as error:
            raise FormatError(error.what, start * SECTOR + error.offset) from None
        self._failed |= self._entries.identical
        if self._entries.dirty:
            self._commit()
        self._check_watermark()
        self._suspended = False

    def postsuspend(self) -> None:
        """Commit, and write back what is due, or all after `flush_on_suspend` or as a cleaner."""
        self._flush()
        whole, self._flush_on_suspend = self._flush_on_suspend, False
        self._write_back(whole=whole)
        self._suspended = True

    def settle(self) -> None:
        """Commit, and write back: down to the low watermark if the high one was reached; all if blocks may get too old."""
        if not self._suspended and not self._failed:
            self._flush()
            self._write_back(whole=self.target.max_age_ms is not None)

    def _check_watermark(self) -> None:
        if self._entries.free + self._entries.writing <= self._high:
            self._due = True

    def _write_back(self, *, whole: bool) -> None:
        """Write back everything, or, once the high watermark was reached, as much as the low one asks for."""
        due, self._due = self._due, False
        if self._failed or not (whole or due):
            return
        entries = self._entries
        runs: list[list[int]] = []
        if whole:
            self._flush()
            taken: set[int] = set()
            for index in entries.all():
                if index not in taken:
                    runs.append(entries.take(index))
                    taken.update(runs[-1])
        while (
            not whole
            and entries.free + entries.writing <= self._low
            and (oldest := entries.oldest) is not None
        ):
            runs.append(entries.take(oldest))
        for run in runs:
            self._try(lambda run=run: self._copy(run))  # type: ignore[misc]
        self._try(self._origin.flush)
        for run in runs:
            entries.written(run, free=not self._failed)
        self._commit()

    def _copy(self, run: list[int]) -> None:
        """Copy neighbouring blocks to the origin; what lies past its end is left out."""
        sector, _ = self._entries.get(run[0])
        count = min(len(run) * self._block, self._origin.sectors - sector)
        if count > 0:
            self._origin.write(sector, memoryview(self._cache.read(self._place(run[0]), count)))

    # -- requests ----------------------------------------------------------------------------------------------------

    def _place(self, index: int) -> int:
        return self.target.start_sector + self._metadata_bytes // SECTOR + index * self._block

    def _check(self, sector: int, count: int) -> None:
        if (sector | count) % self._block:
            raise fault(errno.EIO)

    def readinto(self, sector: int, buffer: memoryview, flags: int) -> None:
        """Read each block from where it is."""
        end = sector + len(buffer) // SECTOR
        self._check(sector, end)
        failed: OSError | None = None
        at = sector
        while at < end:
            index = self._entries.find(at)
            count = self._block if index is not None else self._entries.gap(at, end)
            self._counts.reads += count // self._block
            part = buffer[(at - sector) * SECTOR : (at + count - sector) * SECTOR]
            try:
                if index is None:
                    self._origin.readinto(at, part, flags)
                else:
                    self._counts.read_hits += 1
                    self._cache.readinto(self._place(index), part, flags)
            except OSError as error:
                failed = error
            at += count
        if failed is not None:
            raise failed

    def write(self, sector: int, data: memoryview, flags: int) -> None:
        """Write to the cache; to the origin where it has no room, or must not take more."""
        end = sector + len(data) // SECTOR
        self._check(sector, end)
        failed: OSError | None = None
        at = sector
        while at < end:
            if self._failed:
                self._counts.writes += (end - at) // self._block
                raise fault(errno.EIO)
            device, place, count = self._map_write(at, end, flags)
            part = data[(at - sector) * SECTOR : (at + count - sector) * SECTOR]
            try:
                device.write(place, part, flags)
            except OSError as error:
                failed = error
            at += count
        if failed is not None:
            raise failed

    def _map_write(self, at: int, end: int, flags: int) -> tuple[BlockDevice, int, int]:
        """Return `(device, sector there, sectors)` for the beginning of a write (writecache_map_write)."""
        counts, entries = self._counts, self._entries
        index = entries.find(at)
        if index is not None:
            if entries.committed(index):
                counts.write_hits_committed += 1
                self._overwrote = True
            else:
                counts.write_hits_uncommitted += 1
            blocks = self._extend_used(index, (end - at) // self._block)
        else:
            around = self._cleaner or (self.target.metadata_only and not flags & META)
            index = None if around else entries.pop(at)
            if index is None:
                count = entries.gap(at, end)
                counts.writes_around += count // self._block
                counts.writes += count // self._block
                return self._origin, at, count
            self._check_watermark()
            self._uncommitted += 1
            counts.writes_allocate += 1
            blocks = self._extend_free(index, at, (end - at) // self._block)
        counts.writes += blocks
        counts.writes_allocate += blocks - 1
        return self._cache, self._place(index), blocks * self._block

    def _extend_used(self, index: int, most: int) -> int:
        """Return how many blocks of the cache can be written over in one go."""
        blocks = 1
        while blocks < most:
            following = self._entries.after(index)
            if following is None or following[1] != index + 1:
                break
            index += 1
            self._overwrote |= self._entries.committed(index)
            blocks += 1
        return blocks

    def _extend_free(self, index: int, at: int, most: int) -> int:
        """Take more blocks behind the first one; also for sectors that have an entry, which this one then replaces."""
        blocks = 1
        while blocks < most:
            if self._entries.pop(at + blocks * self._block, index + blocks) is None:
                break
            self._check_watermark()
            self._uncommitted += 1
            blocks += 1
        return blocks

    def flush(self) -> None:
        """Commit, then flush the origin."""
        if self._failed:
            raise fault(errno.EIO)
        self._counts.flushes += 1
        self._flush()
        self._origin.flush()
        if self._failed:
            raise fault(errno.EIO)

    def discard(self, sector: int, count: int) -> None:
        """Forget the blocks, then discard on the origin."""
        self._check(sector, sector + count)
        self._counts.discards += count // self._block
        if self._failed:
            raise fault(errno.EIO)
        gone = self._entries.between(sector, sector + count)
        for index in gone:
            if not self._entries.committed(index):
                self._uncommitted -= 1
            self._entries.release(index)
        if gone:
            self._commit()
        self._origin.discard(sector, count)

    # -- what it says ------------------------------------------------------------------------------------------------

    def status(self) -> str:
        """Return error, blocks, free ones, those being written back, and the counts."""
        entries = self._entries
        numbers = (int(self._failed), self._blocks, entries.free, entries.writing, *astuple(self._counts))
        return " ".join(map(str, numbers))

    def message(self, words: list[str]) -> str:
        """Take `flush`, `flush_on_suspend`, `cleaner` or `clear_stats`."""
        known = {
            "flush": self._flush_message,
            "flush_on_suspend": self._flush_on_suspend_message,
            "cleaner": self._cleaner_message,
            "clear_stats": self._clear_stats_message,
        }
        do = known.get(words[0].lower())
        if do is None or len(words) > 1:
            raise fault(errno.EINVAL)
        do()
        return ""

    def _flush_message(self) -> None:
        if self._suspended:
            raise fault(errno.EBUSY)
        if not self._failed:
            self._flush()
            self._write_back(whole=True)
        if self._failed:
            raise fault(errno.EIO)

    def _flush_on_suspend_message(self) -> None:
        self._flush_on_suspend = True

    def _cleaner_message(self) -> None:
        self._activate_cleaner()
        if not self._suspended:
            self._check_watermark()

    def _clear_stats_message(self) -> None:
        self._counts = _Counts()


MODEL = _Writecache
