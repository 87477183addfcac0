"""Writecache: a slow disk whose writes a fast one takes."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from dmcore import targets
from dmcore.table import Table
from dmcore.targets.writecache import Cleaner, ClearStats, Flush, WritecacheStatus
from dmcore.units import SECTOR
from pytest_dm.devices.base import DmDevice
from pytest_dm.devices.waiting import PATIENCE, state_of, wait_until

if TYPE_CHECKING:
    from pytest_dm.devices.flakey import Flakey
    from pytest_dm.factory import Dm

__all__ = ["Writecache"]


class Writecache(DmDevice):
    """A disk whose writes are kept on a fast device until they are written back; both have the verbs of `flakey`.

    Attributes:
        origin: The slow device, healthy at first; it lacks what is in the cache.
        fast: The fast device, healthy at first.
    """

    def __init__(
        self, maker: Dm, origin: Flakey, fast: Flakey, *, block_size: int, words: dict[str, Any]
    ) -> None:
        self.origin = origin
        self.fast = fast
        value = targets.Writecache(origin=origin.ref, cache=fast.ref, block_size=block_size, **words)
        self._value = value
        length = origin.size // SECTOR
        length -= length % (value.block_size // SECTOR)
        super().__init__(maker, Table.of(value, length), label="writecache")

    @property
    def state(self) -> WritecacheStatus:
        """What the kernel says of it: blocks that are free or being written back, counts, and whether it failed."""
        return state_of(self, WritecacheStatus)

    @property
    def cached(self) -> int:
        """Blocks that are in the cache, written back or not."""
        status = self.state
        return status.blocks - status.free

    @property
    def failed(self) -> bool:
        """Whether the cache failed: an error of its device. All I/O fails then."""
        return self.state.error

    def write_back(self) -> None:
        """Write everything in the cache to the origin, and return when that is done."""
        self.device.send(Flush())

    def clean(self, timeout: float = PATIENCE) -> None:
        """Take in no more writes and write everything back; `use` ends it.

        Raises:
            DmError: Something is left in the cache after `timeout` seconds.
        """
        self.device.send(Cleaner())
        wait_until(self, "clean", lambda: not self.cached, timeout)

    def use(self) -> None:
        """Cache writes again after `clean`: a new table."""
        self._value = replace(self._value, cleaner=False)
        self._replace(Table.of(self._value, self.sectors), lockfs=False)

    def clear_stats(self) -> None:
        """Set the counts of `state` to 0."""
        self.device.send(ClearStats())
