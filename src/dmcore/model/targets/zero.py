"""zero: reads zeros, swallows writes. Sources: drivers/md/dm-zero.c (zero_map)."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

from dmcore.model.block import RAHEAD, fault, zeros
from dmcore.model.target import ModelTarget
from dmcore.targets.zero import Zero

if TYPE_CHECKING:
    from collections.abc import Iterable

    from dmcore.model.block import BlockDevice

__all__ = ["MODEL"]


class _Zero(ModelTarget[Zero]):
    @property
    def flushed(self) -> Iterable[BlockDevice]:
        """Nothing: a flush is swallowed."""
        return ()

    @property
    def discards(self) -> bool:
        """Kernels with "zero.discard" take them."""
        return "zero.discard" in self.context.features

    def data_extents(self) -> Iterable[tuple[int, int]]:
        """Yield nothing."""
        return ()

    def readinto(self, sector: int, buffer: memoryview, flags: int) -> None:
        """Give zeros; read-ahead fails."""
        del sector
        if flags & RAHEAD:
            raise fault(errno.EIO)
        buffer[:] = zeros(len(buffer))

    def write(self, sector: int, data: memoryview, flags: int) -> None:
        """Swallow."""
        del sector, data, flags

    def discard(self, sector: int, count: int) -> None:
        """Swallow."""
        del sector, count


MODEL = _Zero
