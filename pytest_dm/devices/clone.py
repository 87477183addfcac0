"""Clone: a disk that fills with another one's content while it is in use."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dmcore import targets
from dmcore.errors import DmError
from dmcore.table import Table
from dmcore.targets.clone import CloneStatus, DisableHydration, EnableHydration, Failed
from dmcore.units import SECTOR
from pytest_dm.devices.base import DmDevice
from pytest_dm.devices.waiting import PATIENCE, state_of, wait_until

if TYPE_CHECKING:
    from pytest_dm.devices.flakey import Flakey
    from pytest_dm.factory import Dm

__all__ = ["Clone"]


class Clone(DmDevice):
    """A copy of `source` from the first moment on, whose regions arrive when they are written, or by `hydrate`.

    Attributes:
        source: The device that is copied, healthy at first, with the verbs of `flakey`.
        dest: The device that becomes the copy, likewise.
        metadata: The device that says which regions are there, likewise.
    """

    def __init__(
        self, maker: Dm, source: Flakey, dest: Flakey, metadata: Flakey, *, value: targets.Clone
    ) -> None:
        self.source = source
        self.dest = dest
        self.metadata = metadata
        super().__init__(maker, Table.of(value, source.size // SECTOR), label="clone")

    @property
    def state(self) -> CloneStatus:
        """What the kernel says of it: regions that are there, and whether more are being copied.

        Raises:
            DmError: The target has `failed`.
        """
        return state_of(self, CloneStatus)

    @property
    def failed(self) -> bool:
        """Whether the target gave up after an error of its metadata."""
        return self.status() == [Failed()]

    @property
    def hydrated(self) -> bool:
        """Whether every region is on `dest`."""
        regions = self.state.regions
        return regions.used == regions.total

    def hydrate(self, timeout: float = PATIENCE) -> None:
        """Copy everything that is not there yet, and return when that is done.

        Raises:
            DmError: Some regions are not there after `timeout` seconds.
        """
        self.device.send(EnableHydration())
        wait_until(self, "hydrated", lambda: self.hydrated, timeout)

    def pause(self) -> None:
        """Copy nothing in the background from now on."""
        self.device.send(DisableHydration())

    def detach(self) -> None:
        """Stand on `dest` alone from now on; the source may go.

        Raises:
            DmError: Not everything is copied.
        """
        if not self.hydrated:
            message = f"{self.name} still needs its source: {self.statuses()}"
            raise DmError(message)
        self._replace(Table.of(targets.Linear(dev=self.dest.ref), self.sectors), lockfs=True)
