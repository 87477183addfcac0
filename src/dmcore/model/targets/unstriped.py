"""unstriped: one leg's chunks of a striped device. Sources: drivers/md/dm-unstripe.c (map_to_core, unstripe_map)."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

from dmcore.model.block import fault
from dmcore.model.target import Area, ModelTarget
from dmcore.targets.unstriped import Unstriped
from dmcore.units import SECTOR

if TYPE_CHECKING:
    from collections.abc import Iterable

    from dmcore.model.block import BlockDevice
    from dmcore.model.target import Context

__all__ = ["MODEL"]


class _Unstriped(ModelTarget[Unstriped]):
    def __init__(self, target: Unstriped, context: Context) -> None:
        super().__init__(target, context)
        (self._dev,) = self.lower
        self.max_io_len = target.chunk
        self._first = target.offset + target.index * target.chunk
        self._skipped = (target.stripes - 1) * target.chunk

    @property
    def areas(self) -> Iterable[Area]:
        """As many sectors from the offset on as the line has: all that the kernel checks."""
        return (Area(self._dev, self.target.offset, self.context.length),)

    @property
    def flushed(self) -> Iterable[BlockDevice]:
        """None: flushes end here."""
        return ()

    def _place(self, sector: int, count: int) -> int:
        """Return where a piece of a chunk lies.

        Raises:
            OSError: EIO: behind the end of the device.
        """
        lower = self._first + sector + sector // self.max_io_len * self._skipped
        if lower + count > self._dev.sectors:
            raise fault(errno.EIO)
        return lower

    def readinto(self, sector: int, buffer: memoryview, flags: int) -> None:
        """Read from the chunk's place."""
        self._dev.readinto(self._place(sector, len(buffer) // SECTOR), buffer, flags)

    def write(self, sector: int, data: memoryview, flags: int) -> None:
        """Write to the chunk's place."""
        self._dev.write(self._place(sector, len(data) // SECTOR), data, flags)


MODEL = _Unstriped
