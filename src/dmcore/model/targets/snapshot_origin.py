"""snapshot-origin: a device whose snapshots copy what is about to be written.

Source: drivers/md/dm-snap.c (origin_map, origin_resume).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dmcore.model.target import Area, ModelTarget
from dmcore.model.targets._snapshot import Origin
from dmcore.targets.snapshot_origin import SnapshotOrigin

if TYPE_CHECKING:
    from collections.abc import Iterable

    from dmcore.model.target import Context

__all__ = ["MODEL"]


class _SnapshotOrigin(ModelTarget[SnapshotOrigin]):
    def __init__(self, target: SnapshotOrigin, context: Context) -> None:
        super().__init__(target, context)
        (self._origin,) = self.lower
        self._group = Origin(self._origin, context)
        self._boundary = 0

    @property
    def areas(self) -> Iterable[Area]:
        """The line's length of the origin."""
        return (Area(self._origin, 0, self.context.length),)

    def resume(self) -> None:
        """Learn at which chunks writes are cut: those of the snapshots that are loaded by now."""
        self._boundary = self._group.min_chunk

    def readinto(self, sector: int, buffer: memoryview, flags: int) -> None:
        """Read from the origin."""
        self._origin.readinto(sector + self.context.start, buffer, flags)

    def write(self, sector: int, data: memoryview, flags: int) -> None:
        """Let the snapshots copy what they lack, then write to the origin."""
        self._group.write(sector + self.context.start, data, flags, self._boundary)


MODEL = _SnapshotOrigin
