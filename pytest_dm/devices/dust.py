"""Dust: a disk with bad blocks."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dmcore import targets
from dmcore.errors import SpecError
from dmcore.table import Table
from dmcore.targets.dust import (
    AddBadBlock,
    ClearBadBlocks,
    Disable,
    DustStatus,
    Enable,
    ListBadBlocks,
    Quiet,
    RemoveBadBlock,
)
from dmcore.units import SECTOR
from pytest_dm.devices.base import DmDevice
from pytest_dm.devices.fault import Fault

if TYPE_CHECKING:
    from pytest_dm.devices.base import Disk
    from pytest_dm.factory import Dm

__all__ = ["Dust"]


class Dust(DmDevice):
    """A disk with a list of bad blocks: once enabled, reading one fails with EIO, and writing it heals it.

    Blocks are counted from 0 in units of `bad_block_size`. A write that touches several blocks heals each of them; a
    flush counts as a write to block 0, so that an fsync heals that one.

    Attributes:
        bad_block_size: Bytes in a bad block.
    """

    def __init__(self, maker: Dm, lower: Disk, *, bad_block_size: int) -> None:
        self.bad_block_size = bad_block_size
        self._write_failures: dict[int, int] = {}
        self._listed: tuple[int, ...] = ()
        self._was_enabled = False
        table = Table.of(targets.Dust(dev=lower.ref, block_size=bad_block_size), lower.size // SECTOR)
        super().__init__(maker, table, label="dust", lower=lower)
        self.device.send(Quiet())

    def add_bad(self, block: int, count: int = 1, *, write_failures: int = 0) -> None:
        """Make `count` blocks bad from `block` on.

        Args:
            block: Number of the first.
            count: How many.
            write_failures: How many writes to each fail (EIO) before one heals it, 0..255.

        Raises:
            SpecError: Past the device's end, or a block that is bad already; nothing is changed.
        """
        blocks = self._blocks(block, count)
        known = set(self.bad_blocks())
        for number in blocks:
            if number in known:
                raise SpecError("block", number, "is bad already")
        messages = [AddBadBlock(number, write_failures) for number in blocks]
        for message in messages:
            self.device.send(message)
            self._write_failures[message.block] = write_failures
        self.forget_cached()

    def remove_bad(self, block: int, count: int = 1) -> None:
        """Make `count` blocks good from `block` on.

        Raises:
            SpecError: A block that is not bad (a write may have healed it); nothing is changed.
        """
        blocks = self._blocks(block, count)
        known = set(self.bad_blocks())
        for number in blocks:
            if number not in known:
                raise SpecError("block", number, "is not bad")
        for number in blocks:
            self.device.send(RemoveBadBlock(number))

    def bad_blocks(self) -> tuple[int, ...]:
        """Return the bad blocks, ascending; those that writes healed are gone."""
        return self.device.send(ListBadBlocks())

    def clear(self) -> bool:
        """Make all blocks good; returns whether any was bad."""
        return self.device.send(ClearBadBlocks())

    @property
    def enabled(self) -> bool:
        """Whether bad blocks fail."""
        (status,) = self.status()
        assert isinstance(status, DustStatus), status
        return status.enabled

    def enable(self) -> Fault:
        """Let bad blocks fail from now on; as a `with` block, until its end."""
        was_enabled = self.enabled
        self.device.send(Enable())
        self.forget_cached()
        return Fault(lambda: None if was_enabled else self.disable())

    def disable(self) -> None:
        """Let everything pass from now on; the list stays, writes do not change it."""
        self.device.send(Disable())

    def _blocks(self, block: object, count: object) -> range:
        there = self.size // self.bad_block_size
        if not isinstance(block, int) or not 0 <= block < there:
            raise SpecError(
                "block", block, f"the device has blocks 0..{there - 1} of {self.bad_block_size} bytes"
            )
        if not isinstance(count, int) or not 1 <= count <= there - block:
            raise SpecError("count", count, f"from block {block} on there are {there - block}")
        return range(block, block + count)

    def cut_off(self, table: Table) -> None:
        """Remember the list, which a new table forgets."""
        self._listed = self.bad_blocks()
        self._was_enabled = self.enabled
        super().cut_off(table)

    def bring_back(self) -> None:
        """Bring the list back too: bad blocks survive a power cut."""
        super().bring_back()
        self.device.send(Quiet())
        for block in self._listed:
            self.device.send(AddBadBlock(block, self._write_failures.get(block, 0)))
        if self._was_enabled:
            self.enable()
