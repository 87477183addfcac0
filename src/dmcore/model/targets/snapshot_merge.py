"""snapshot-merge: a snapshot's chunks go back to the origin, while it is in use.

Source: drivers/md/dm-snap.c (snapshot_merge_map, snapshot_merge_next_chunks, merge_callback, snapshot_merge_resume).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dmcore.errors import FormatError
from dmcore.model.targets._exception_store import PersistentStore
from dmcore.model.targets._snapshot import Shot, copy

if TYPE_CHECKING:
    from collections.abc import Iterable

    from dmcore.model.block import BlockDevice
    from dmcore.model.targets._exception_store import Run

__all__ = ["MODEL"]


class _SnapshotMerge(Shot):
    merging = True
    _running = False

    @property
    def flushed(self) -> Iterable[BlockDevice]:
        """Origin and COW device."""
        return (self.origin, self.cow)

    def resume(self) -> None:
        """Take over exceptions, learn at which chunks requests are cut, and begin to merge."""
        super().resume()
        self.max_io_len = self.group.min_chunk
        self._running = True

    def presuspend(self) -> None:
        """Stop merging."""
        self._running = False

    def settle(self) -> None:
        """Merge all chunks, the newest first."""
        while self._running:
            self._running = self._merge_next()

    def _merge_next(self) -> bool:
        """Merge chunks that follow each other; return whether there may be more."""
        store = self.store
        if not self.valid or not isinstance(store, PersistentStore):
            return False
        try:
            run = store.last_run()
            if run is None:
                return False
            if self._copy_back(run):
                self.origin.flush()
                store.merged(run)
                return True
        except (OSError, FormatError):
            pass
        self.merge_failed = True
        return False

    def _copy_back(self, run: Run) -> bool:
        size = self.store.chunk
        first = run.old * size
        count = min(run.length * size, self.origin.sectors - first)
        if count <= 0:
            return False
        for sector in range(first, first + run.length * size, self.max_io_len):
            self.group.preserve(sector)
        return copy(self.cow, run.new * size, self.origin, first, count)

    def _place(self, sector: int) -> int | None:
        return self.place(sector) if self.valid else None

    def readinto(self, sector: int, buffer: memoryview, flags: int) -> None:
        """Read a chunk that is not merged from the COW device, all else from the origin."""
        at = sector + self.context.start
        place = self._place(at)
        if place is None:
            self.origin.readinto(at, buffer, flags)
        else:
            self.cow.readinto(place, buffer, flags)

    def write(self, sector: int, data: memoryview, flags: int) -> None:
        """Write a chunk that is not merged to the COW device; else to the origin, for its other snapshots to see."""
        at = sector + self.context.start
        place = self._place(at)
        if place is None:
            self.group.write(at, data, flags, 0)
        else:
            self.cow.write(place, data, flags)

    def discard(self, sector: int, count: int) -> None:
        """Do nothing, successfully."""
        del sector, count


MODEL = _SnapshotMerge
