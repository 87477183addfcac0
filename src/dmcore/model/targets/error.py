"""error: every read and write fails. Sources: drivers/md/dm-target.c (io_err_map)."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

from dmcore.model.block import fault
from dmcore.model.target import ModelTarget
from dmcore.targets.error import Error

if TYPE_CHECKING:
    from collections.abc import Iterable

    from dmcore.model.block import BlockDevice

__all__ = ["MODEL"]


class _Error(ModelTarget[Error]):
    @property
    def flushed(self) -> Iterable[BlockDevice]:
        """Nothing: a flush is swallowed with success."""
        return ()

    @property
    def discards(self) -> bool:
        """Kernels with "error.discard" take them, and fail them."""
        return "error.discard" in self.context.features

    def readinto(self, sector: int, buffer: memoryview, flags: int) -> None:
        """Fail with EIO."""
        del sector, buffer, flags
        raise fault(errno.EIO)

    def write(self, sector: int, data: memoryview, flags: int) -> None:
        """Fail with EIO."""
        del sector, data, flags
        raise fault(errno.EIO)

    def discard(self, sector: int, count: int) -> None:
        """Fail with EIO."""
        del sector, count
        raise fault(errno.EIO)


MODEL = _Error
