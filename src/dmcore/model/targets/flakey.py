"""flakey: faults on a schedule. Sources: drivers/md/dm-flakey.c (flakey_map, flakey_end_io, corrupt_bio_common, clone_bio)."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

from dmcore.model.block import fault, is_zero_page
from dmcore.model.target import Area, ModelTarget
from dmcore.targets.flakey import ALWAYS, Direction, Flakey
from dmcore.units import SECTOR

if TYPE_CHECKING:
    from collections.abc import Iterable
    from random import Random

    from dmcore.model.target import Context
    from dmcore.targets.flakey import Corrupt

__all__ = ["MODEL"]

_READ, _WRITE = 0, 1
"""Operation bits of a request's flags (REQ_OP_READ, REQ_OP_WRITE)."""
_MOST_COPIED = 4 << 20
"""Bytes of the largest request that is corrupted as one (UIO_MAXIOV pages); the rest is a request of its own."""


class _Corruption:
    """What happens to the data of requests of one direction."""

    def __init__(self, fixed: Corrupt | None, chance: int, random: Random) -> None:
        self._fixed = fixed
        self._chance = chance
        self._random = random

    def chosen(self, flags: int, length: int) -> list[tuple[int, int]]:
        """Return the bytes of a request of `length` bytes that change, and what they become."""
        changes: list[tuple[int, int]] = []
        fixed = self._fixed
        if fixed is not None and flags & fixed.flags == fixed.flags and fixed.byte <= length:
            changes.append((fixed.byte - 1, fixed.value))
        if self._chance and self._random.randrange(ALWAYS) < self._chance:
            changes.append((self._random.randrange(length), self._random.randrange(256)))
        return changes


def _apply(changes: list[tuple[int, int]], data: bytearray | memoryview) -> None:
    for at, value in changes:
        data[at] = value


class _Flakey(ModelTarget[Flakey]):
    """One line. Kernels without "flakey.error_reads" (6.1) do some things otherwise.

    They corrupt what is left of a read when the device below is done with it, which is the whole above a dm device and
    nothing above a disk; and the zeros of BLKZEROOUT, a page of the kernel's own, stay zeros.
    """

    def __init__(self, target: Flakey, context: Context) -> None:
        super().__init__(target, context)
        (self._dev,) = self.lower
        self._offset = target.offset
        self._loaded = context.clock.now
        self._old = "flakey.error_reads" not in context.features
        fixed = target.corrupt
        nothing = not (
            target.drop_writes
            or target.error_writes
            or target.error_reads
            or fixed
            or target.random_read_corrupt
            or target.random_write_corrupt
        )
        self._error_reads = target.error_reads or nothing
        self._error_writes = target.error_writes or nothing
        reads = fixed if fixed and fixed.direction is Direction.READ else None
        writes = fixed if fixed and fixed.direction is Direction.WRITE else None
        self._reads = _Corruption(reads, target.random_read_corrupt or 0, context.random)
        self._writes = _Corruption(writes, target.random_write_corrupt or 0, context.random)

    def params(self) -> str:
        """Return the line; kernels like 6.1 also print that there is no fault word."""
        text = super().params()
        return f"{text} 0" if self._old and len(text.split()) == 4 else text

    @property
    def areas(self) -> Iterable[Area]:
        """The part used."""
        return (Area(self._dev, self._offset, self.context.length),)

    @property
    def discards(self) -> bool:
        """Whether the device below takes them."""
        return self._dev.discards

    @property
    def _down(self) -> bool:
        """Whether the schedule, which began when the table was loaded, is in a time of faults; it counts full seconds."""
        seconds = (self.context.clock.now - self._loaded) // 1000
        return seconds % (self.target.up + self.target.down) >= self.target.up

    def readinto(self, sector: int, buffer: memoryview, flags: int) -> None:
        """Read below; when down, fail or corrupt what was read."""
        down = self._down
        if down and self._error_reads:
            raise fault(errno.EIO)
        self._dev.readinto(self._offset + sector, buffer, flags)
        if down and not (self._old and self._dev.advances):
            _apply(self._reads.chosen(flags | _READ, len(buffer)), buffer)

    def _served(self) -> bool:
        """Return whether a write, discard or flush goes below; when down, it may be dropped instead.

        Raises:
            OSError: EIO: it fails.
        """
        if not self._down:
            return True
        if self._error_writes:
            raise fault(errno.EIO)
        return not self.target.drop_writes

    def write(self, sector: int, data: memoryview, flags: int) -> None:
        """Write below; when down, fail, drop it, or write a corrupted copy."""
        if not self._served():
            return
        if self._down and not (self._old and is_zero_page(data)):
            first = data if self._old else data[:_MOST_COPIED]
            if changes := self._writes.chosen(flags | _WRITE, len(first)):
                self._write_corrupted(sector, first, flags, changes)
                if len(first) < len(data):
                    self.write(sector + len(first) // SECTOR, data[len(first) :], flags)
                return
        self._dev.write(self._offset + sector, data, flags)

    def _write_corrupted(
        self, sector: int, data: memoryview, flags: int, changes: list[tuple[int, int]]
    ) -> None:
        copy = bytearray(data)
        _apply(changes, copy)
        self._dev.write(self._offset + sector, memoryview(copy), flags)

    def discard(self, sector: int, count: int) -> None:
        """Discard below; when down, fail or drop it."""
        if self._served():
            self._dev.discard(self._offset + sector, count)

    def flush(self) -> None:
        """Flush below; when down, fail or drop it."""
        if self._served():
            super().flush()


MODEL = _Flakey
