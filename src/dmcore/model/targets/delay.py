"""delay: requests wait by their class; virtual time passes. Sources: drivers/md/dm-delay.c (delay_map, delay_bio, delay_status)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dmcore.model.target import Area, ModelTarget
from dmcore.targets.delay import Delay

if TYPE_CHECKING:
    from collections.abc import Iterable

    from dmcore.model.block import BlockDevice
    from dmcore.model.target import Context
    from dmcore.targets.delay import Delayed

__all__ = ["MODEL"]


class _Delay(ModelTarget[Delay]):
    def __init__(self, target: Delay, context: Context) -> None:
        super().__init__(target, context)
        self._read = target.read
        self._write = target.write or target.read
        self._flush = target.flush or self._write
        self._devices = [context.open(each.dev) for each in (self._read, self._write, self._flush)]

    @property
    def areas(self) -> Iterable[Area]:
        """The part of each class."""
        offsets = (self._read.offset, self._write.offset, self._flush.offset)
        length = self.context.length
        return [Area(dev, offset, length) for dev, offset in zip(self._devices, offsets, strict=True)]

    @property
    def flushed(self) -> Iterable[BlockDevice]:
        """The device for flushes alone."""
        return (self._devices[2],)

    @property
    def discards(self) -> bool:
        """Whether all devices take them."""
        return all(dev.discards for dev in self._devices)

    def _at(self, sector: int, each: Delayed) -> int:
        """Wait; return where the request goes."""
        self.context.clock.advance(each.ms)
        return each.offset + sector

    def readinto(self, sector: int, buffer: memoryview, flags: int) -> None:
        """Wait as reads do, then read."""
        self._devices[0].readinto(self._at(sector, self._read), buffer, flags)

    def write(self, sector: int, data: memoryview, flags: int) -> None:
        """Wait as writes do, then write; the data is what it was when the wait began."""
        self._devices[1].write(self._at(sector, self._write), data, flags)

    def discard(self, sector: int, count: int) -> None:
        """Wait as writes do, then discard."""
        self._devices[1].discard(self._at(sector, self._write), count)

    def flush(self) -> None:
        """Wait as flushes do, then flush the device for them."""
        self._at(0, self._flush)
        self._devices[2].flush()

    def status(self) -> str:
        """Return that nothing waits: a request is done when it returns, and its wait has passed by then."""
        return "0 0 0"


MODEL = _Delay
