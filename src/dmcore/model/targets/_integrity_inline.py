"""Mode I of integrity: tags stand beside the data, on a disk that has room for them.

Source: drivers/md/dm-integrity.c (dm_integrity_ctr, dm_integrity_map_inline, dm_integrity_check, integrity_recalc_inline).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dmcore.errors import SpecError
from dmcore.formats.hashes import digest_size
from dmcore.units import SECTOR

if TYPE_CHECKING:
    from dmcore.formats.integrity import Layout
    from dmcore.model.block import BlockDevice
    from dmcore.model.targets._integrity_tags import Tags
    from dmcore.targets.integrity import Integrity

__all__ = ["Inline", "check_inline"]


def check_inline(target: Integrity, device: BlockDevice, tag_size: int) -> None:
    """Refuse what does not go with mode I.

    Raises:
        SpecError: An option, or a disk whose tags are too small or for blocks of another size.
    """
    refused = {
        "meta_device": target.meta_device,
        "journal_crypt": target.journal_crypt,
        "journal_mac": target.journal_mac,
        "allow_discards": target.allow_discards or target.allow_discards_keyed or None,
    }
    for field, value in refused.items():
        if value is not None:
            raise SpecError(field, str(value), "does not go with mode I")
    if target.internal_hash is None:
        raise SpecError("internal_hash", None, "mode I needs one")
    name = device.word or "the device"
    if device.tag_size < tag_size:
        reason = f"{name} keeps {device.tag_size or 'no'} bytes of tags, and has to keep {tag_size}"
        raise SpecError("dev", target.dev, reason)
    if device.tag_interval != target.block_size:
        reason = f"the tags of {name} are for {device.tag_interval} bytes each"
        raise SpecError("block_size", target.block_size, reason)


class Inline:
    """Requests of one line.

    Args:
        target: The line.
        layout: Where its data are.
        device: The disk.
        tags: Makes tags.
    """

    def __init__(self, target: Integrity, layout: Layout, device: BlockDevice, tags: Tags) -> None:
        assert target.internal_hash is not None
        self._layout, self._device, self._tags = layout, device, tags
        self._unit = target.block_size // SECTOR
        self._compared = min(digest_size(target.internal_hash.name), tags.size)

    def read(self, sector: int, buffer: memoryview, flags: int, *, check: bool) -> bool:
        """Read; return whether the tags fit, if they are to be checked."""
        size, count = self._device.tag_size, len(buffer) // SECTOR // self._unit
        stored = bytearray(size * count)
        at = self._layout.data_sector(sector)
        self._device.readinto_tagged(at, buffer, memoryview(stored), flags)
        if not check:
            return True
        made, some = self._tags.made(sector, buffer), self._compared
        return all(
            made[number * self._tags.size :][:some] == bytes(stored[number * size :][:some])
            for number in range(count)
        )

    def write(self, sector: int, data: memoryview, flags: int) -> None:
        """Write data with their tags; the rest of the disk's room is zeros."""
        made, mine, room = self._tags.made(sector, data), self._tags.size, self._device.tag_size
        tags = b"".join(made[at : at + mine].ljust(room, b"\0") for at in range(0, len(made), mine))
        self._device.write_tagged(self._layout.data_sector(sector), data, memoryview(tags), flags)
