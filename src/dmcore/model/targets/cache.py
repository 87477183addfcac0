"""cache: the often used blocks of a slow device on a fast one.

Sources: drivers/md/dm-cache-target.c (map_bio, process_discard_bio, cache_preresume, sync_metadata, cache_status,
cache_message). What a policy takes into the cache is its secret: the model takes in nothing, and serves what is there.
"""

from __future__ import annotations

import errno
import re
from enum import IntEnum
from typing import TYPE_CHECKING

from dmcore.errors import FormatError, ParseError, SpecError
from dmcore.formats.cache import CacheFlag, Statistics
from dmcore.formats.persistent_data import BLOCK_SECTORS
from dmcore.model.block import FUA, SYNC, fault
from dmcore.model.target import Area, ModelTarget
from dmcore.model.targets._cache import CacheMetadata
from dmcore.params import Tokens
from dmcore.targets.cache import MQ_TUNABLES, Cache, CacheMode, Policy
from dmcore.units import SECTOR

if TYPE_CHECKING:
    from collections.abc import Iterable

    from dmcore.model.block import BlockDevice
    from dmcore.model.target import Context

__all__ = ["MODEL"]

_THRESHOLD = 2048
_MOST_DISCARD_BLOCKS = 1 << 14
_COPY_SECTORS = 2048
_RANGE = re.compile(r"([0-9]{1,20})(?:-([0-9]{1,20}))?")


class _Mode(IntEnum):
    WRITE = 0
    READ_ONLY = 1
    FAIL = 2


