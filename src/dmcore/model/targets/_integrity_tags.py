"""The tags of integrity: made, read and written where they stand.

Source: drivers/md/dm-integrity.c (integrity_sector_checksum, dm_integrity_rw_tag, integrity_metadata).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dmcore.formats.hashes import digests
from dmcore.units import SECTOR

if TYPE_CHECKING:
    from dmcore.formats.hashes import Hash
    from dmcore.formats.integrity import Layout
    from dmcore.model.block import BlockDevice
    from dmcore.targets.integrity import Integrity

__all__ = ["Tags"]

_FILLER = b"\xf6"


class Tags:
    """The tags of one line.

    Args:
        target: The line.
        layout: Where they stand.
        device: On which device.
        algorithm: What makes them; None: the layer above does.
        prefix: What goes before all that is hashed.

    Attributes:
        size: Bytes of a tag.
    """

    def __init__(
        self, target: Integrity, layout: Layout, device: BlockDevice, algorithm: Hash | None, prefix: bytes
    ) -> None:
        self._layout, self._device, self._hash = layout, device, algorithm
        self._prefix = prefix
        self._keyed, self._fills = target.allow_discards_keyed, target.allow_discards
        self._step = target.block_size
        self._unit = target.block_size // SECTOR
        self.size = layout.head.tag_size

    def made(self, sector: int, data: memoryview | bytes | bytearray) -> bytes:
        """Return the tags of whole blocks from `sector` on."""
        assert self._hash is not None
        end = sector + len(data) // SECTOR
        heads = [self._prefix + each.to_bytes(8, "little") for each in range(sector, end, self._unit)]
        size = self.size
        found = digests(self._hash, heads, data, self._step)
        return b"".join(digest[:size].ljust(size, b"\0") for digest in found)

    def of_discarded(self, sector: int, count: int) -> bytes:
        """Return what the tags of discarded blocks are: all the same, or with `allow_discards_keyed` of the place only."""
        if not self._keyed:
            return _FILLER * (count // self._unit * self.size)
        return b"".join(self._of_nothing(each) for each in range(sector, sector + count, self._unit))

    def _of_nothing(self, sector: int) -> bytes:
        assert self._hash is not None
        (digest,) = digests(self._hash, [self._prefix + sector.to_bytes(8, "little")], b"", 0)
        return digest[: self.size].ljust(self.size, b"\0")

    def fit(self, sector: int, data: memoryview | bytes, stored: bytes) -> bool:
        """Whether data fit the stored tags; those of discarded blocks fit any data."""
        made = self.made(sector, data)
        if made == stored:
            return True
        for number, at in enumerate(range(0, len(made), self.size)):
            found = stored[at : at + self.size]
            if made[at : at + self.size] == found:
                continue
            if self._keyed:
                if found != self._of_nothing(sector + number * self._unit):
                    return False
            elif not (self._fills and found == _FILLER * self.size):
                return False
        return True

    # -- on disk -----------------------------------------------------------------------------------------------------

    def _span(self, sector: int, count: int) -> tuple[int, int, int]:
        """Return where the tags of `count` sectors stand: first sector and sectors of the device, first byte there."""
        begin = self._layout.tag_byte(sector)
        end = begin + count // self._unit * self.size
        unit = self._device.block_size
        first = begin // unit * unit
        return first // SECTOR, -(-(end - first) // unit) * unit // SECTOR, begin - first

    def read(self, sector: int, count: int) -> bytes:
        """Return the tags of `count` sectors."""
        first, sectors, skip = self._span(sector, count)
        return bytes(self._device.read(first, sectors)[skip : skip + count // self._unit * self.size])

    def write(self, sector: int, tags: bytes | memoryview) -> None:
        """Write the tags of blocks from `sector` on."""
        first, sectors, skip = self._span(sector, len(tags) // self.size * self._unit)
        around = self._device.read(first, sectors)
        around[skip : skip + len(tags)] = tags
        self._device.write(first, memoryview(around))
