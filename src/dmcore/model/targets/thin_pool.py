"""thin-pool: blocks of a data device for thin devices, and the metadata that say whose they are.

Sources: drivers/md/dm-thin.c (pool_ctr, pool_preresume, pool_message, pool_status, set_pool_mode, commit,
alloc_data_block, metadata_operation_failed).
"""

from __future__ import annotations

import errno
from enum import IntEnum
from typing import TYPE_CHECKING

from dmcore.errors import FormatError, ParseError, SpecError
from dmcore.formats.thin import NEEDS_CHECK
from dmcore.model.block import BlockDevice, Suspended, fault
from dmcore.model.target import Area, ModelTarget
from dmcore.model.targets._thin_metadata import ThinMetadata
from dmcore.params import Tokens
from dmcore.targets.thin_pool import MAX_DEV_ID, ThinPool

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from dmcore.model.target import Context

__all__ = ["MODEL", "Mode", "Pool", "ThinPoolModel"]

_METADATA_LOW_WATER = 1024


class Mode(IntEnum):
    """What a pool can do (enum pool_mode)."""

    WRITE = 0
    OUT_OF_DATA_SPACE = 1
    OUT_OF_METADATA_SPACE = 2
    READ_ONLY = 3
    FAIL = 4


class Pool:
    """A pool: what stays when a table is replaced by another one with the same devices.

    Attributes:
        metadata: Devices and mappings.
        block: Sectors of a block.
        target: The line that has the say; None before the first resume.
        users: Tables that name it, and thin devices on it.
        mode: What it can do.
        suspended: Requests to thin devices wait.
        queues: A write that finds no free block waits.
    """

    def __init__(self, data: BlockDevice, metadata: ThinMetadata, block: int) -> None:
        self.data = data
        self.metadata = metadata
        self.block = block
        self.target: ThinPoolModel | None = None
        self.users = 0
        self.mode = Mode.WRITE
        self.suspended = True
        self.queues = True
        self._low_water_told = False
        self._metadata_low_told = False

    def event(self) -> None:
        """Raise an event of the pool's device."""
        if self.target is not None:
            self.target.context.event()

    # -- modes -------------------------------------------------------------------------------------------------------

    @property
    def needs_check(self) -> bool:
        """Whether the metadata must be checked before the pool is written again."""
        return bool(self.metadata.flags & NEEDS_CHECK)

    def set_mode(self, mode: Mode) -> None:
        """Change what the pool can do (set_pool_mode)."""
        old = self.mode
        if mode is Mode.WRITE and self.needs_check:
            mode = old if old is not mode else Mode.READ_ONLY
        if old is Mode.FAIL:
            mode = old
        self.mode = mode
        if self.target is not None:
            self.target.mode = mode
            if mode is Mode.WRITE:
                self.queues = not self.target.target.error_if_no_space
        if mode is not old:
            self.event()

    def take_control(self, target: ThinPoolModel) -> None:
        """Let a line have the say (bind_control_target)."""
        self.target = target
        mode, target.mode = target.mode, self.mode
        self.queues = not target.target.error_if_no_space
        self.set_mode(mode)

    def fail(self) -> None:
        """Go back to the last transaction, and be read-only (metadata_operation_failed)."""
        try:
            self.metadata.abort()
        except (OSError, FormatError):
            self.set_mode(Mode.FAIL)
        self.set_mode(Mode.READ_ONLY)

    def attempt(self, change: Callable[[], None]) -> None:
        """Change metadata; EIO if that fails, and the pool is read-only then."""
        try:
            change()
        except (OSError, FormatError):
            self.fail()
            raise fault(errno.EIO) from None

    def commit(self) -> bool:
        """End the transaction: first the data are made durable, then the metadata. Return whether it worked."""
        if self.mode >= Mode.OUT_OF_METADATA_SPACE:
            return False
        metadata = self.metadata
        if metadata.changed:
            try:
                self.data.flush()
                metadata.commit()
            except (OSError, FormatError):
                self.fail()
                return False
        free = metadata.free
        if not free:
            self.set_mode(Mode.OUT_OF_METADATA_SPACE)
        if self.mode is Mode.OUT_OF_DATA_SPACE and metadata.data.free:
            self.set_mode(Mode.WRITE)
        low = free < self.metadata_low_water
        if low and not self._metadata_low_told:
            self.event()
        self._metadata_low_told = low
        return True

    @property
    def metadata_low_water(self) -> int:
        """Free blocks of metadata below which an event is raised (calc_metadata_threshold)."""
        return min(_METADATA_LOW_WATER, self.metadata.most_blocks // 4)

    def resume(self) -> None:
        """Go on; the low water mark is told again."""
        self._low_water_told = False
        self.suspended = False

    # -- blocks ------------------------------------------------------------------------------------------------------

    def allocate(self) -> int:
        """Take a free block of data.

        Raises:
            OSError: ENOSPC, EIO.
            Suspended: There is none, and the kernel would let the request wait.
        """
        data = self.metadata.data
        assert self.target is not None
        low_water = self.target.target.low_water
        if data.free <= low_water and not self._low_water_told and self._free() <= low_water:
            self._low_water_told = True
            self.event()
        if not data.free:
            if not self._free() and not self.commit():
                raise fault(errno.EIO)
            if not data.free:
                self.set_mode(Mode.OUT_OF_DATA_SPACE)
        if self.mode is not Mode.WRITE:
            raise self.unserviceable()
        return data.allocate()

    def _free(self) -> int:
        """Return the free blocks, with those that were in use at the last commit: they are free after the next one."""
        found: list[int] = []
        self.attempt(lambda: found.append(self.metadata.free_data()))
        return found[0]

    def unserviceable(self) -> Exception:
        """Return what becomes of a write that needs a block (handle_unserviceable_bio)."""
        if self.mode is not Mode.OUT_OF_DATA_SPACE:
            return fault(errno.EIO)
        if not self.queues:
            return fault(errno.ENOSPC)
        return Suspended(
            "the pool has no free block: the kernel would hold this write until the pool grows, or for a minute"
        )

    def drop(self) -> None:
        """Let go of it; the last one who does ends the transaction."""
        self.users -= 1
        if not self.users and self.mode < Mode.OUT_OF_METADATA_SPACE:
            self.commit()


class ThinPoolModel(ModelTarget[ThinPool]):
    """A line with a pool.

    Attributes:
        pool: The pool.
        mode: What this line wants the pool to be able to do, at its next resume.
    """

    def __init__(self, target: ThinPool, context: Context) -> None:
        super().__init__(target, context)
        metadata, self._data = self.lower
        if metadata is self._data:
            raise SpecError("data", target.data, "must not be the metadata device")
        self.mode = Mode.READ_ONLY if target.read_only else Mode.WRITE
        pools = context.shared.setdefault(metadata, [])
        found = next((pool for pool in pools if isinstance(pool, Pool) and pool.users), None)
        if found is None:
            opened = ThinMetadata(metadata, target.block_sectors, may_format=not target.read_only)
            found = Pool(self._data, opened, target.block_sectors)
            pools.append(found)
        elif found.data is not self._data:
            raise SpecError("data", target.data, "another pool cannot take the place of one")
        elif found.target is not None and found.target.target.ignore_discard != target.ignore_discard:
            raise SpecError("ignore_discard", target.ignore_discard, "cannot be changed by a reload")
        self.pool: Pool = found
        self.pool.users += 1

    @property
    def areas(self) -> Iterable[Area]:
        """The line's length of the data device."""
        return (Area(self._data, 0, self.context.length),)

    @property
    def flushed(self) -> Iterable[BlockDevice]:
        """The data device."""
        return (self._data,)

    @property
    def passdown(self) -> bool:
        """Whether discards go to the data device."""
        return not self.target.no_discard_passdown and self._data.discards

    @property
    def discards(self) -> bool:
        """Whether they are passed down."""
        return self.passdown and not self.target.ignore_discard

    # -- a table's life ----------------------------------------------------------------------------------------------

    def preresume(self) -> None:
        """Take control; let the pool grow with its devices. EINVAL for one that became smaller."""
        pool, metadata = self.pool, self.pool.metadata
        pool.take_control(self)
        blocks = self.context.length // pool.block
        if blocks < metadata.data.blocks or metadata.most_blocks < metadata.blocks:
            raise fault(errno.EINVAL)
        if pool.needs_check or pool.mode > Mode.OUT_OF_METADATA_SPACE:
            return
        if blocks > metadata.data.blocks:
            pool.attempt(lambda: metadata.resize_data(blocks))
        if metadata.most_blocks > metadata.blocks:
            if pool.mode is Mode.OUT_OF_METADATA_SPACE:
                pool.set_mode(Mode.WRITE)
            pool.attempt(lambda: metadata.resize_metadata(metadata.most_blocks))
        pool.commit()

    def resume(self) -> None:
        """Let thin devices go on."""
        self.pool.resume()

    def presuspend(self) -> None:
        """Hold thin devices back."""
        self.pool.suspended = True

    def postsuspend(self) -> None:
        """Commit."""
        self.pool.commit()

    def settle(self) -> None:
        """Commit, as the kernel does every second."""
        if not self.pool.suspended:
            self.pool.commit()

    def close(self) -> None:
        """Let go of the pool."""
        if self.pool.target is self and self.pool.users == 1:
            self.pool.suspended = True
        self.pool.drop()

    # -- requests ----------------------------------------------------------------------------------------------------

    def readinto(self, sector: int, buffer: memoryview, flags: int) -> None:
        """Read from the data device."""
        self._data.readinto(sector, buffer, flags)

    def write(self, sector: int, data: memoryview, flags: int) -> None:
        """Write to the data device."""
        self._data.write(sector, data, flags)

    def discard(self, sector: int, count: int) -> None:
        """Discard on the data device."""
        self._data.discard(sector, count)

    # -- messages and texts ------------------------------------------------------------------------------------------

    def message(self, words: list[str]) -> str:
        """Take a message about thin devices, the transaction id or the metadata snapshot; commit."""
        if self.pool.mode >= Mode.OUT_OF_METADATA_SPACE:
            raise fault(errno.EOPNOTSUPP)
        metadata = self.pool.metadata
        numbers = {"create_thin": 1, "create_snap": 2, "delete": 1, "set_transaction_id": 2}
        name = words[0].lower()
        if name not in {*numbers, "reserve_metadata_snap", "release_metadata_snap"}:
            raise fault(errno.EINVAL)
        if len(words) != 1 + numbers.get(name, 0):
            raise fault(errno.EINVAL)
        most = 2**64 - 1 if name == "set_transaction_id" else MAX_DEV_ID
        values = [_number(word, most) for word in words[1:]]
        if name == "reserve_metadata_snap":
            self.pool.commit()
        changes: dict[str, Callable[..., None]] = {
            "create_thin": metadata.create,
            "create_snap": metadata.snapshot,
            "delete": metadata.delete,
            "set_transaction_id": self._set_transaction_id,
            "reserve_metadata_snap": metadata.hold,
            "release_metadata_snap": metadata.release,
        }
        try:
            changes[name](*values)
        except FormatError:
            raise fault(errno.EILSEQ) from None
        self.pool.commit()
        return ""

    def _set_transaction_id(self, current: int, new: int) -> None:
        if self.pool.metadata.transaction_id != current:
            raise fault(errno.EINVAL)
        self.pool.metadata.set_transaction_id(new)

    def status(self) -> str:
        """Commit, unless suspended; return use, mode and what becomes of discards and of writes without a block."""
        pool, metadata = self.pool, self.pool.metadata
        if pool.mode is not Mode.FAIL and not pool.suspended:
            pool.commit()
        if pool.mode is Mode.FAIL:
            return "Fail"
        modes = {Mode.WRITE: "rw", Mode.OUT_OF_DATA_SPACE: "out_of_data_space"}
        discards = "discard_passdown" if self.passdown else "no_discard_passdown"
        words = [
            f"{metadata.transaction_id} {metadata.blocks - metadata.free}/{metadata.blocks}",
            f"{metadata.data.blocks - metadata.data.free}/{metadata.data.blocks}",
            str(metadata.held_root or "-"),
            modes.get(pool.mode, "ro"),
            "ignore_discard" if self.target.ignore_discard else discards,
            "queue_if_no_space" if pool.queues else "error_if_no_space",
            "needs_check" if pool.needs_check else "-",
            str(pool.metadata_low_water),
        ]
        return " ".join(words)

    def params(self) -> str:
        """Return the line with the number of features, also if there is none."""
        text = super().params()
        return text if len(text.split()) > 4 else f"{text} 0"


def _number(word: str, most: int) -> int:
    try:
        value = Tokens(word).strict("a number", bits=64)
    except ParseError:
        raise fault(errno.EINVAL) from None
    if value > most:
        raise fault(errno.EINVAL)
    return value


MODEL = ThinPoolModel
