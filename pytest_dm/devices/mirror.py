"""Mirror: a disk with copies that can be lost one by one."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dmcore import targets
from dmcore.errors import SpecError
from dmcore.table import Table
from dmcore.target import Leg
from dmcore.targets.mirror import CoreLog, DiskLog, MirrorStatus, Sync
from dmcore.units import SECTOR
from pytest_dm.devices.base import DmDevice
from pytest_dm.devices.waiting import PATIENCE, state_of, wait_until

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pytest_dm.devices.base import Disk
    from pytest_dm.devices.flakey import Flakey
    from pytest_dm.factory import Dm

__all__ = ["Mirror"]


class Mirror(DmDevice):
    """A disk whose writes go to all legs; `legs[n].fail()` and the other verbs of `flakey` break one.

    Reads come from the first leg, or from another where that fails. A leg that failed a write is left out from then on,
    and its letter in `state` becomes D, until `replace`. Made without `handle_errors`, a mirror goes on asking it.

    Attributes:
        legs: The devices below, healthy at first; the first is what the others are copied from.
        log: The disk that holds the log; None if it is in memory.
    """

    def __init__(
        self,
        maker: Dm,
        legs: Sequence[Flakey],
        *,
        log: Disk | None,
        region: int,
        sync: bool,
        handle_errors: bool,
        keep_log: bool,
    ) -> None:
        self._maker = maker
        self.legs = tuple(legs)
        self.log = log
        self._length = min(leg.size for leg in legs) // SECTOR
        self._region = region
        self._words = {"handle_errors": handle_errors, "keep_log": keep_log}
        table = self._table(self.legs, None if sync else Sync.NOSYNC)
        super().__init__(maker, table, label="mirror")

    def _table(self, legs: Sequence[Disk], sync: Sync | None) -> Table:
        log = CoreLog(self._region, sync) if self.log is None else DiskLog(self.log.ref, self._region, sync)
        mirror = targets.Mirror(log=log, legs=tuple(Leg(leg.ref) for leg in legs), **self._words)
        return Table.of(mirror, self._length)

    @property
    def state(self) -> MirrorStatus:
        """What the kernel says of it: each leg's health, and how many regions are in sync."""
        return state_of(self, MirrorStatus)

    @property
    def in_sync(self) -> bool:
        """Whether all regions are."""
        return self.state.in_sync

    def wait_in_sync(self, timeout: float = PATIENCE) -> None:
        """Wait until all regions are in sync.

        Raises:
            DmError: They are not after `timeout` seconds.
        """
        wait_until(self, "in sync", lambda: self.in_sync, timeout)

    def replace(self, index: int, disk: Disk | None = None) -> Flakey:
        """Put another disk, by default a fresh one, in a leg's place and begin to copy the others' content to it.

        It becomes the last leg: the first one is what is copied, and must be one that is good.

        Returns:
            The new leg.

        Raises:
            SpecError: No such leg, or a disk that is too small.
        """
        if not 0 <= index < len(self.legs):
            raise SpecError("index", index, f"there are legs 0..{len(self.legs) - 1}")
        if disk is not None and disk.size < self.size:
            raise SpecError("disk", disk.name, f"has {disk.size} bytes, the mirror {self.size}")
        size = self.size if disk is None else None
        new = self._maker.build_below(self, lambda dm: dm.flakey(disk, size=size))
        legs = (*self.legs[:index], *self.legs[index + 1 :], new)
        self._replace(self._table(legs, Sync.SYNC), lockfs=False)
        self.legs = legs
        return new
