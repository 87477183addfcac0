"""clone: a destination that fills with the source's regions as they are written, and in the background.

Sources: drivers/md/dm-clone-target.c (clone_map, hydrate_bio_region, process_discard_bio, do_hydration, commit_metadata,
clone_status, clone_message), drivers/md/dm-clone-metadata.c.
"""

from __future__ import annotations

import errno
from enum import IntEnum
from typing import TYPE_CHECKING

from dmcore.errors import FormatError, ParseError, SpecError
from dmcore.formats.clone import SUPERBLOCK, SuperBlock
from dmcore.formats.persistent_data import BLOCK_SECTORS, Reader, SpaceMapRoot
from dmcore.formats.persistent_writer import Bitset, Metadata
from dmcore.model.block import FUA, SYNC, fault
from dmcore.model.target import Area, ModelTarget
from dmcore.params import Tokens
from dmcore.targets.clone import Clone
from dmcore.units import SECTOR

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from dmcore.model.block import BlockDevice
    from dmcore.model.target import Context

__all__ = ["MODEL"]

_COPY_SECTORS = 2048


class _Mode(IntEnum):
    WRITE = 0
    READ_ONLY = 1
    FAIL = 2


class _Clone(ModelTarget[Clone]):
    def __init__(self, target: Clone, context: Context) -> None:
        super().__init__(target, context)
        self._metadata_dev, self._dest, self._source = self.lower
        self.max_io_len = self._region = target.region_sectors
        for device in (self._source, self._dest):
            if self._region % (device.block_size // SECTOR):
                reason = f"not a multiple of the {device.block_size}-byte blocks of {device.word}"
                raise SpecError("region_sectors", self._region, reason)
        self._regions = -(-context.length // self._region)
        self._hydrate = not target.no_hydration
        self._passdown = not target.no_discard_passdown and self._dest.discards
        self._threshold = 1 if target.hydration_threshold is None else target.hydration_threshold
        self._batch = 1 if target.hydration_batch_size is None else target.hydration_batch_size
        self._mode = _Mode.WRITE
        self._suspended = True
        self._changed = False
        self._load(may_format=True)

    # -- metadata ----------------------------------------------------------------------------------------------------

    def _load(self, *, may_format: bool) -> None:
        """Read the metadata, or format the device (dm_clone_metadata_open)."""
        device = self._metadata_dev
        found = SuperBlock.read(Reader(device))
        if found is None:
            if not may_format:
                raise fault(errno.EPERM)
            self._metadata = Metadata(device)
            self._bits = Bitset(self._metadata)
            self._bits.resize_bits(self._regions)
            self._save()
            return
        if (found.region_sectors, found.sectors) != (self._region, self.context.length):
            there = f"{found.sectors} sectors in regions of {found.region_sectors}"
            asked = f"{self.context.length} in regions of {self._region}"
            raise FormatError(f"the metadata are of a clone of {there}, not {asked}", 172)
        self._metadata = Metadata.open(device, found.space_map)
        tree = self._metadata.reader.bitset(found.bitset, self._regions, "bitset of regions")
        self._bits = Bitset(self._metadata, found.bitset, tree, self._regions)

    def _save(self) -> None:
        root = self._bits.save()

        def superblock(space_map: bytes) -> bytearray:
            where = SpaceMapRoot.decode(space_map, 0)
            return SuperBlock(where, self._region, self.context.length, root).encode()

        self._metadata.commit(SUPERBLOCK, superblock)

    def _commit(self) -> bool:
        """Make durable which regions are hydrated (commit_metadata); return whether it could, or nothing changed."""
        if not self._changed:
            return True
        if self._mode is not _Mode.WRITE:
            return False
        try:
            self._dest.flush()
            self._save()
        except OSError:
            self._give_up()
            return False
        self._changed = False
        if self._hydrated == self._regions:
            self.context.event()
        return True

    def _give_up(self) -> None:
        """Go back to the last transaction, and write no more (__metadata_operation_failed)."""
        self._mode = _Mode.READ_ONLY
        try:
            self._load(may_format=False)
        except (OSError, FormatError):
            self._mode = _Mode.FAIL

    # -- a table's life ----------------------------------------------------------------------------------------------

    @property
    def areas(self) -> Iterable[Area]:
        """The line's length of source and destination."""
        return [Area(device, 0, self.context.length) for device in (self._source, self._dest)]

    @property
    def flushed(self) -> Iterable[BlockDevice]:
        """The destination."""
        return (self._dest,)

    @property
    def discards(self) -> bool:
        """Always: a discarded region needs no copy."""
        return True

    def resume(self) -> None:
        """Let the background work go on."""
        self._suspended = False

    def postsuspend(self) -> None:
        """Commit."""
        self._suspended = True
        self._commit()

    def settle(self) -> None:
        """Copy all regions that can be copied, if that is enabled; commit."""
        if self._suspended:
            return
        if self._hydrate and self._threshold and self._mode is _Mode.WRITE:
            for first, count in self._batches():
                self._copy(first, count)
        self._commit()

    def _batches(self) -> Iterator[tuple[int, int]]:
        """Yield `(region, regions)` of what is copied as one."""
        most = min(max(self._batch, 1), self._threshold)
        region = 0
        while region < self._regions:
            first = region
            while region < min(self._regions, first + most) and not self._bits.test(region):
                region += 1
            if region > first:
                yield first, region - first
            else:
                region += 1

    # -- regions -----------------------------------------------------------------------------------------------------

    @property
    def _hydrated(self) -> int:
        return int.from_bytes(self._bits.data, "little").bit_count()

    def _set_hydrated(self, region: int) -> None:
        if not self._bits.test(region):
            self._bits.set(region)
        self._changed = True

    def _copy(self, first: int, count: int) -> bool:
        """Copy regions from the source; return whether it worked (hydration_copy)."""
        at, end = first * self._region, min((first + count) * self._region, self.context.length)
        try:
            while at < end:
                step = min(_COPY_SECTORS, end - at)
                self._dest.write(at, memoryview(self._source.read(at, step)), SYNC)
                at += step
        except OSError:
            return False
        for region in range(first, first + count):
            self._set_hydrated(region)
        return True

    # -- requests ----------------------------------------------------------------------------------------------------

    def _check(self) -> None:
        if self._mode is _Mode.FAIL:
            raise fault(errno.EIO)

    def readinto(self, sector: int, buffer: memoryview, flags: int) -> None:
        """Read from the destination if the region is there, else from the source."""
        self._check()
        device = self._dest if self._bits.test(sector // self._region) else self._source
        device.readinto(sector, buffer, flags)

    def write(self, sector: int, data: memoryview, flags: int) -> None:
        """Write to the destination; a region of which a part is written is copied before."""
        self._check()
        region = sector // self._region
        if not self._bits.test(region):
            if self._mode is not _Mode.WRITE:
                raise fault(errno.EIO)
            if len(data) == self._region * SECTOR:
                self._dest.write(sector, data, flags)
                self._set_hydrated(region)
                if flags & FUA:
                    self._commit_for_request()
                return
            if not self._copy(region, 1):
                raise fault(errno.EIO)
        if flags & FUA:
            self._commit_for_request()
        self._dest.write(sector, data, flags)

    def _commit_for_request(self) -> None:
        if not self._commit():
            raise fault(errno.EIO)

    def flush(self) -> None:
        """Commit, which flushes the destination; without changes only flush it."""
        self._check()
        if not self._changed:
            self._dest.flush()
        elif not self._commit():
            raise fault(errno.EIO)

    def discard(self, sector: int, count: int) -> None:
        """Let whole regions count as hydrated, and discard them on the destination."""
        self._check()
        first, end = -(-sector // self._region), (sector + count) // self._region
        if first >= end:
            return
        missing = [region for region in range(first, end) if not self._bits.test(region)]
        if missing and self._mode is not _Mode.WRITE:
            return
        for region in missing:
            self._set_hydrated(region)
        if self._passdown:
            self._dest.discard(first * self._region, (end - first) * self._region)

    # -- what it says ------------------------------------------------------------------------------------------------

    def status(self) -> str:
        """Commit, unless suspended; return the use of the metadata, the regions, the features and the mode."""
        if self._mode is not _Mode.FAIL and not self._suspended:
            self._commit()
        if self._mode is _Mode.FAIL:
            return "Fail"
        features = [] if self._hydrate else ["no_hydration"]
        features += [] if self._passdown else ["no_discard_passdown"]
        words = [
            f"{BLOCK_SECTORS} {self._metadata.used}/{self._metadata.blocks}",
            f"{self._region} {self._hydrated}/{self._regions} 0",
            *[str(len(features)), *features],
            f"4 hydration_threshold {self._threshold} hydration_batch_size {self._batch}",
            "rw" if self._mode is _Mode.WRITE else "ro",
        ]
        return " ".join(words)

    def message(self, words: list[str]) -> str:
        """Take `enable_hydration`, `disable_hydration`, `hydration_threshold N` or `hydration_batch_size N`."""
        name = words[0].lower()
        if name in {"enable_hydration", "disable_hydration"}:
            self._hydrate = name == "enable_hydration"
            return ""
        if len(words) != 2 or name not in {"hydration_threshold", "hydration_batch_size"}:
            raise fault(errno.EINVAL)
        try:
            value = Tokens(words[1]).strict("a number of regions")
        except ParseError:
            raise fault(errno.EINVAL) from None
        if name == "hydration_threshold":
            self._threshold = value
        else:
            self._batch = value
        return ""


MODEL = _Clone
