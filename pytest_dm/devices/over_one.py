"""OverOne: what devices share that put faults before one disk."""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING

from dmcore.table import Line, Table
from dmcore.targets import Flakey, Linear
from dmcore.units import SECTOR
from pytest_dm.devices.base import DmDevice

if TYPE_CHECKING:
    from collections.abc import Iterator

    from dmcore.ref import Ref
    from pytest_dm.devices.base import Disk
    from pytest_dm.factory import Dm
    from pytest_dm.runtime import BareDevice

__all__ = ["OverOne"]


class OverOne(DmDevice):
    """A disk that passes to `lower`, the one below, what it lets pass: reading `lower` shows what really arrived."""

    def __init__(self, maker: Dm, lower: Disk, *, label: str) -> None:
        self._maker = maker
        self._lower_ref = lower.ref
        self._length = lower.size // SECTOR
        self._broken: BareDevice | None = None
        super().__init__(maker, self._table_now(), label=label, lower=lower)
        self.lower: Disk = lower

    @abstractmethod
    def _table_now(self) -> Table:
        """Return the table for the state that the device is in."""

    def _all_fails(self) -> Ref:
        """Return a device over the disk on which every request fails; it is there until this one goes."""
        if self._broken is None:
            failing = Flakey(dev=self._lower_ref, up=0, down=1)
            self._broken = self._maker.make(Table.of(failing, self._length), "broken")
        return self._broken.ref

    def places(self) -> Iterator[Line]:
        """Yield the one line that says that the data is on the disk below, whatever the fault."""
        yield Line(0, self._length, Linear(dev=self._lower_ref))

    def close(self) -> None:
        """Remove the device."""
        try:
            super().close()
        finally:
            broken, self._broken = self._broken, None
            if broken is not None:
                broken.remove()
