"""The bitmap of integrity: which blocks are being written (mode B).

Source: drivers/md/dm-integrity.c (block_bitmap_op, bitmap_block_work).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dmcore.formats.integrity import SB_SECTORS
from dmcore.model.block import FUA, SYNC
from dmcore.model.stores import read_exactly
from dmcore.units import SECTOR

if TYPE_CHECKING:
    from dmcore.model.block import BlockDevice

__all__ = ["Bitmap"]


class Bitmap:
    """A bit for each piece of the data; in memory, and where the journal else is.

    Args:
        device: What it is on.
        start: First sector of the superblock there.
        provided: Sectors of data.
        log2_sectors: Log2 of the sectors that a bit stands for.

    Attributes:
        writing: The bits that are on disk.
        stale: Those whose tags are to be made anew.
    """

    def __init__(self, device: BlockDevice, start: int, provided: int, log2_sectors: int) -> None:
        self._device, self._first, self._shift = device, start + SB_SECTORS, log2_sectors
        bits = -(-provided // (1 << log2_sectors))
        self.writing = bytearray(-(-bits // (4096 * 8)) * 4096)
        self.stale = bytearray(len(self.writing))

    def _bits(self, first: int, end: int) -> range:
        return range(first >> self._shift, ((end - 1) >> self._shift) + 1)

    def mark(self, bits: bytearray, first: int, end: int) -> bool:
        """Set the bits of a range; return whether one was clear."""
        changed = False
        for bit in self._bits(first, end):
            if not bits[bit >> 3] >> (bit & 7) & 1:
                bits[bit >> 3] |= 1 << (bit & 7)
                changed = True
        return changed

    def is_stale(self, first: int, end: int) -> bool:
        """Whether the tags of a part of a range are to be made anew."""
        return any(self.stale[bit >> 3] >> (bit & 7) & 1 for bit in self._bits(first, end))

    def clear(self) -> None:
        """Clear what is being written, in memory."""
        self.writing[:] = bytes(len(self.writing))

    def will_write(self, first: int, end: int) -> None:
        """Have the bits of a range on disk before it is written."""
        if self.mark(self.writing, first, end):
            self.save()

    def save(self) -> None:
        """Write it."""
        self._device.write(self._first, memoryview(bytes(self.writing)), SYNC | FUA)

    def load(self) -> None:
        """Read it."""
        self.writing[:] = read_exactly(self._device, self._first, len(self.writing) // SECTOR, "the bitmap")
