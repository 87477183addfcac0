"""linear: a piece of another device. Sources: drivers/md/dm-linear.c (linear_map)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dmcore.model.block import extents_within
from dmcore.model.target import Area, ModelTarget
from dmcore.targets.linear import Linear

if TYPE_CHECKING:
    from collections.abc import Iterable

    from dmcore.model.target import Context

__all__ = ["MODEL"]


class _Linear(ModelTarget[Linear]):
    def __init__(self, target: Linear, context: Context) -> None:
        super().__init__(target, context)
        (self._dev,) = self.lower
        self._offset = target.offset

    @property
    def areas(self) -> Iterable[Area]:
        """The piece."""
        return (Area(self._dev, self._offset, self.context.length),)

    @property
    def discards(self) -> bool:
        """Whether the device below takes them."""
        return self._dev.discards

    @property
    def zeroes_natively(self) -> bool:
        """Whether the device below does."""
        return self._dev.zeroes_natively

    @property
    def tag_size(self) -> int:
        """Those of the device below (DM_TARGET_PASSES_INTEGRITY)."""
        return self._dev.tag_size

    @property
    def tag_interval(self) -> int:
        """Those of the device below."""
        return self._dev.tag_interval

    def data_extents(self) -> Iterable[tuple[int, int]]:
        """Yield those of the piece."""
        return extents_within(self._dev, self._offset, self.context.length)

    def readinto_tagged(self, sector: int, buffer: memoryview, tags: memoryview, flags: int) -> None:
        """Read below."""
        self._dev.readinto_tagged(self._offset + sector, buffer, tags, flags)

    def write_tagged(self, sector: int, data: memoryview, tags: memoryview, flags: int) -> None:
        """Write below."""
        self._dev.write_tagged(self._offset + sector, data, tags, flags)

    def readinto(self, sector: int, buffer: memoryview, flags: int) -> None:
        """Read below."""
        self._dev.readinto(self._offset + sector, buffer, flags)

    def write(self, sector: int, data: memoryview, flags: int) -> None:
        """Write below."""
        self._dev.write(self._offset + sector, data, flags)

    def discard(self, sector: int, count: int) -> None:
        """Discard below."""
        self._dev.discard(self._offset + sector, count)

    def write_zeroes(self, sector: int, count: int) -> None:
        """Zero below."""
        self._dev.write_zeroes(self._offset + sector, count)


MODEL = _Linear
