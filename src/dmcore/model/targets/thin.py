"""thin: a device that takes its blocks from a pool when they are written.

Sources: drivers/md/dm-thin.c (thin_ctr, thin_bio_map, process_cell, provision_block, break_sharing, process_discard_bio,
thin_status).
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

from dmcore.errors import SpecError
from dmcore.model.block import FUA, SYNC, Suspended, fault, merged, pieces
from dmcore.model.target import Area, ModelTarget
from dmcore.model.targets.thin_pool import Mode, ThinPoolModel
from dmcore.targets.thin import Thin
from dmcore.units import SECTOR

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from dmcore.model.block import BlockDevice
    from dmcore.model.target import Context

__all__ = ["MODEL"]

_COPY_SECTORS = 1024


class _Thin(ModelTarget[Thin]):
    def __init__(self, target: Thin, context: Context) -> None:
        super().__init__(target, context)
        self._below, *origins = self.lower
        self._origin: BlockDevice | None = origins[0] if origins else None
        found: tuple[object, ...] = getattr(self._below, "targets", ())
        if len(found) != 1 or not isinstance(found[0], ThinPoolModel):
            raise SpecError("pool", target.pool, "is not the device of a thin-pool")
        self.pool = found[0].pool
        if self.pool.mode is Mode.FAIL or self.pool.suspended:
            raise SpecError("pool", target.pool, "is suspended, or has failed")
        self._metadata = self.pool.metadata
        self._id = target.dev_id
        self._metadata.details(self._id)
        self._metadata.device(self._id)
        self.max_io_len = self._block = self.pool.block
        self._origin_sectors = 0
        self.pool.users += 1
        opened = self._metadata.opened
        opened[self._id] = opened.get(self._id, 0) + 1

    def close(self) -> None:
        """Let go of the device and of the pool."""
        self._metadata.opened[self._id] -= 1
        self.pool.drop()

    def preresume(self) -> None:
        """Look how large the external origin is."""
        self._origin_sectors = self._origin.sectors if self._origin else 0

    @property
    def areas(self) -> Iterable[Area]:
        """All blocks of the pool."""
        return (Area(self._below, 0, self._metadata.data.blocks * self._block),)

    @property
    def flushed(self) -> Iterable[BlockDevice]:
        """The pool."""
        return (self._below,)

    @property
    def discards(self) -> bool:
        """Whether the pool does not ignore them."""
        target = self.pool.target
        return target is not None and not target.target.ignore_discard

    # -- blocks ------------------------------------------------------------------------------------------------------

    def _check(self) -> None:
        if self.pool.suspended:
            message = "the pool is suspended: the kernel would hold this request until its resume"
            raise Suspended(message)
        if self.pool.mode is Mode.FAIL:
            raise fault(errno.EIO)

    def _find(self, block: int) -> tuple[int, bool] | None:
        """Return the block of data, and whether a snapshot may have it too."""
        found = self._metadata.device(self._id).mappings.get(block)
        if found is None:
            return None
        data, time = found
        return data, self._metadata.details(self._id).snapshotted > time

    def readinto(self, sector: int, buffer: memoryview, flags: int) -> None:
        """Read a block from the pool; one that was never written from the external origin, or zeros."""
        self._check()
        block, rest = divmod(sector, self._block)
        found = self._find(block)
        if found is not None:
            self._below.readinto(found[0] * self._block + rest, buffer, flags)
            return
        there = min(len(buffer) // SECTOR, max(0, self._origin_sectors - sector))
        if self._origin is not None and there * SECTOR < len(buffer) and self.pool.mode is not Mode.WRITE:
            raise fault(errno.EIO)
        buffer[there * SECTOR :] = bytes(len(buffer) - there * SECTOR)
        if self._origin is not None and there:
            self._origin.readinto(sector, buffer[: there * SECTOR], flags)

    def write(self, sector: int, data: memoryview, flags: int) -> None:
        """Write to the device's own block; it gets one first if it has none, or shares it."""
        self._check()
        block, rest = divmod(sector, self._block)
        found = self._find(block)
        if found is not None and not found[1]:
            if flags & FUA and self._metadata.changed and not self.pool.commit():
                raise fault(errno.EIO)
            self._below.write(found[0] * self._block + rest, data, flags)
            return
        if self.pool.mode is not Mode.WRITE:
            raise self.pool.unserviceable()
        new = self.pool.allocate()
        at = new * self._block
        whole = len(data) == self._block * SECTOR
        if whole:
            self._below.write(at, data, flags)
        else:
            self._fill(block, None if found is None else found[0], at)
        self.pool.attempt(lambda: self._metadata.insert(self._id, block, new))
        if flags & FUA and not self.pool.commit():
            raise fault(errno.EIO)
        if not whole:
            self._below.write(at + rest, data, flags)

    def _fill(self, block: int, shared: int | None, at: int) -> None:
        """Let a new block have the content of a shared one, of the external origin, or zeros; EIO if that fails."""
        first, source = block * self._block, self._origin
        length = min(self._block, max(0, self._origin_sectors - first))
        if shared is not None:
            first, source, length = shared * self._block, self._below, self._block
        target = self.pool.target
        zeroes = target is not None and not target.target.skip_block_zeroing
        try:
            for piece in pieces(0, length if source is not None else 0, _COPY_SECTORS):
                assert source is not None
                copy = source.read(first + piece.sector, piece.length)
                self._below.write(at + piece.sector, memoryview(copy), SYNC)
            if zeroes and length < self._block:
                self._below.write_zeroes(at + length, self._block - length)
        except OSError:
            raise fault(errno.EIO) from None

    def flush(self) -> None:
        """Commit if this device changed, then flush the pool."""
        self._check()
        if self._metadata.changed and not self.pool.commit():
            raise fault(errno.EIO)
        self._below.flush()

    def discard(self, sector: int, count: int) -> None:
        """Unmap whole blocks; those that nobody else has are discarded on the data device."""
        self._check()
        pool = self.pool
        begin, end = -(-sector // self._block), (sector + count) // self._block
        if begin >= end or pool.mode >= Mode.OUT_OF_METADATA_SPACE:
            return
        removed: list[tuple[int, bool]] = []
        pool.attempt(lambda: removed.extend(self._metadata.remove(self._id, begin, end)))
        if pool.target is None or not pool.target.passdown or not removed:
            return
        if any(shared for _, shared in removed):
            pool.attempt(self._metadata.recount)
        for first, length in _runs(
            data for data, shared in removed if not shared or not self._metadata.data.count(data)
        ):
            self._below.discard(first * self._block, length * self._block)

    def data_extents(self) -> Iterable[tuple[int, int]]:
        """Yield the blocks that are mapped; all of it with an external origin."""
        if self._origin is not None or self.pool.mode is Mode.FAIL:
            return super().data_extents()
        block, end = self._block, self.context.length
        mapped = sorted(self._metadata.device(self._id).mappings)
        return merged((at * block, min(block, end - at * block)) for at in mapped if at * block < end)

    # -- what it says ------------------------------------------------------------------------------------------------

    def status(self) -> str:
        """Return the sectors that have blocks, and the last of them."""
        if self.pool.mode is Mode.FAIL:
            return "Fail"
        mappings = self._metadata.device(self._id).mappings
        highest = (max(mappings) + 1) * self._block - 1 if mappings else "-"
        return f"{len(mappings) * self._block} {highest}"


def _runs(blocks: Iterable[int]) -> Iterator[tuple[int, int]]:
    """Yield `(first, length)` of blocks that follow each other."""
    first = length = 0
    for block in blocks:
        if length and block == first + length:
            length += 1
            continue
        if length:
            yield first, length
        first, length = block, 1
    if length:
        yield first, length


MODEL = _Thin
