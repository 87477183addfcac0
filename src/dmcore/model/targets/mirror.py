"""mirror: the same on all legs, and a log of where it is.

Sources: drivers/md/dm-raid1.c (mirror_map, mirror_end_io, do_reads, do_writes, do_failures, fail_mirror, do_recovery),
drivers/md/dm-region-hash.c (dm_rh_update_states, rh_inc, dm_rh_dec, dm_rh_mark_nosync).
"""

from __future__ import annotations

import errno
from enum import Enum, auto
from typing import TYPE_CHECKING

from dmcore.errors import Unsupported
from dmcore.model.block import FUA, RAHEAD, Suspended, extents_within, fault, merged, pieces
from dmcore.model.target import Area, ModelTarget
from dmcore.model.targets._mirror_log import DiskRegions, Regions
from dmcore.targets.mirror import DiskLog, LegState, Mirror, Sync, UserspaceLog
from dmcore.units import SECTOR

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from dmcore.model.block import BlockDevice
    from dmcore.model.target import Context

__all__ = ["MODEL"]

_COPIED = 1024
"""Sectors of a region that are copied at once (the sub-jobs of dm-kcopyd)."""
_WORST = (LegState.FLUSH_FAILED, LegState.WRITE_FAILED, LegState.SYNC_FAILED, LegState.READ_FAILED)
"""What befell a leg, the worst first."""
_THE_DISKS = {errno.EOPNOTSUPP, errno.EINVAL}
"""Failures of a read that say nothing about the leg."""


class _Hashed(Enum):
    """What the region hash knows better than the log."""

    WRITTEN = auto()
    """It was in sync and was written: clean again as soon as somebody looks."""
    DIRTY = auto()
    """The same, but a write that was begun there was not done."""
    NOSYNC = auto()


class _Leg:
    """A leg, and what befell it.

    Attributes:
        failed: Whether it is not to be read any more.
    """

    def __init__(self, device: BlockDevice, offset: int) -> None:
        self.device = device
        self.offset = offset
        self.failed = False
        self.failures: set[LegState] = set()

    @property
    def state(self) -> LegState:
        if not self.failed:
            return LegState.ALIVE
        return next((state for state in _WORST if state in self.failures), LegState.UNKNOWN)


