"""What the models of snapshot, snapshot-origin and snapshot-merge share: they find each other by the origin they stand on.

Sources: drivers/md/dm-snap.c (register_snapshot, __validate_exception_handover, __origin_write, snapshot_map,
snapshot_status, snapshot_resume).
"""

from __future__ import annotations

import dataclasses
import errno
from typing import TYPE_CHECKING

from dmcore.errors import SpecError
from dmcore.model.block import SYNC, BlockDevice, fault, pieces
from dmcore.model.target import Area, ModelTarget
from dmcore.model.targets._exception_store import ExceptionStore, PersistentStore, TransientStore, check_chunk
from dmcore.targets._snapshot import SnapshotParams, Store
from dmcore.units import SECTOR

if TYPE_CHECKING:
    from collections.abc import Iterable

    from dmcore.model.target import Context

__all__ = ["Origin", "Shot", "copy"]

_COPY_SECTORS = 1024


class Origin:
    """What snapshots are taken of, and the snapshots of the stack, those with the largest chunks first."""

    def __init__(self, device: BlockDevice, context: Context) -> None:
        self.device = device
        self.shots: list[Shot] = context.shared.setdefault(device, [])

    def add(self, shot: Shot) -> None:
        """Let a snapshot be found, in its place (reregister_snapshot)."""
        self.remove(shot)
        self.shots.append(shot)
        self.shots.sort(key=lambda shot: -shot.store.chunk)

    def remove(self, shot: Shot) -> None:
        """Let it not be found any more."""
        if shot in self.shots:
            self.shots.remove(shot)

    @property
    def min_chunk(self) -> int:
        """The smallest chunk size of the snapshots; 0 without any."""
        return min((shot.store.chunk for shot in self.shots if shot.store.chunk), default=0)

    def preserve(self, sector: int) -> None:
        """Let every snapshot copy the chunk that a sector lies in, before it is written (__origin_write)."""
        for shot in self.shots:
            shot.preserve(sector)

    def write(self, sector: int, data: memoryview, flags: int, boundary: int) -> None:
        """Write, cut at `boundary` sectors (0: nowhere); snapshots copy first. All pieces are tried."""
        failed: OSError | None = None
        for piece in pieces(sector, len(data) // SECTOR, boundary):
            self.preserve(piece.sector)
            try:
                self.device.write(piece.sector, data[piece.data], flags)
            except OSError as error:
                failed = error
        if failed is not None:
            raise failed


def copy(source: BlockDevice, first: int, dest: BlockDevice, at: int, count: int) -> bool:
    """Copy sectors; return whether it worked."""
    try:
        for piece in pieces(0, count, _COPY_SECTORS):
            data = source.read(first + piece.sector, piece.length)
            dest.write(at + piece.sector, memoryview(data), SYNC)
    except OSError:
        return False
    return True


class Shot(ModelTarget[SnapshotParams]):
    """A snapshot, or its merge: one line that holds an exception store."""

    merging = False

    def __init__(self, target: SnapshotParams, context: Context) -> None:
        super().__init__(target, context)
        self.origin, self.cow = self.lower
        self.group = Origin(self.origin, context)
        if self.origin is self.cow:
            raise SpecError("cow", target.cow, "must be another device than the origin")
        check_chunk(target.chunk, self.cow, self.origin)
        kind = TransientStore if target.store is Store.TRANSIENT else PersistentStore
        self.store: ExceptionStore = kind(self.cow, target.chunk)
        self.valid = True
        self.overflowed = False
        self.merge_failed = False
        self.active = False
        self.suspended = True
        takes_over = self._check_peers()
        if takes_over:
            self.store.chunk = 0
        else:
            self.store.load(self.origin)
            self.valid = self.store.valid
        self.group.add(self)
        self.max_io_len = self.store.chunk

    # -- those that share the origin ---------------------------------------------------------------------------------

    def _sharing(self) -> tuple[Shot | None, Shot | None, int]:
        """Return who could hand over exceptions of this COW device, who could take them, and how many share it."""
        sharing = [shot for shot in self.group.shots if shot.cow is self.cow]
        source = next((shot for shot in reversed(sharing) if shot.active), None)
        dest = next((shot for shot in reversed(sharing) if not shot.active), None)
        return source, dest, len(sharing)

    def _check_peers(self) -> bool:
        """Return whether another table's exceptions will be handed over (__validate_exception_handover)."""
        source, dest, count = self._sharing()
        if count > 1 or dest is not None:
            reason = (
                f"{self.cow.word} is in the tables of two snapshots already, or of one that is not active yet"
            )
            raise SpecError("cow", self.target.cow, reason)
        if source is None or not self.merging:
            return source is not None
        if any(shot.merging for shot in self.group.shots):
            raise SpecError("origin", self.target.origin, "a snapshot of it is already merging")
        if not source.store.merges:
            raise SpecError("store", self.target.store, "a transient snapshot cannot be merged")
        return True

    def preresume(self) -> None:
        """Refuse while another table holds the exceptions and is not suspended."""
        source, dest, _ = self._sharing()
        if source is not None and dest is not None and (source is self or not source.suspended):
            raise fault(errno.EINVAL)

    def resume(self) -> None:
        """Take over exceptions, if there is somebody to take them from; from now on chunks are copied."""
        source, dest, _ = self._sharing()
        if source is not None and dest is not None:
            dest.store, source.store = source.store, dest.store
            dest.max_io_len = dest.store.chunk
            dest.valid, dest.overflowed = source.valid, source.overflowed
            source.valid = False
        self.group.add(self)
        self.active = True
        self.suspended = False

    def postsuspend(self) -> None:
        """Pause."""
        self.suspended = True

    def close(self) -> None:
        """Leave the origin's snapshots; who waits for the exceptions waits in vain."""
        source, dest, _ = self._sharing()
        if source is self and dest is not None:
            dest.valid = False
        self.group.remove(self)

    # -- limits ------------------------------------------------------------------------------------------------------

    @property
    def areas(self) -> Iterable[Area]:
        """The line's length of the origin, and all of the COW device."""
        return [Area(self.origin, 0, self.context.length), Area(self.cow, 0, self.cow.sectors)]

    @property
    def discards(self) -> bool:
        """With `discard_zeroes_cow`, if both devices take them."""
        return self.target.discard_zeroes_cow and self.origin.discards and self.cow.discards

    # -- chunks ------------------------------------------------------------------------------------------------------

    def place(self, sector: int) -> int | None:
        """Return the COW device's sector for one of the origin; None if the snapshot does not hold it."""
        chunk, rest = divmod(sector, self.store.chunk)
        new = self.store.exceptions.get(chunk)
        return None if new is None else new * self.store.chunk + rest

    def invalidate(self) -> None:
        """Give the snapshot up."""
        if self.valid:
            self.store.drop()
            self.valid = False
            self.context.event()

    def keep(self, chunk: int, new: int, data: memoryview | None = None, flags: int = SYNC) -> bool:
        """Fill a new chunk with the origin's content, or with `data`; return whether the snapshot is still valid."""
        size, first = self.store.chunk, chunk * self.store.chunk
        if data is None:
            count = min(size, self.origin.sectors - first)
            copied = copy(self.origin, first, self.cow, new * size, count)
        else:
            copied = _written(self.cow, new * size, data, flags)
        if not self.store.commit(chunk, new, copied=copied):
            self.invalidate()
            return False
        return self.valid

    def preserve(self, sector: int) -> None:
        """Copy the chunk of a sector of the origin that is about to be written."""
        if self.merging or sector >= self.context.start + self.context.length:
            return
        if not self.valid or not self.active or self.place(sector) is not None:
            return
        new = self.store.prepare()
        if new is None:
            self.invalidate()
        else:
            self.keep(sector // self.store.chunk, new)

    # -- what it says ------------------------------------------------------------------------------------------------

    def status(self) -> str:
        """Return how much of the COW device is in use, or the state."""
        if not self.valid:
            return "Invalid"
        if self.merge_failed:
            return "Merge failed"
        if self.overflowed:
            return "Overflow"
        used, metadata = self.store.usage()
        return f"{used}/{self.cow.sectors} {metadata}"

    def params(self) -> str:
        """Return the line with the chunk size that counts, and the store that was taken over."""
        overflow = self.target.store is Store.OVERFLOW
        kind = Store.OVERFLOW if overflow and self.store.merges else Store(self.store.word)
        value = dataclasses.replace(self.target, chunk=self.store.chunk, store=kind)
        return value.encode(lambda ref: self.context.open(ref).word or ref.name)


def _written(device: BlockDevice, sector: int, data: memoryview, flags: int) -> bool:
    try:
        device.write(sector, data, flags)
    except OSError:
        return False
    return True
