"""snapshot: a device as it was, and what was written to it since, on a copy-on-write device.

Sources: drivers/md/dm-snap.c (snapshot_ctr, snapshot_map, snapshot_resume, snapshot_status), dm-exception-store.c,
dm-snap-persistent.c, dm-snap-transient.c.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from dmcore.targets._snapshot import SnapshotParams, SnapshotState, SnapshotStatus, Store, draw_values

if TYPE_CHECKING:
    from hypothesis.strategies import SearchStrategy

    from dmcore.target import Space

__all__ = ["Snapshot", "SnapshotState", "SnapshotStatus", "Store"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot(SnapshotParams):
    """The content of `origin` when the snapshot was made, with the writes to the snapshot laid over it.

    A write here copies its chunk from `origin` to `cow` first, unless it covers the chunk; a write to the
    `SnapshotOrigin` device of `origin` does the same for the old content. The origin device must be suspended while a
    snapshot is made, and resumed after it. Sectors are not moved: the line begins at sector 0 of the device and of
    `origin`.

    A `cow` that begins with zeros is formatted when the table is loaded; one that holds a persistent snapshot goes on
    with it; any other is refused (ENXIO). When a table with the same `cow` is loaded next to an active snapshot, that one's
    chunks are handed over as the new table is resumed, for which the old one must be suspended; until then the kernel
    prints the new one's chunk size as 0. A third table is refused (EINVAL).

    **Do not load `discard_zeroes_cow` with chunks below 512 sectors on kernels 7.2**: they divide by zero, and a kernel
    7.2.7 was seen to die of it. It is accepted here, since older kernels do it well.

    Attributes:
        origin: The device that was shot; opened for reading only.
        cow: Another device, for the chunks that differ.
        store: How they are written down.
        chunk: Sectors copied at once: 0 or a power of two, up to 2^21; a multiple of both devices' logical blocks, which
            the kernel checks. 0 means 32 for a persistent store (a logical block of `cow` if that is more); for a
            transient one the kernel refuses 0, but for a snapshot that takes over from another table's. A persistent store
            that `cow` holds already keeps its own chunk size, which the kernel then prints.
        discard_zeroes_cow: Discards are supported (else EOPNOTSUPP): whole chunks that `cow` holds are zeroed there, and
            those it does not hold are left alone.
        discard_passdown_origin: Such a discard goes to `origin` as well; needs `discard_zeroes_cow`.

    Raises:
        SpecError: A value the kernel's constructor would refuse (EINVAL).
    """

    kernel_name: ClassVar[str] = "snapshot"
    kernel_module: ClassVar[str] = "dm-snapshot"

    @classmethod
    def strategy(cls, space: Space) -> SearchStrategy[Snapshot]:
        """Draw any store and any chunk size that leaves room for metadata; not the discards that kill kernel 7.2.7."""
        return draw_values(Snapshot, space, *Store)