class _Mirror(ModelTarget[Mirror]):
    def __init__(self, target: Mirror, context: Context) -> None:
        super().__init__(target, context)
        log = target.log
        if isinstance(log, UserspaceLog):
            raise Unsupported(
                "a daemon for the userspace log", "models have none", 'use a "core" or "disk" log'
            )
        below = self.lower[-len(target.legs) :]
        self._legs = [_Leg(device, leg.offset) for device, leg in zip(below, target.legs, strict=True)]
        self._default = self._legs[0]
        self.max_io_len = log.region
        self._live = self._recovers = False
        self._log = (
            DiskRegions(log, context.length, self.lower[0], self._flush_legs, self._event)
            if isinstance(log, DiskLog)
            else Regions(log, context.length)
        )
        self._hash: dict[int, _Hashed] = {}
        self._in_sync = log.sync is Sync.NOSYNC
        self._log_failed = self._leg_failed = self._flush_failed = False
        self._handles = target.handle_errors
        self._holds = target.handle_errors and not target.keep_log
        self._woken = False
        self._next: int | None = None

    def _event(self) -> None:
        if self._live:
            self.context.event()

    # -- what dm asks ------------------------------------------------------------------------------------------------

    @property
    def areas(self) -> Iterable[Area]:
        """The legs' parts; nobody checks the log's device."""
        return [Area(leg.device, leg.offset, self.context.length) for leg in self._legs]

    @property
    def flushed(self) -> Iterable[BlockDevice]:
        """The legs."""
        return dict.fromkeys(leg.device for leg in self._legs)

    @property
    def discards(self) -> bool:
        """Whether all legs take them."""
        return all(leg.device.discards for leg in self._legs)

    def data_extents(self) -> Iterable[tuple[int, int]]:
        """What any leg may hold."""
        length = self.context.length
        return merged(*(extents_within(leg.device, leg.offset, length) for leg in self._legs))

    def status(self) -> str:
        """Return the legs, the regions in sync, a letter per leg, and how the log does."""
        names = " ".join(leg.device.word for leg in self._legs)
        letters = "".join(leg.state for leg in self._legs)
        return (
            f"{len(self._legs)} {names} {self._log.synced}/{self._log.count} 1 {letters} {self._log.status()}"
        )

    # -- legs --------------------------------------------------------------------------------------------------------

    def _fail(self, leg: _Leg, failure: LegState) -> None:
        """Note a failure; the first of its kind may make another leg the one to read from."""
        self._leg_failed = leg.failed = True
        if failure in leg.failures:
            return
        leg.failures.add(failure)
        if not self._handles:
            return
        if leg is self._default and (self._in_sync or not self._holds):
            self._default = next((other for other in self._legs if not other.failed), leg)
        self._event()

    def _flush_legs(self) -> bool:
        good = True
        for leg in self._legs:
            try:
                leg.device.flush()
            except OSError:
                self._fail(leg, LegState.FLUSH_FAILED)
                good = False
        return good

    def _choose(self) -> _Leg | None:
        """Return the leg to read from: the default one, or one before it that is good."""
        at = self._legs.index(self._default)
        order = (self._legs[(at - step) % len(self._legs)] for step in range(len(self._legs)))
        return next((leg for leg in order if not leg.failed), None)

    # -- the thread (do_mirror) --------------------------------------------------------------------------------------

    def _look(self) -> None:
        """Clean what was written, find the next region to copy, and see whether everything is in sync by now."""
        self._woken = False
        for region in [region for region, state in self._hash.items() if state is _Hashed.WRITTEN]:
            del self._hash[region]
            self._log.clear(region)
        self._log.flush()
        if self._recovers and self._next is None:
            self._next = self._log.next_resync()
        if not self._in_sync and self._log.synced == self._log.count:
            self._event()
            self._in_sync = True
            self._leg_failed = False
            for leg in self._legs:
                leg.failed = False
                leg.failures.clear()

    def _is_synced(self, region: int) -> bool:
        """Whether a region counts as in sync for requests; the hash knows better than the log."""
        state = self._hash.get(region)
        return self._log.in_sync(region) if state is None else state is not _Hashed.NOSYNC

    def resume(self) -> None:
        """Read the log, and look for the first region that is not in sync."""
        self._live = self._recovers = True
        self._log.resume()
        self._look()

    def presuspend(self) -> None:
        """Put away what was written, and copy no more."""
        self._recovers = False
        self._next = None
        if self._woken:
            self._look()

    def postsuspend(self) -> None:
        """Write the log."""
        self._log.flush()

    def settle(self) -> None:
        """Copy the default leg to the others where they are not in sync, region by region."""
        if self._woken:
            self._look()
        while (region := self._next) is not None:
            good = self._copy(region)
            self._hash.pop(region, None)
            if good:
                self._log.clear(region)
            self._log.set_sync(region, value=good or not self._handles)
            self._next = None
            self._look()

    def _copy(self, region: int) -> bool:
        """Copy a region; without `handle_errors` go on past failures."""
        first = region * self.max_io_len
        count = min(self.max_io_len, self.context.length - first)
        unread, unwritten = False, set[int]()
        source = self._default
        for piece in pieces(first, count, _COPIED):
            data = bytearray(piece.length * SECTOR)
            try:
                source.device.readinto(source.offset + piece.sector, memoryview(data), 0)
            except OSError:
                unread = True
                if self._handles:
                    break
                data = bytearray(len(data))
            for index, leg in enumerate(self._legs):
                if leg is source:
                    continue
                try:
                    leg.device.write(leg.offset + piece.sector, memoryview(data), 0)
                except OSError:
                    unwritten.add(index)
            if unwritten and self._handles:
                break
        if unread:
            self._fail(source, LegState.SYNC_FAILED)
        for index in sorted(unwritten):
            self._fail(self._legs[index], LegState.SYNC_FAILED)
        return not unread and not unwritten

    # -- requests ----------------------------------------------------------------------------------------------------

    def readinto(self, sector: int, buffer: memoryview, flags: int) -> None:
        """Read from the default leg; where it is in sync, from another one if that fails."""
        region = sector // self.max_io_len
        if self._log.in_sync(region):
            leg = self._choose()
            if leg is None:
                raise fault(errno.EIO)
            try:
                leg.device.readinto(leg.offset + sector, buffer, flags)
            except OSError as error:
                if error.errno in _THE_DISKS or flags & RAHEAD:
                    raise
                self._fail(leg, LegState.READ_FAILED)
                if not self._may_retry(region):
                    raise
            else:
                return
        elif flags & RAHEAD:
            raise fault(errno.EIO)
        self._read_slowly(region, sector, buffer)

    def _may_retry(self, region: int) -> bool:
        return not self._default.failed or (self._log.in_sync(region) and self._choose() is not None)

    def _read_slowly(self, region: int, sector: int, buffer: memoryview) -> None:
        """Read by the thread, as long as there is a leg."""
        while True:
            self._look()
            leg = self._choose() if self._is_synced(region) else self._default
            if leg is None or leg.failed:
                raise fault(errno.EIO)
            try:
                leg.device.readinto(leg.offset + sector, buffer, 0)
            except OSError:
                self._fail(leg, LegState.READ_FAILED)
                if not self._may_retry(region):
                    raise fault(errno.EIO) from None
            else:
                return

    def write(self, sector: int, data: memoryview, flags: int) -> None:
        """Write to all legs where they are in sync, else to the default one."""
        self._look()
        region = sector // self.max_io_len
        if self._is_synced(region):
            if self._hash.get(region) is not _Hashed.DIRTY:
                self._hash[region] = _Hashed.DIRTY
                self._log.mark(region)
            self._flush_log()
            good = self._to_all(lambda leg: leg.device.write(leg.offset + sector, data, flags & FUA))
            self._ended(region, good=good)
            return
        self._hash[region] = _Hashed.NOSYNC
        self._flush_log()
        if self._leg_failed and self._holds:
            self._ended(region, good=False)
            return
        leg = self._default
        try:
            leg.device.write(leg.offset + sector, data, flags)
        finally:
            self._done(region)

    def _flush_log(self) -> None:
        self._log_failed |= not self._log.flush()

    def _to_all(self, request: Callable[[_Leg], None]) -> bool:
        """Do a write or flush on all legs, unless the log failed before; return whether all did it."""
        if self._log_failed and self._handles:
            return False
        failed: list[_Leg] = []
        for leg in self._legs:
            try:
                request(leg)
            except OSError:
                failed.append(leg)
        for leg in failed:
            self._fail(leg, LegState.WRITE_FAILED)
        return not failed

    def _ended(self, region: int | None, *, good: bool) -> None:
        """End a write to `region`, or a flush (None); one that a leg failed may have to wait (do_failures).

        Raises:
            OSError: EIO: no leg is left, or `keep_log` and the log failed.
            Suspended: The kernel would let it wait for a suspend.
        """
        if good:
            self._done(region)
            return
        self._look()
        if not self._log_failed:
            self._in_sync = False
            if region is None:
                self._flush_failed = True
            else:
                self._log.set_sync(region, value=False)
                self._hash[region] = _Hashed.NOSYNC
        if all(leg.failed for leg in self._legs) or (self.target.keep_log and self._log_failed):
            self._done(region)
            raise fault(errno.EIO)
        if self._holds:
            message = (
                "a leg or the log failed: the kernel would hold this write until the mirror is suspended"
            )
            raise Suspended(message)
        self._done(region)

    def _done(self, region: int | None) -> None:
        if region is None:
            return
        self._woken = True
        if self._flush_failed:
            self._hash[region] = _Hashed.NOSYNC
        elif self._hash.get(region) is _Hashed.DIRTY:
            self._hash[region] = _Hashed.WRITTEN

    def flush(self) -> None:
        """Flush the legs, and the log before them."""
        self._look()
        self._flush_log()
        self._ended(None, good=self._to_all(lambda leg: leg.device.flush()))

    def discard(self, sector: int, count: int) -> None:
        """Discard on all legs; a failure changes nothing, and comes as EOPNOTSUPP."""
        self._look()
        self._flush_log()
        if self._log_failed and self._handles:
            self._ended(None, good=False)
            return
        failed = False
        for leg in self._legs:
            try:
                leg.device.discard(leg.offset + sector, count)
            except OSError:
                failed = True
        if failed:
            raise fault(errno.EOPNOTSUPP)


MODEL = _Mirror
