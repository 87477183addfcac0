"""snapshot-merge: writes a snapshot's chunks back to its origin, while the origin is in use.

Sources: drivers/md/dm-snap.c (snapshot_ctr, snapshot_merge_map, snapshot_merge_resume, merge_callback, snapshot_status),
dm-snap-persistent.c (persistent_prepare_merge, persistent_commit_merge).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from dmcore.errors import SpecError
from dmcore.targets._snapshot import SnapshotParams, SnapshotState, SnapshotStatus, Store, draw_values
from dmcore.targets.snapshot import Snapshot

if TYPE_CHECKING:
    from hypothesis.strategies import SearchStrategy

    from dmcore.target import Space, Target

__all__ = ["SnapshotMerge", "SnapshotState", "SnapshotStatus", "Store"]


@dataclass(frozen=True, slots=True, kw_only=True)
class SnapshotMerge(SnapshotParams):
    """The origin device, with the content of the snapshot from the moment of its resume on.

    It takes the place of the `SnapshotOrigin` table while that is suspended. The snapshot's own device is removed before, or
    suspended, and its chunks are then handed over. Merging begins at resume, from the newest chunk to the oldest, and
    goes on while the device is used. At its end `SnapshotStatus.empty` holds; no event tells. Then the table is replaced by
    a `SnapshotOrigin` or linear one. Discards succeed without effect while it merges. Sectors are not moved: the line
    begins at sector 0 of the device and of `origin`.

    **Transient stores are refused here** (`Store.TRANSIENT`). Kernels refuse them too, or, as 6.1.176, 6.12.101 and 7.2.7
    were seen to do, oops. Do not load `discard_zeroes_cow` with chunks below 512 sectors on kernels 7.2, see `Snapshot`.

    Attributes:
        origin: The device that is written back to.
        cow: The device with the chunks.
        store: How they are written down, PERSISTENT or OVERFLOW.
        chunk: As of the snapshot; what the store says wins.
        discard_zeroes_cow: As of the snapshot.
        discard_passdown_origin: As of the snapshot.

    Raises:
        SpecError: A value the kernel's constructor would refuse (EINVAL), or die of.
    """

    kernel_name: ClassVar[str] = "snapshot-merge"
    kernel_module: ClassVar[str] = "dm-snapshot"

    def __post_init__(self) -> None:
        SnapshotParams.__post_init__(self)
        if self.store is Store.TRANSIENT:
            raise SpecError("store", self.store, "a transient snapshot cannot be merged")

    def serves(self, other: Target) -> bool:
        """Whether it is another snapshot of the origin."""
        return isinstance(other, Snapshot) and other.origin == self.origin and other.cow != self.cow

    @classmethod
    def strategy(cls, space: Space) -> SearchStrategy[SnapshotMerge]:
        """Draw any persistent store and chunk size that leaves room; not the discards that kill kernel 7.2.7."""
        return draw_values(SnapshotMerge, space, Store.PERSISTENT, Store.OVERFLOW)
