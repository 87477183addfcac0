"""The metadata of an era device, in transactions. Sources: drivers/md/dm-era-target.c (the functions metadata_*)."""

from __future__ import annotations

import errno
import struct
from typing import TYPE_CHECKING

from dmcore.errors import FormatError
from dmcore.formats.era import NO_WRITESET, SUPERBLOCK, WRITESET, SuperBlock, Writeset
from dmcore.formats.persistent_data import Disk, Reader, SpaceMapRoot
from dmcore.formats.persistent_writer import Array, Bitset, Metadata
from dmcore.model.block import fault

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["EraMetadata"]

_MOST_BLOCKS = 1 << 31
_ERA = struct.Struct("<I")


class EraMetadata:
    """What is known of the blocks' eras.

    Attributes:
        blocks: Blocks the device has, as far as the metadata know.
        era: The present era.
        snapshot: Block of the metadata snapshot; 0 without one.
    """

    def __init__(self, disk: Disk, block_sectors: int) -> None:
        self._disk = disk
        self._block_sectors = block_sectors
        self._stale = False
        found = SuperBlock.read(Reader(disk))
        if found is not None:
            self._open(found)
            return
        self._metadata = Metadata(disk)
        self.blocks = self.era = self.snapshot = 0
        self._current = NO_WRITESET
        self._bits: Bitset | None = None
        self._past: dict[int, Writeset] = {}
        self._tree = self._metadata.tree([], WRITESET.size)
        self._eras = Array(self._metadata, _ERA.size)
        self.commit()

    def _open(self, found: SuperBlock) -> None:
        if found.block_sectors != self._block_sectors:
            reason = f"the metadata are of blocks of {found.block_sectors} sectors, not {self._block_sectors}"
            raise FormatError(reason, 172)
        self._metadata = Metadata.open(self._disk, found.space_map)
        reader = self._metadata.reader
        self.blocks, self.era, self.snapshot = found.blocks, found.era, found.snapshot
        self._tree = found.writesets
        entries = reader.btree(found.writesets, WRITESET.size)
        self._past = {era: Writeset(*WRITESET.unpack(value)) for era, value in entries}
        eras = reader.array(found.eras, _ERA.size, found.blocks, "era array")
        self._eras = Array(self._metadata, _ERA.size, found.eras, eras)
        self._current = found.writeset
        self._bits = self._bitset(found.writeset) if found.writeset.root else None

    def _bitset(self, writeset: Writeset) -> Bitset:
        tree = self._metadata.reader.bitset(writeset.root, writeset.bits, "writeset")
        return Bitset(self._metadata, writeset.root, tree, writeset.bits)

    def transact(self, *changes: Callable[[], None]) -> None:
        """Make changes and commit. After one that failed, begin again from what the disk holds.

        Raises:
            OSError, FormatError: The disk still holds the transaction before.
        """
        if self._stale:
            found = SuperBlock.read(Reader(self._disk))
            if found is None:
                raise fault(errno.EIO)
            self._open(found)
        self._stale = True
        for change in changes:
            change()
        self.commit()
        self._stale = False

    @property
    def used(self) -> int:
        """Metadata blocks in use."""
        return self._metadata.used

    @property
    def total(self) -> int:
        """Metadata blocks there are."""
        return self._metadata.blocks

    def _superblock(self, space_map: bytes = bytes(128)) -> SuperBlock:
        return SuperBlock(
            SpaceMapRoot.decode(space_map, 0),
            self._block_sectors,
            self.blocks,
            self.era,
            self._current,
            self._tree,
            self._eras.root,
            self.snapshot,
        )

    def commit(self) -> bytes:
        """End the transaction; return the space map's root. OSError leaves the disk with the transaction before."""
        kept = b""

        def superblock(space_map: bytes) -> bytearray:
            nonlocal kept
            kept = space_map
            return self._superblock(space_map).encode()

        if self._bits is not None:
            self._current = Writeset(self._bits.bits, self._bits.save())
        self._eras.save()
        self._metadata.commit(SUPERBLOCK, superblock)
        return kept

    def resize(self, blocks: int) -> None:
        """Let the device have so many blocks; EINVAL for 2^31 or more."""
        if blocks >= _MOST_BLOCKS:
            raise fault(errno.EINVAL)
        self._eras.resize(blocks, bytes(_ERA.size))
        self.blocks = blocks
        self.commit()

    def mark(self, block: int) -> None:
        """Put a block into the present writeset."""
        assert self._bits is not None
        self._bits.set(block)

    def _save_past(self) -> None:
        """Write the btree of past writesets; each of them is referred to by one tree more, until the old one goes."""
        for writeset in self._past.values():
            self._metadata.take(writeset.root)
        entries = [(era, WRITESET.pack(*writeset)) for era, writeset in sorted(self._past.items())]
        old, self._tree = self._tree, self._metadata.tree(entries, WRITESET.size)
        self._drop_past(old)

    def _drop_past(self, root: int) -> None:
        self._metadata.drop_tree(
            root, WRITESET.size, lambda value: self._metadata.drop_array(WRITESET.unpack(value)[1])
        )

    def archive(self) -> None:
        """Put the present writeset to the past ones (metadata_era_archive)."""
        bits = self._bits
        if bits is None:
            return
        root = bits.save()
        self._past[self.era] = Writeset(bits.bits, root)
        self._bits, self._current = None, Writeset(bits.bits, 0)
        self._save_past()
        self._metadata.drop(root)

    def rollover(self) -> None:
        """Begin the next era (metadata_era_rollover)."""
        self.archive()
        self._bits = Bitset(self._metadata)
        self._bits.resize_bits(self.blocks)
        self.era = (self.era + 1) % 2**32

    def digest(self) -> None:
        """Put the past writesets into the array, oldest first."""
        if not self._past:
            return
        for era in sorted(self._past):
            bits = self._bitset(self._past[era])
            for block in bits:
                if block < self.blocks:
                    _ERA.pack_into(self._eras.data, block * _ERA.size, era)
                    self._eras.touch(block)
        self._past.clear()
        self._save_past()

    def take_snapshot(self) -> None:
        """Keep a copy of the metadata (metadata_take_snap); EINVAL if there is one."""
        if self.snapshot:
            raise fault(errno.EINVAL)
        self.rollover()
        copy = self._superblock(self.commit())
        self.snapshot = self._metadata.new(SUPERBLOCK, copy.encode())
        self._metadata.take(self._tree)
        self._metadata.take(self._eras.root)

    def drop_snapshot(self) -> None:
        """Give the copy up (metadata_drop_snap); EINVAL if there is none."""
        if not self.snapshot:
            raise fault(errno.EINVAL)
        found = SuperBlock.read(self._metadata.reader, self.snapshot)
        if found is None:
            raise FormatError(
                f"the metadata snapshot at block {self.snapshot} is blank", self.snapshot * 4096
            )
        number, self.snapshot = self.snapshot, 0
        self._drop_past(found.writesets)
        self._metadata.drop_array(found.eras)
        self._metadata.drop(number)
