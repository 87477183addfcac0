"""Delay: a slow disk."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dmcore import targets
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
    """A disk that answers late. The kernel counts in its clock ticks (4 or 10 ms) and may be a tick early.

    Attributes:
        read_ms: How long reads wait, in milliseconds.
        write_ms: How long writes and discards wait.
        flush_ms: How long flushes wait.
    """

    def __init__(self, maker: Dm, lower: Disk, *, read_ms: int, write_ms: int, flush_ms: int) -> None:
        self.read_ms, self.write_ms, self.flush_ms = read_ms, write_ms, flush_ms
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
        before = (self.read_ms, self.write_ms, self.flush_ms)
        given = (read_ms, write_ms, flush_ms)
        read, write, flush = (old if new is None else new for old, new in zip(before, given, strict=True))
        self._fault(self._table(read, write, flush))
        self.read_ms, self.write_ms, self.flush_ms = read, write, flush
        self.forget_cached()
        return Fault(lambda: self.set(read_ms=before[0], write_ms=before[1], flush_ms=before[2]))

    def _table(self, read: int, write: int, flush: int) -> Table:
        each = (Delayed(self._lower_ref, 0, ms) for ms in (read, write, flush))
        return Table.of(
            targets.Delay(**dict(zip(("read", "write", "flush"), each, strict=True))), self._length
        )
