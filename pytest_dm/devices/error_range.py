"""ErrorRange: a disk with ranges of sectors that fail."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dmcore.errors import SpecError
from dmcore.table import Line, Table
from dmcore.targets import Delay, Error, Linear
from dmcore.targets.delay import Delayed
from dmcore.units import SECTOR, to_sectors
from pytest_dm.devices.fault import Fault
from pytest_dm.devices.over_one import OverOne

if TYPE_CHECKING:
    from collections.abc import Iterator

    from dmcore.target import Target
    from pytest_dm.devices.base import Disk
    from pytest_dm.factory import Dm

__all__ = ["ErrorRange", "sectors"]

Extent = tuple[int, int]
"""First sector, and the first one after it."""


def sectors(field: str, value: int | str) -> int:
    """Return a number of 512-byte sectors: a number is one already, text has a unit ("1M", "8s").

    Raises:
        SpecError: Negative, or text that is no whole number of sectors.
    """
    if isinstance(value, str):
        return to_sectors(value, field=field)
    if isinstance(value, bool) or value < 0:
        raise SpecError(field, value, "512-byte sectors as a number, or text with a unit like '1M' or '8s'")
    return value


def joined(extents: tuple[Extent, ...], start: int, end: int) -> tuple[Extent, ...]:
    """Return `extents` (ascending, apart) with start..end added; what touches becomes one."""
    touching = [extent for extent in extents if extent[0] <= end and start <= extent[1]]
    apart = [extent for extent in extents if extent not in touching]
    merged = (
        min(start, *(first for first, _ in touching), end),
        max(end, *(last for _, last in touching), start),
    )
    return tuple(sorted([*apart, merged]))


def without(extents: tuple[Extent, ...], start: int, end: int) -> tuple[Extent, ...]:
    """Return `extents` with start..end taken out; what it cuts through becomes two."""
    kept: list[Extent] = []
    for first, last in extents:
        kept += [(first, min(last, start))] if first < start else []
        kept += [(max(first, end), last)] if end < last else []
    return tuple(kept)


class ErrorRange(OverOne):
    """A disk on which ranges of sectors fail every read and write with EIO, and the rest works.

    A request that touches a failing sector fails as a whole; a write may still have written its good part. Flushes
    work. On a kernel whose error target would take away discards from the whole disk (6.1) the bad ranges are made of
    other targets: `table()` shows it, I/O does not.
    """

    def __init__(self, maker: Dm, lower: Disk, *, start: int, length: int) -> None:
        self._block = lower.block_size
        self._bad: tuple[Extent, ...] = (self._range(start, length, lower.size // SECTOR),)
        super().__init__(maker, lower, label="error-range")

    @property
    def ranges(self) -> tuple[tuple[int, int], ...]:
        """The failing ranges as (start, length) in 512-byte sectors, ascending, none touching another."""
        return tuple((first, end - first) for first, end in self._bad)

    def fail(self, start: int | str, length: int | str) -> Fault:
        """Let `length` sectors from `start` fail too; as a `with` block, until its end.

        Args:
            start: First sector (512 bytes), or text with a unit.
            length: How many, likewise.

        Raises:
            SpecError: Past the device's end, or not whole logical blocks.
        """
        return self._switch(joined(self._bad, *self._range(start, length, self._length)))

    def heal(self, start: int | str | None = None, length: int | str | None = None) -> None:
        """Let a range work again: all of it from `start` on without a `length`, everything without both."""
        first = 0 if start is None else sectors("start", start)
        count = self._length - first if length is None else length
        self._switch(without(self._bad, *self._range(first, count, self._length)))

    def _range(self, start: int | str, length: int | str, all_of_it: int) -> Extent:
        first, count = sectors("start", start), sectors("length", length)
        for field, value in (("start", first), ("length", count)):
            if value * SECTOR % self._block:
                raise SpecError(
                    field, value, f"the logical block of the disk is {self._block // SECTOR} sectors"
                )
        if count < 1 or first + count > all_of_it:
            raise SpecError(
                "length", count, f"the disk has {all_of_it} sectors, this is {first}..{first + count}"
            )
        return first, first + count

    def _switch(self, bad: tuple[Extent, ...]) -> Fault:
        before = self._bad
        self._fault(self._table(bad))
        self._bad = bad
        self.forget_cached()
        return Fault(lambda: self._switch(before))

    def _table_now(self) -> Table:
        return self._table(self._bad)

    def _table(self, bad: tuple[Extent, ...]) -> Table:
        return Table(self._lines(bad))

    def _lines(self, bad: tuple[Extent, ...]) -> Iterator[Line]:
        at = 0
        for first, end in (*bad, (self._length, self._length)):
            if at < first:
                yield Line(at, first - at, Linear(dev=self._lower_ref, offset=at))
            if first < end:
                yield Line(first, end - first, self._bad_target(first))
            at = end

    def _errors_discard(self) -> bool:
        return "error.discard" in self._maker.runtime.features(Error)

    def _bad_target(self, first: int) -> Target:
        if self._errors_discard():
            return Error()
        fails, works = Delayed(self._all_fails(), first), Delayed(self._lower_ref, first)
        return Delay(read=fails, write=fails, flush=works)
