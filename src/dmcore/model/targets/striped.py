"""striped: chunks in turn on several devices. Sources: drivers/md/dm-stripe.c (stripe_map, stripe_map_range, stripe_end_io)."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

from dmcore.model.block import extents_within, merged, pieces
from dmcore.model.target import Area, ModelTarget
from dmcore.targets.striped import Striped

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from dmcore.model.block import BlockDevice
    from dmcore.model.target import Context

__all__ = ["MODEL"]

_MOST_EVENTS = 15


class _Striped(ModelTarget[Striped]):
    def __init__(self, target: Striped, context: Context) -> None:
        super().__init__(target, context)
        self.max_io_len = target.chunk
        self._offsets = [leg.offset for leg in target.legs]
        self._errors = [0] * len(self.lower)

    @property
    def flushed(self) -> Iterable[BlockDevice]:
        """Every stripe, also where two lie on one device."""
        return self.lower

    @property
    def areas(self) -> Iterable[Area]:
        """Each stripe's part."""
        length = self.context.length // len(self.lower)
        return [Area(dev, offset, length) for dev, offset in zip(self.lower, self._offsets, strict=True)]

    @property
    def discards(self) -> bool:
        """Whether all stripes take them."""
        return all(dev.discards for dev in self.lower)

    @property
    def zeroes_natively(self) -> bool:
        """Whether all stripes do."""
        return all(dev.zeroes_natively for dev in self.lower)

    def _place(self, sector: int) -> tuple[int, int]:
        chunk, rest = divmod(sector, self.max_io_len)
        row, leg = divmod(chunk, len(self.lower))
        return leg, self._offsets[leg] + row * self.max_io_len + rest

    def data_extents(self) -> Iterable[tuple[int, int]]:
        """Yield the chunks in which a stripe has something."""
        return merged(*(self._extents_of(leg) for leg in range(len(self.lower))))

    def _extents_of(self, leg: int) -> Iterator[tuple[int, int]]:
        """Yield what stripe `leg` has, by sectors of the line."""
        chunk, count = self.max_io_len, len(self.lower)
        length = self.context.length // count
        for first, sectors in extents_within(self.lower[leg], self._offsets[leg], length):
            for piece in pieces(first, sectors, chunk):
                row, rest = divmod(piece.sector, chunk)
                yield (row * count + leg) * chunk + rest, piece.length

    def _failed(self, dev: BlockDevice, error: OSError) -> None:
        """Count the failure for every stripe on the device; the first ones raise an event each."""
        if error.errno == errno.EOPNOTSUPP:
            return
        for leg, each in enumerate(self.lower):
            if each is dev:
                self._errors[leg] += 1
                if self._errors[leg] < _MOST_EVENTS:
                    self.context.event()

    def readinto(self, sector: int, buffer: memoryview, flags: int) -> None:
        """Read from the chunk's stripe."""
        leg, at = self._place(sector)
        dev = self.lower[leg]
        try:
            dev.readinto(at, buffer, flags)
        except OSError as error:
            self._failed(dev, error)
            raise

    def write(self, sector: int, data: memoryview, flags: int) -> None:
        """Write to the chunk's stripe."""
        leg, at = self._place(sector)
        dev = self.lower[leg]
        try:
            dev.write(at, data, flags)
        except OSError as error:
            self._failed(dev, error)
            raise

    def _bound(self, sector: int, leg: int) -> int:
        """Return the first sector of stripe `leg`, without its offset, at or behind `sector` of the line."""
        chunk, rest = divmod(sector, self.max_io_len)
        row, on = divmod(chunk, len(self.lower))
        if on == leg:
            return row * self.max_io_len + rest
        return (row + 1) * self.max_io_len if leg < on else row * self.max_io_len

    def _ranges(self, sector: int, count: int) -> Iterator[tuple[int, int, int]]:
        """Yield `(stripe, sector on its device, sectors)` of a range: one contiguous part of each stripe."""
        for leg, offset in enumerate(self._offsets):
            begin, end = self._bound(sector, leg), self._bound(sector + count, leg)
            if begin < end:
                yield leg, offset + begin, end - begin

    def discard(self, sector: int, count: int) -> None:
        """Discard each stripe's part in one piece."""
        self._all(sector, count, lambda dev, at, length: dev.discard(at, length))

    def write_zeroes(self, sector: int, count: int) -> None:
        """Zero each stripe's part in one piece."""
        self._all(sector, count, lambda dev, at, length: dev.write_zeroes(at, length))

    def _all(self, sector: int, count: int, do: Callable[[BlockDevice, int, int], None]) -> None:
        failed: OSError | None = None
        for leg, at, length in self._ranges(sector, count):
            try:
                do(self.lower[leg], at, length)
            except OSError as error:
                self._failed(self.lower[leg], error)
                failed = error
        if failed is not None:
            raise failed

    def status(self) -> str:
        """Return the stripes' devices, and `A` or `D` for each: without or with errors so far."""
        words = " ".join(dev.word for dev in self.lower)
        health = "".join("D" if errors else "A" for errors in self._errors)
        return f"{len(self.lower)} {words} 1 {health}"


MODEL = _Striped
