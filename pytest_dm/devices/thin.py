"""ThinPool and Thin: disks that take their space from a pool as they are written."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

from dmcore import targets
from dmcore.errors import SpecError
from dmcore.table import Table
from dmcore.targets.thin import ThinStatus
from dmcore.targets.thin_pool import (
    CreateSnap,
    CreateThin,
    Delete,
    Failed,
    PoolMode,
    ReleaseMetadataSnap,
    ReserveMetadataSnap,
    ThinPoolStatus,
)
from dmcore.units import SECTOR, to_sectors
from pytest_dm.devices.base import DmDevice
from pytest_dm.devices.waiting import state_of

if TYPE_CHECKING:
    from collections.abc import Generator

    from pytest_dm.devices.base import Disk
    from pytest_dm.devices.flakey import Flakey
    from pytest_dm.factory import Dm

__all__ = ["Thin", "ThinPool"]

_PIECE = 1 << 20


class ThinPool(DmDevice):
    """A pool of blocks, on which `thin` makes disks; its own device is not for reading and writing.

    `metadata.fail(writes=True)` and the other verbs of `flakey` break what is below: a commit that fails makes the
    pool read-only, and `state.needs_check` true.

    Attributes:
        data: The device with the blocks, healthy at first; it may be larger than the pool, see `grow`.
        metadata: The device that says which block is where, healthy at first.
        pool_block_size: Bytes of a block.
    """

    def __init__(
        self, maker: Dm, data: Flakey, metadata: Flakey, *, length: int, value: targets.ThinPool
    ) -> None:
        self._maker = maker
        self.data = data
        self.metadata = metadata
        self.pool_block_size = value.block_sectors * SECTOR
        self._value = value
        self._next_id = 0
        super().__init__(maker, Table.of(value, length), label="pool")

    @property
    def state(self) -> ThinPoolStatus:
        """What the kernel says of it: use of data and metadata, mode, whether it needs a check.

        Raises:
            DmError: The pool has `failed`.
        """
        return state_of(self, ThinPoolStatus)

    @property
    def failed(self) -> bool:
        """Whether the pool gave up: an error of its metadata that it cannot work around."""
        return self.status() == [Failed()]

    @property
    def free_blocks(self) -> int:
        """Blocks of data that are free."""
        data = self.state.data
        return data.total - data.used

    def thin(
        self, size: str | int | None = None, *, dev_id: int | None = None, origin: Disk | None = None
    ) -> Thin:
        """Make a thin disk of `size` (by default the pool's), which may be larger than the pool.

        Args:
            size: Its size.
            dev_id: Its number in the pool, by default a free one; one that the pool knows already is opened as it is.
            origin: A read-only disk that shows wherever the thin disk was not written.
        """
        number = self._free_id() if dev_id is None else dev_id
        length = self.sectors if size is None else to_sectors(size)
        if dev_id is None or not self._knows(dev_id):
            self.device.send(CreateThin(number))
        return self._open(number, length, origin)

    def snapshot(self, of: Thin) -> Thin:
        """Make another thin disk with the same content, whose blocks are shared until one of them writes."""
        if of.pool is not self:
            raise SpecError("of", of.name, f"is not of {self.name}")
        number = self._free_id()
        with of.suspended():
            self.device.send(CreateSnap(number, of.dev_id))
        return self._open(number, of.sectors, of.origin)

    def delete(self, thin: Thin) -> None:
        """Remove a thin disk and give its blocks back."""
        if thin.pool is not self:
            raise SpecError("thin", thin.name, f"is not of {self.name}")
        thin.close()
        self.device.send(Delete(thin.dev_id))

    def fill(self, *, leave: int = 0) -> Thin:
        """Use the pool's space up to `leave` blocks: a fresh thin disk takes it, `delete` gives it back.

        The next write that needs a block waits for the pool to `grow` (a minute at most), or fails with ENOSPC if the
        pool was made with `error_if_no_space`; `state.mode` tells it then.
        """
        wanted = self.free_blocks - leave
        if wanted < 1:
            raise SpecError("leave", leave, f"the pool has {self.free_blocks} free blocks")
        filler = self.thin(wanted * self.pool_block_size)
        zeros = bytes(_PIECE - _PIECE % self.pool_block_size or self.pool_block_size)
        with filler.open() as file:
            for offset in range(0, filler.size, len(zeros)):
                file.write(offset, zeros[: filler.size - offset])
        return filler

    def grow(self, size: str | int) -> None:
        """Make the pool `size` large, which `data` must be at least: writes that wait for space go on.

        Raises:
            SpecError: Smaller than it is, or larger than `data`.
        """
        length = to_sectors(size)
        there = self.data.size // SECTOR
        if not self.sectors <= length <= there:
            raise SpecError("size", size, f"the pool has {self.sectors} sectors, its data disk {there}")
        self._replace(Table.of(self._value, length), lockfs=False)

    def set(self, **words: bool | int) -> None:
        """Change features of the pool (`error_if_no_space`, `read_only`, `low_water` ...) by a new table."""
        value = replace(self._value, **words)  # type: ignore[arg-type]
        self._replace(Table.of(value, self.sectors), lockfs=False)
        self._value = value

    @contextmanager
    def metadata_snapshot(self) -> Generator[int]:
        """Keep the metadata of now readable beside the live ones inside the block; gives their block's number."""
        self.device.send(ReserveMetadataSnap())
        try:
            root = self.state.held_root
            assert root is not None
            yield root
        finally:
            self.device.send(ReleaseMetadataSnap())

    @property
    def out_of_space(self) -> bool:
        """Whether a write found no free block; `grow` or `delete` end it."""
        return self.state.mode is PoolMode.OUT_OF_DATA_SPACE

    def _free_id(self) -> int:
        self._next_id += 1
        return self._next_id - 1

    def _knows(self, dev_id: int) -> bool:
        return dev_id < self._next_id

    def _open(self, dev_id: int, length: int, origin: Disk | None) -> Thin:
        return self._maker.build(lambda dm: Thin(dm, self, dev_id, length=length, origin=origin))


class Thin(DmDevice):
    """A disk that takes its blocks from a pool as they are written; what was not written reads as zeros.

    Attributes:
        pool: The pool.
        dev_id: Its number there.
        origin: The disk that shows where this one was not written; None for zeros.
    """

    def __init__(self, maker: Dm, pool: ThinPool, dev_id: int, *, length: int, origin: Disk | None) -> None:
        self.pool = pool
        self.dev_id = dev_id
        self.origin = origin
        value = targets.Thin(pool=pool.ref, dev_id=dev_id, origin=None if origin is None else origin.ref)
        super().__init__(maker, Table.of(value, length), label="thin")

    @property
    def state(self) -> ThinStatus:
        """What the kernel says of it: how many sectors are mapped, and the highest.

        Raises:
            DmError: Its pool has failed.
        """
        return state_of(self, ThinStatus)

    @property
    def mapped(self) -> int:
        """Bytes that have blocks of the pool, shared ones included."""
        return self.state.mapped * SECTOR

    def snapshot(self) -> Thin:
        """Make another thin disk with the same content; see `ThinPool.snapshot`."""
        return self.pool.snapshot(self)

    def grow(self, size: str | int) -> None:
        """Make the disk `size` large; the new part reads as zeros."""
        length = to_sectors(size)
        if length < self.sectors:
            raise SpecError("size", size, f"the disk has {self.sectors} sectors")
        self._replace(Table.of(self._loaded.lines[0].target, length), lockfs=True)
