"""SnapshotOrigin and Snapshot: a disk, and what it was when it was shot."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dmcore import targets
from dmcore.errors import DmError, SpecError
from dmcore.table import Table
from dmcore.targets.snapshot import SnapshotState, SnapshotStatus, Store
from dmcore.units import SECTOR
from pytest_dm.devices.base import DmDevice
from pytest_dm.devices.waiting import PATIENCE, kernel_word, state_of, wait_until

if TYPE_CHECKING:
    from pytest_dm.devices.base import Disk
    from pytest_dm.factory import Dm

__all__ = ["Snapshot", "SnapshotOrigin"]


class SnapshotOrigin(DmDevice):
    """A disk whose old content is copied to its snapshots before a write changes it.

    Write through this device: what goes to `lower` directly shows in the snapshots too.

    Attributes:
        lower: The disk that was shot.
        snapshots: Its snapshots, oldest first.
    """

    def __init__(self, maker: Dm, lower: Disk) -> None:
        self._maker = maker
        self.snapshots: list[Snapshot] = []
        table = Table.of(targets.SnapshotOrigin(dev=lower.ref), lower.size // SECTOR)
        super().__init__(maker, table, label="origin", lower=lower)

    def merge(self, snapshot: Snapshot, timeout: float = PATIENCE) -> None:
        """Make the origin what the snapshot is, and remove the snapshot: it is copied back while the origin is in use.

        Raises:
            SpecError: Not a snapshot of this origin, or one whose store is in memory (kernels crash at that).
            DmError: The merge failed, or takes longer than `timeout` seconds; the origin goes on as far as it was merged.
        """
        if snapshot not in self.snapshots:
            raise SpecError("snapshot", snapshot.name, f"is none of {self.name}'s")
        if snapshot.store is Store.TRANSIENT:
            raise SpecError("snapshot", snapshot.name, "its store is in memory and cannot be merged")
        assert self.lower is not None
        merge = targets.SnapshotMerge(
            origin=self.lower.ref, cow=snapshot.cow.ref, store=snapshot.store, chunk=snapshot.chunk
        )
        plain = self._loaded
        snapshot.close()
        self._replace(Table.of(merge, self.sectors), lockfs=True)
        try:
            wait_until(self, "merged", self._merged, timeout)
        finally:
            self._replace(plain, lockfs=True)
            self.forget_cached()

    def _merged(self) -> bool:
        status = state_of(self, SnapshotStatus)
        if status.state is not SnapshotState.ACTIVE:
            message = f"{self.name}: {status.state}"
            raise DmError(message)
        return status.empty

    def shot(self, snapshot: Snapshot) -> None:
        """Learn of a new snapshot: the split size of writes is found at resume."""
        self.snapshots.append(snapshot)


class Snapshot(DmDevice):
    """What the origin was when this was made, and what was written here since.

    Attributes:
        origin: The disk that was shot.
        cow: The disk with the chunks that differ, and, if the store is persistent, the list of them.
        store: How they are written down.
        chunk: Sectors that are copied at once.
    """

    def __init__(
        self, maker: Dm, origin: SnapshotOrigin, cow: Disk, *, store: Store | str, chunk: int
    ) -> None:
        self.origin = origin
        self.cow = cow
        self.store = kernel_word("store", Store, store)
        self.chunk = chunk
        assert origin.lower is not None
        value = targets.Snapshot(origin=origin.lower.ref, cow=cow.ref, store=self.store, chunk=chunk)
        with origin.suspended():
            super().__init__(maker, Table.of(value, origin.sectors), label="snapshot", lower=origin.lower)
        origin.shot(self)

    @property
    def state(self) -> SnapshotStatus:
        """What the kernel says of it: how it does, and how much of its disk is used."""
        return state_of(self, SnapshotStatus)

    @property
    def valid(self) -> bool:
        """Whether all of it can be read: not once a copy found no space, or failed."""
        return self.state.state in {SnapshotState.ACTIVE, SnapshotState.OVERFLOW}

    def fill(self) -> SnapshotStatus:
        """Write to the snapshot until its disk is full, and return its state then.

        Chunks that it holds are written with what they hold. A full `Store.OVERFLOW` fails further writes, the
        others become invalid as a whole: EIO for all that is read.
        """
        size = self.chunk * SECTOR
        for offset in range(0, self.size - size + 1, size):
            if self.state.state is not SnapshotState.ACTIVE:
                break
            try:
                self.write(offset, self.read(offset, size))
            except OSError:
                break
        return self.state

    def close(self) -> None:
        """Remove the device; the origin goes on."""
        super().close()
        if self in self.origin.snapshots:
            self.origin.snapshots.remove(self)
