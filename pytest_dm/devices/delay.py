"""Delay: a slow disk."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dmcore import targets, validate
from dmcore.params import U32_MAX
from dmcore.table import Table
from dmcore.targets.delay import Delayed
from dmcore.units import SECTOR
from pytest_dm.devices.base import DmDevice
from pytest_dm.devices.fault import Fault

if TYPE_CHECKING:
    from pytest_dm.devices.base import Disk
    from pytest_dm.factory import Dm

__all__ = ["Delay"]


class Delay(DmDevice):
    """A disk that answers late. The kernel counts in its clock ticks (4 or 10 ms) and may be a tick early; a model is exact.

    `dm_backend.monotonic()` is the clock that sees it on both.

    Attributes:
        read_ms: How long reads wait, in milliseconds.
        write_ms: How long writes and discards wait.
        flush_ms: How long flushes wait.
    """

    def __init__(self, maker: Dm, lower: Disk, *, read_ms: int, write_ms: int, flush_ms: int) -> None:
        self.read_ms = read_ms
        self.write_ms = write_ms
        self.flush_ms = flush_ms
        self._lower_ref = lower.ref
        self._length = lower.size // SECTOR
        table = self._table(read_ms, write_ms, flush_ms)
        super().__init__(maker, table, label="delay", lower=lower)

    def set(
        self, *, read_ms: int | None = None, write_ms: int | None = None, flush_ms: int | None = None
    ) -> Fault:
        """Change delays from now on; None leaves one as it is. As a `with` block, until its end.

        Requests that wait now are sent on at once.

        Raises:
            SpecError: Not 0..2^32-1 milliseconds.
        """
        old_read, old_write, old_flush = self.read_ms, self.write_ms, self.flush_ms
        read = old_read if read_ms is None else read_ms
        write = old_write if write_ms is None else write_ms
        flush = old_flush if flush_ms is None else flush_ms
        self._fault(self._table(read, write, flush))
        self.read_ms, self.write_ms, self.flush_ms = read, write, flush
        self.forget_cached()
        return Fault(lambda: self.set(read_ms=old_read, write_ms=old_write, flush_ms=old_flush))

    def _table(self, read: int, write: int, flush: int) -> Table:
        for field, value in (("read_ms", read), ("write_ms", write), ("flush_ms", flush)):
            validate.integer(field, value, 0, U32_MAX, "milliseconds")
        ref = self._lower_ref
        delay = targets.Delay(
            read=Delayed(ref, 0, read), write=Delayed(ref, 0, write), flush=Delayed(ref, 0, flush)
        )
        return Table.of(delay, self._length)
