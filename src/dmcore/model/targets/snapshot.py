"""snapshot: a device as it was, and what was written to it since.

Source: drivers/md/dm-snap.c (snapshot_map, snapshot_io_hints).
"""

from __future__ import annotations

import errno
from functools import partial
from typing import TYPE_CHECKING

from dmcore.model.block import fault
from dmcore.model.targets._snapshot import Shot
from dmcore.units import SECTOR

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from dmcore.model.block import BlockDevice

__all__ = ["MODEL"]


class _Snapshot(Shot):
    @property
    def flushed(self) -> Iterable[BlockDevice]:
        """The COW device."""
        return (self.cow,)

    def readinto(self, sector: int, buffer: memoryview, flags: int) -> None:
        """Read a chunk from where it is."""
        if not self.valid:
            raise fault(errno.EIO)
        at = sector + self.context.start
        place = self.place(at)
        if place is None:
            self.origin.readinto(at, buffer, flags)
        else:
            self.cow.readinto(place, buffer, flags)

    def write(self, sector: int, data: memoryview, flags: int) -> None:
        """Write to the COW device; a chunk it does not hold is copied before, unless all of it is written."""
        if not self.valid or self.overflowed:
            raise fault(errno.EIO)
        at = sector + self.context.start
        if self.place(at) is None:
            new = self.store.prepare()
            if new is None:
                self._out_of_space()
                raise fault(errno.EIO)
            whole = len(data) == self.store.chunk * SECTOR
            if not self.keep(at // self.store.chunk, new, data if whole else None, flags):
                raise fault(errno.EIO)
            if whole:
                return
        place = self.place(at)
        assert place is not None
        self.cow.write(place, data, flags)

    def _out_of_space(self) -> None:
        if self.target.store.value == "PO":
            self.overflowed = True
        else:
            self.invalidate()

    def discard(self, sector: int, count: int) -> None:
        """Zero whole chunks that the COW device holds, discard parts of them, ignore the others.

        Requests are cut at the chunk's size from where the discard begins, not where chunks do: the limit that the
        target sets for the granularity is in the wrong unit, and a piece is taken for the chunk it begins in.
        """
        self.context.clock.together(self._discards(sector + self.context.start, count))

    def _discards(self, at: int, count: int) -> Iterator[Callable[[], None]]:
        unit = max(1, self.store.chunk // SECTOR)
        end = at + count
        while at < end:
            step = min(end - at, -at % unit or self.store.chunk)
            yield partial(self._discard, at, step)
            if self.target.discard_passdown_origin:
                yield partial(self.origin.discard, at, step)
            at += step

    def _discard(self, at: int, count: int) -> None:
        if not self.valid or self.overflowed:
            raise fault(errno.EIO)
        place = self.place(at)
        if place is None:
            return
        if place + count > self.cow.sectors:
            raise fault(errno.EIO)
        if count == self.store.chunk:
            self.cow.write_zeroes(place, count)
        else:
            self.cow.discard(place, count)


MODEL = _Snapshot
