"""era: a linear device that keeps a record of which blocks were written when.

Sources: drivers/md/dm-era-target.c (era_map, process_deferred_bios, process_rpc_calls, era_preresume, era_postsuspend).
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

from dmcore.errors import FormatError
from dmcore.formats.persistent_data import BLOCK_SECTORS
from dmcore.model.block import Suspended, fault
from dmcore.model.target import ModelTarget
from dmcore.model.targets._era import EraMetadata
from dmcore.targets.era import Era
from dmcore.units import SECTOR

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from dmcore.model.block import BlockDevice
    from dmcore.model.target import Context

__all__ = ["MODEL"]


class _Era(ModelTarget[Era]):
    def __init__(self, target: Era, context: Context) -> None:
        super().__init__(target, context)
        disk, self._origin = self.lower
        self.max_io_len = self._block = target.block_sectors
        self._blocks = 0
        self._suspended = True
        self._marked: set[int] = set()
        self._metadata = EraMetadata(disk, target.block_sectors)

    @property
    def flushed(self) -> Iterable[BlockDevice]:
        """The origin."""
        return (self._origin,)

    @property
    def discards(self) -> bool:
        """Whether the origin takes them."""
        return self._origin.discards

    def _transaction(self, *changes: Callable[[], None]) -> None:
        """Change metadata and commit; what fails, or is damaged, is an I/O error."""
        try:
            self._metadata.transact(*changes)
        except FormatError:
            raise fault(errno.EIO) from None

    # -- a table's life ----------------------------------------------------------------------------------------------

    def preresume(self) -> None:
        """Let the metadata have the line's blocks, and begin an era."""
        blocks = -(-self.context.length // self._block)
        if self._blocks != blocks:
            self._transaction(lambda: self._metadata.resize(blocks))
            self._blocks = blocks
        self._marked.clear()
        self._transaction(self._metadata.rollover)
        self._suspended = False

    def postsuspend(self) -> None:
        """End the era, as far as the metadata device lets it."""
        self._suspended = True
        try:
            self._transaction(self._metadata.archive)
        except OSError:
            return

    def settle(self) -> None:
        """Put what is known of past eras into the array of blocks."""
        if self._suspended:
            return
        try:
            self._transaction(self._metadata.digest)
        except OSError:
            return

    # -- requests ----------------------------------------------------------------------------------------------------

    def _check(self, sector: int, count: int) -> None:
        """Refuse what lies past the end of the origin: the kernel checks a line's length only here."""
        if sector + count > self._origin.sectors:
            raise fault(errno.EIO)

    def _mark(self, sector: int) -> None:
        """Record a write, durably, before it is done."""
        block = sector // self._block
        if block in self._marked:
            return
        try:
            self._transaction(lambda: self._metadata.mark(block))
        except OSError:
            raise fault(errno.EIO) from None
        self._marked.add(block)

    def readinto(self, sector: int, buffer: memoryview, flags: int) -> None:
        """Read the origin."""
        self._check(sector, len(buffer) // SECTOR)
        self._origin.readinto(sector, buffer, flags)

    def write(self, sector: int, data: memoryview, flags: int) -> None:
        """Record the block, then write the origin."""
        self._mark(sector)
        self._check(sector, len(data) // SECTOR)
        self._origin.write(sector, data, flags)

    def discard(self, sector: int, count: int) -> None:
        """Record the first block only, as the kernel does; discard on the origin."""
        self._mark(sector)
        self._check(sector, count)
        self._origin.discard(sector, count)

    # -- what it says ------------------------------------------------------------------------------------------------

    def _running(self) -> None:
        if self._suspended:
            message = "the era device is suspended: the kernel would hold this back until a resume"
            raise Suspended(message)

    def status(self) -> str:
        """Commit; return the use of the metadata, the era and the metadata snapshot."""
        self._running()
        try:
            self._transaction()
        except OSError:
            return "Error"
        metadata = self._metadata
        return f"{BLOCK_SECTORS} {metadata.used}/{metadata.total} {metadata.era} {metadata.snapshot or '-'}"

    def message(self, words: list[str]) -> str:
        """Take `checkpoint`, `take_metadata_snap` or `drop_metadata_snap`."""
        known = {
            "checkpoint": self._metadata.rollover,
            "take_metadata_snap": self._metadata.take_snapshot,
            "drop_metadata_snap": self._metadata.drop_snapshot,
        }
        do = known.get(words[0].lower())
        if do is None or len(words) > 1:
            raise fault(errno.EINVAL)
        self._running()
        if do != self._metadata.drop_snapshot:
            self._marked.clear()
        self._transaction(do)
        return ""


MODEL = _Era