class _Cache(ModelTarget[Cache]):
    def __init__(self, target: Cache, context: Context) -> None:
        super().__init__(target, context)
        self._metadata_dev, self._cache, self._origin = self.lower
        self.max_io_len = self._block = target.block_sectors
        self._blocks = self._cache.sectors // self._block
        if not self._blocks:
            reason = f"larger than the cache device, which has {self._cache.sectors} sectors"
            raise SpecError("block_sectors", self._block, reason)
        self._origin_blocks = context.length // self._block
        self._policy = Policy.SMQ if target.policy is Policy.DEFAULT else target.policy
        self._passdown = not target.no_discard_passdown and self._origin.discards
        self._threshold = _THRESHOLD if target.migration_threshold is None else target.migration_threshold
        self._discard_sectors = self._block
        while context.length // self._discard_sectors > _MOST_DISCARD_BLOCKS:
            self._discard_sectors *= 2
        self._mode = _Mode.WRITE
        self._suspended = True
        self._loaded = False
        self._where: dict[int, int] = {}
        self._dirty: set[int] = set()
        self._discarded: set[int] = set()
        self._metadata = self._open()
        self._read_statistics()
        if CacheFlag.NEEDS_CHECK in self._metadata.now.flags:
            raise FormatError(
                "the metadata have to be checked and repaired (cache_repair) before they are used", 4
            )

    def _open(self) -> CacheMetadata:
        version = 2 if self.target.metadata2 else 1
        return CacheMetadata(self._metadata_dev, self._block, version)

    def _read_statistics(self) -> None:
        found = self._metadata.now.statistics
        self._hits = {"read": found.read_hits, "write": found.write_hits}
        self._misses = {"read": found.read_misses, "write": found.write_misses}
        self._demotions = 0

    # -- metadata ----------------------------------------------------------------------------------------------------

    def _commit(self, *, clean: bool = False) -> bool:
        """End a transaction (commit); return whether it worked."""
        if self._mode is not _Mode.WRITE:
            return False
        try:
            self._metadata.commit(clean=clean)
        except OSError:
            self._give_up()
            return False
        return True

    def _give_up(self) -> None:
        """Go back to the last transaction, which needs a check now, and write no more (metadata_operation_failed)."""
        self._mode = _Mode.READ_ONLY
        try:
            self._metadata = self._open()
            self._metadata.commit(clean=False, needs_check=True)
        except (OSError, FormatError):
            self._mode = _Mode.FAIL

    def _load(self) -> None:
        """Read mappings and discards (cache_preresume)."""
        self._metadata = metadata = self._open()
        if self.target.mode is CacheMode.PASSTHROUGH and not metadata.clean:
            raise fault(errno.EINVAL)
        where: dict[int, int] = {}
        dirty: set[int] = set()
        for cblock, oblock, is_dirty in list(metadata.mappings()):
            if is_dirty:
                self._check_dirty(cblock, oblock)
            if oblock in where:
                reason = f"blocks {where[oblock]} and {cblock} of the cache are both for block {oblock}"
                raise FormatError(reason, metadata.now.mappings * 4096)
            if oblock >= self._origin_blocks:
                metadata.remove(cblock)
            elif cblock < self._blocks:
                where[oblock] = cblock
                dirty.update([cblock] if is_dirty else [])
        if metadata.now.blocks != self._blocks:
            metadata.resize(self._blocks)
        self._where, self._dirty = where, dirty
        self._load_discards()
        self._loaded = True

    def _check_dirty(self, cblock: int, oblock: int) -> None:
        """Refuse to lose what is on the cache device only."""
        if self.target.mode is CacheMode.PASSTHROUGH:
            raise fault(errno.EBUSY)
        if oblock >= self._origin_blocks:
            raise fault(errno.EFBIG)
        if cblock >= self._blocks:
            raise fault(errno.EINVAL)

    def _load_discards(self) -> None:
        """Take over whole blocks that are discarded; the size of a block may have changed since."""
        old, new = self._metadata.now.discard_sectors, self._discard_sectors
        bits = list(self._metadata.discards)
        whole = -(-self.context.length // new)
        self._discarded = set()
        while bits and old:
            first = last = bits.pop(0)
            while bits and bits[0] == last + 1:
                last = bits.pop(0)
            self._discarded.update(range(-(-first * old // new), min((last + 1) * old // new, whole)))

    # -- a table's life ----------------------------------------------------------------------------------------------

    @property
    def areas(self) -> Iterable[Area]:
        """The line's length of the origin."""
        return (Area(self._origin, 0, self.context.length),)

    @property
    def discards(self) -> bool:
        """Always."""
        return True

    @property
    def discard_granularity(self) -> int:
        """The origin's where discards are passed to it, else the block that discards are remembered for."""
        return self._origin.discard_granularity if self._passdown else self._discard_sectors * SECTOR

    def preresume(self) -> None:
        """Read the metadata; from now on, until a clean end, dirty bits on the disk do not count."""
        if not self._loaded:
            self._load()
        if self._mode is _Mode.WRITE and not self._commit():
            raise fault(errno.EINVAL)

    def resume(self) -> None:
        """Let the background work go on."""
        self._suspended = False

    def postsuspend(self) -> None:
        """Write all that is known, as a clean end."""
        self._suspended = True
        if self._mode is not _Mode.WRITE or not self._loaded:
            return
        metadata = self._metadata
        metadata.set_dirty(self._dirty)
        bits = -(-self.context.length // self._discard_sectors)
        metadata.discards.resize_bits(bits)
        for bit in range(bits):
            metadata.discards.set(bit, to=bit in self._discarded)
        counts = (self._hits["read"], self._misses["read"], self._hits["write"], self._misses["write"])
        statistics = Statistics(*(count % 2**32 for count in counts))
        metadata.now = metadata.now._replace(statistics=statistics, discard_sectors=self._discard_sectors)
        metadata.set_policy(self._policy)
        self._commit(clean=True)

    def settle(self) -> None:
        """Write dirty blocks back, as the policies do when there is nothing else to do."""
        allowed = self._policy is Policy.CLEANER or self._block <= self._threshold
        if self._suspended or not allowed or self._mode is not _Mode.WRITE:
            return
        for oblock, cblock in self._where.items():
            if cblock in self._dirty and self._copy_back(oblock, cblock):
                self._dirty.discard(cblock)

    def _copy_back(self, oblock: int, cblock: int) -> bool:
        try:
            for at in range(0, self._block, _COPY_SECTORS):
                count = min(_COPY_SECTORS, self._block - at)
                data = self._cache.read(cblock * self._block + at, count)
                self._origin.write(oblock * self._block + at, memoryview(data), SYNC)
        except OSError:
            return False
        return True

    # -- requests ----------------------------------------------------------------------------------------------------

    def _find(self, sector: int, kind: str) -> int | None:
        """Return the block of the cache device for a request, and count it; None for the origin."""
        oblock = sector // self._block
        if oblock >= self._origin_blocks:
            return None
        cblock = self._where.get(oblock)
        (self._misses if cblock is None else self._hits)[kind] += 1
        return cblock

    def _place(self, cblock: int, sector: int) -> int:
        return cblock * self._block + sector % self._block

    def readinto(self, sector: int, buffer: memoryview, flags: int) -> None:
        """Read from the cache device what is there; a passthrough reads the origin."""
        cblock = self._find(sector, "read")
        if cblock is None or self.target.mode is CacheMode.PASSTHROUGH:
            self._origin.readinto(sector, buffer, flags)
        else:
            self._cache.readinto(self._place(cblock, sector), buffer, flags)

    def write(self, sector: int, data: memoryview, flags: int) -> None:
        """Write what is cached to the cache device, the origin, or both, as the mode says; the rest to the origin."""
        cblock = self._find(sector, "write")
        mode = self.target.mode
        if sector // self._block < self._origin_blocks:
            self._discarded.discard(sector // self._discard_sectors)
        taken_out = cblock is not None and mode is CacheMode.PASSTHROUGH
        if cblock is not None and taken_out:
            self._invalidate(cblock)
            if not self._commit():
                raise fault(errno.EIO)
            cblock = None
        if flags & FUA and self._metadata.changed and not self._commit():
            raise fault(errno.EIO)
        through = mode is CacheMode.WRITETHROUGH and cblock not in self._dirty
        failed: OSError | None = None
        if cblock is None or through:
            try:
                self._origin.write(sector, data, flags)
            except OSError as error:
                failed = error
        if cblock is not None:
            if not through:
                self._dirty.add(cblock)
            self._cache.write(self._place(cblock, sector), data, flags)
        if failed is not None:
            raise failed
        self._demotions += taken_out

    def _invalidate(self, cblock: int) -> None:
        for oblock, there in self._where.items():
            if there == cblock:
                del self._where[oblock]
                self._metadata.remove(cblock)
                return

    def flush(self) -> None:
        """Commit what changed, then flush origin and cache device."""
        if self._metadata.changed and not self._commit():
            raise fault(errno.EIO)
        super().flush()

    @property
    def flushed(self) -> Iterable[BlockDevice]:
        """Origin and cache device."""
        return (self._origin, self._cache)

    def discard(self, sector: int, count: int) -> None:
        """Remember whole blocks, and discard on the origin; what is cached stays as it is."""
        if sector // self._block < self._origin_blocks:
            size = self._discard_sectors
            if count >= size:
                self._discarded.update(range(-(-sector // size), (sector + count) // size))
            if not self._passdown:
                return
        self._origin.discard(sector, count)

    # -- what it says ------------------------------------------------------------------------------------------------

    def status(self) -> str:
        """Commit, unless suspended; return the use of metadata and cache, the counts, the features and the mode."""
        if self._mode is not _Mode.FAIL and not self._suspended:
            self._commit()
        if self._mode is _Mode.FAIL:
            return "Fail"
        target, metadata = self.target, self._metadata
        features = ["metadata2"] if target.metadata2 else []
        features += [str(target.mode)]
        features += [] if self._passdown else ["no_discard_passdown"]
        tunables = [f"{name} 0" for name in MQ_TUNABLES] if self._policy is Policy.MQ else []
        hits, misses = self._hits, self._misses
        check = CacheFlag.NEEDS_CHECK in metadata.now.flags
        words = [
            f"{BLOCK_SECTORS} {metadata.used}/{metadata.total} {self._block}",
            f"{len(self._where)}/{self._blocks}",
            f"{hits['read']} {misses['read']} {hits['write']} {misses['write']} {self._demotions} 0 {len(self._dirty)}",
            *[str(len(features)), *features, f"2 migration_threshold {self._threshold}"],
            *[self._policy, str(2 * len(tunables)), *tunables],
            "rw" if self._mode is _Mode.WRITE else "ro",
            "needs_check" if check else "-",
        ]
        return " ".join(words)

    def message(self, words: list[str]) -> str:
        """Take `invalidate_cblocks`, `migration_threshold` or a tunable of the policy."""
        if self._mode is not _Mode.WRITE:
            raise fault(errno.EOPNOTSUPP)
        name = words[0].lower()
        if name == "invalidate_cblocks":
            self._invalidate_message(words[1:])
            return ""
        tunable = self._policy is Policy.MQ and name in MQ_TUNABLES
        if len(words) != 2 or not (tunable or name == "migration_threshold"):
            raise fault(errno.EINVAL)
        try:
            value = Tokens(words[1]).strict("a number", bits=64)
        except ParseError:
            raise fault(errno.EINVAL) from None
        if name == "migration_threshold":
            self._threshold = value
        return ""

    def _invalidate_message(self, ranges: list[str]) -> None:
        if self.target.mode is not CacheMode.PASSTHROUGH:
            raise fault(errno.EPERM)
        for text in ranges:
            match = _RANGE.fullmatch(text)
            if match is None:
                raise fault(errno.EINVAL)
            first = int(match[1])
            end = first + 1 if match[2] is None else int(match[2])
            if not first < end <= self._blocks:
                raise fault(errno.EINVAL)
            for cblock in range(first, end):
                self._invalidate(cblock)


MODEL = _Cache
