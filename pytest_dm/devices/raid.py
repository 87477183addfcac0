"""Raid: a set with parity or copies whose devices can be lost one by one."""

from __future__ import annotations

import contextlib
import errno
import time
from typing import TYPE_CHECKING, Any

from dmcore import targets
from dmcore.errors import DmError, IoctlError, SpecError
from dmcore.table import Table
from dmcore.targets.raid import Check, DeviceState, RaidDevice, RaidStatus, RaidType, Repair, SyncAction
from dmcore.units import SECTOR
from pytest_dm.devices.base import DmDevice
from pytest_dm.devices.waiting import PATIENCE, kernel_word, state_of, wait_until

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dmcore.target import Silent
    from pytest_dm.devices.base import Disk
    from pytest_dm.devices.flakey import Flakey
    from pytest_dm.factory import Dm

__all__ = ["Raid"]

_QUIET = 0.1
_ACTION = 2.0
"""Seconds without an event after which nothing goes on, and after which what was asked for was lost."""

_REST = 5.0
"""Seconds that a set has to come to rest before it goes anyway."""


class Raid(DmDevice):
    """A disk made of several; `legs[n].fail()` and the other verbs of `flakey` break one.

    The set notices at the next write, or read, of that leg, and goes on without it while the level allows: its letter in
    `state.devices` becomes D. A leg that failed stays out until `replace`.

    Attributes:
        kind: How data are spread.
        legs: The devices with the data, healthy at first.
        metadata: The devices with the superblocks and bitmaps; none for a set that forgets its state.
    """

    def __init__(
        self,
        maker: Dm,
        kind: RaidType | str,
        legs: Sequence[Flakey],
        metadata: Sequence[Disk],
        *,
        chunk: int,
        words: dict[str, Any],
    ) -> None:
        self._maker = maker
        self.kind = kernel_word("kind", RaidType, kind)
        self.legs = tuple(legs)
        self.metadata = tuple(metadata)
        self._chunk = 0 if self.kind is RaidType.RAID1 else chunk
        self._words = words
        table = Table.of(self._value(self.legs, self.metadata, words), self._sectors())
        super().__init__(maker, table, label="raid")

    def _value(
        self,
        legs: Sequence[Disk],
        metadata: Sequence[Disk],
        words: dict[str, Any],
        rebuild: tuple[int, ...] = (),
    ) -> targets.Raid:
        metas = [disk.ref for disk in metadata] if metadata else [None] * len(legs)
        devices = tuple(RaidDevice(leg.ref, meta) for leg, meta in zip(legs, metas, strict=True))
        return targets.Raid(kind=self.kind, chunk=self._chunk, devices=devices, rebuild=rebuild, **words)

    def _sectors(self) -> int:
        """Return the set's length: that of its data, in whole chunks of every leg."""
        leg = min(leg.size for leg in self.legs) // SECTOR
        if self.kind is RaidType.RAID1:
            return leg
        leg -= leg % self._chunk
        if self.kind.level != 10:
            return leg * (len(self.legs) - self.kind.parity)
        stripe = self._chunk * len(self.legs)
        copies = self._words.get("raid10_copies") or 2
        return leg * len(self.legs) // copies // stripe * stripe

    @property
    def state(self) -> RaidStatus:
        """What the kernel says of it: each leg's state, what goes on, and how far it is."""
        return state_of(self, RaidStatus)

    @property
    def in_sync(self) -> bool:
        """Whether every leg is, and nothing is going on."""
        return self.state.in_sync

    def wait_in_sync(self, timeout: float = PATIENCE) -> None:
        """Wait until every leg is in sync, and nothing is going on.

        Raises:
            DmError: That is not so after `timeout` seconds.
        """
        wait_until(self, "in sync", lambda: self.in_sync, timeout)

    def wait_idle(self, timeout: float = PATIENCE) -> RaidStatus:
        """Wait until nothing goes on, whatever the legs' state, and return it."""
        wait_until(self, "idle", lambda: self.state.action is SyncAction.IDLE, timeout)
        return self.state

    def wait_rebuilt(self, index: int, timeout: float = PATIENCE) -> None:
        """Wait until one leg is in sync, whatever the others are.

        Raises:
            DmError: It is not after `timeout` seconds.
        """
        wait_until(
            self, f"rebuilt on leg {index}", lambda: self.state.devices[index] is DeviceState.IN_SYNC, timeout
        )

    def close(self) -> None:
        """Remove it. A set that loses a leg comes to rest first: one that begins a resync meanwhile can take 6.1 down."""
        with contextlib.suppress(DmError, OSError):  # whatever it says, it goes
            if DeviceState.FAILED in self.state.devices or not all(leg.healthy for leg in self.legs):
                self._wait_quiet(time.monotonic() + _REST)
        super().close()

    def check(self, timeout: float = PATIENCE) -> int:
        """Compare copies or parity of the whole set, and return how many sectors differ (in pages' worth)."""
        self._do(Check(), timeout)
        return self.state.mismatches

    def repair(self, timeout: float = PATIENCE) -> None:
        """Make copies or parity agree with the data."""
        self._do(Repair(), timeout)

    def _do(self, action: Silent, timeout: float) -> None:
        """Tell the kernel to do something, and wait until it is done: every action ends with an event.

        What md is told while it puts away the action before is lost without a word; that ends with an event as well.
        """
        deadline = time.monotonic() + timeout
        while True:
            self._wait_quiet(deadline)
            before = self.device.info().event_nr
            try:
                self.device.send(action)
                self.device.wait(before, timeout=_ACTION)
            except IoctlError as error:
                if error.errno not in {errno.EBUSY, errno.ETIMEDOUT} or time.monotonic() > deadline:
                    raise
            else:
                break
        self._wait_quiet(deadline)

    def _wait_quiet(self, deadline: float) -> None:
        """Wait until nothing goes on, and nothing is put away any more.

        Raises:
            DmError: That is not so at the deadline; a reshape that waits for the second load tells of itself without end.
        """
        quiet = False
        while not quiet:
            before = self.device.info().event_nr
            self.wait_idle(deadline - time.monotonic())
            try:
                self.device.wait(before, timeout=_QUIET)
            except IoctlError as error:
                quiet = error.errno == errno.ETIMEDOUT
                if not quiet:
                    raise
            if not quiet and time.monotonic() > deadline:
                message = f"{self.name} does not come to rest: {self.statuses()}"
                raise DmError(message)

    def replace(self, index: int, disk: Disk | None = None) -> Flakey:
        """Put another disk, by default a fresh one, in a leg's place and begin to make its content anew.

        Returns:
            The new leg.

        Raises:
            SpecError: No such leg, a disk that is too small, or a level that has no second copy of anything.
        """
        if not 0 <= index < len(self.legs):
            raise SpecError("index", index, f"there are legs 0..{len(self.legs) - 1}")
        if self.kind is RaidType.RAID0:
            raise SpecError("kind", self.kind, "nothing can be made anew")
        old = self.legs[index]
        if disk is not None and disk.size < old.size:
            raise SpecError("disk", disk.name, f"has {disk.size} bytes, the one it replaces {old.size}")
        size = old.size if disk is None else None
        new = self._maker.build_below(self, lambda dm: dm.flakey(disk, size=size))
        legs = (*self.legs[:index], new, *self.legs[index + 1 :])
        metadata = self.metadata
        if metadata:
            room = metadata[index].size
            fresh = self._maker.build_below(self, lambda dm: dm.loop(room, label="raid-metadata"))
            metadata = (*metadata[:index], fresh, *metadata[index + 1 :])
        words = {word: value for word, value in self._words.items() if word != "sync"}
        table = Table.of(self._value(legs, metadata, words, (index,)), self._sectors())
        self._replace(table, lockfs=False)
        self.legs, self.metadata = legs, metadata
        return new
