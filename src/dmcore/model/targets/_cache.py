"""The metadata of a cache device, in transactions. Sources: drivers/md/dm-cache-metadata.c."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from dmcore.errors import FormatError
from dmcore.formats.cache import (
    DIRTY,
    FLAG_BITS,
    NO_STATISTICS,
    SUPERBLOCK,
    VALID,
    CacheFlag,
    SuperBlock,
)
from dmcore.formats.persistent_data import Disk, Reader, SpaceMapRoot
from dmcore.formats.persistent_writer import Array, Bitset, Metadata

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

__all__ = ["CacheMetadata"]

_MAPPING = struct.Struct("<Q")
_HINT = struct.Struct("<I")
_NO_ROOT = SpaceMapRoot(0, 0, 0, 0)


class CacheMetadata:
    """Mappings, dirty bits, hints and discards on the metadata disk.

    Attributes:
        now: What the next superblock says, but for roots.
        changed: Whether there is something to commit.
        clean: Whether the dirty bits and hints count.
        discards: The discarded blocks, as of the last clean end.
    """

    def __init__(self, disk: Disk, block_sectors: int, version: int) -> None:
        self.changed = False
        found = SuperBlock.read(Reader(disk))
        if found is None:
            self._format(disk, block_sectors, version)
            return
        if found.block_sectors != block_sectors:
            reason = f"the metadata are of blocks of {found.block_sectors} sectors, not {block_sectors}"
            raise FormatError(reason, 232)
        self.now = found
        self.clean = CacheFlag.CLEAN_SHUTDOWN in found.flags
        self._metadata = metadata = Metadata.open(disk, found.space_map)
        reader = metadata.reader
        count = found.blocks
        tree = reader.array(found.mappings, _MAPPING.size, count, "array of mappings")
        self._mappings = Array(metadata, _MAPPING.size, found.mappings, tree)
        self._hints: Array | None = None
        if found.hints and found.hint_size == _HINT.size:
            tree = reader.array(found.hints, _HINT.size, count, "array of hints")
            self._hints = Array(metadata, _HINT.size, found.hints, tree)
        tree = reader.bitset(found.discards, found.discard_blocks, "discard bitset")
        self.discards = Bitset(metadata, found.discards, tree, found.discard_blocks)
        self._dirty: Bitset | None = None
        if found.version == 2:
            tree = reader.bitset(found.dirty, count, "dirty bitset")
            self._dirty = Bitset(metadata, found.dirty, tree, count)

    def _format(self, disk: Disk, block_sectors: int, version: int) -> None:
        self._metadata = metadata = Metadata(disk)
        self._mappings = Array(metadata, _MAPPING.size)
        self._hints = None
        self._dirty = Bitset(metadata) if version == 2 else None
        self.discards = Bitset(metadata)
        none = CacheFlag(0)
        self.now = SuperBlock(
            _NO_ROOT, none, version, "", (0, 0, 0), 0, 0, 0, 0, 0, 0, block_sectors, 0, NO_STATISTICS, 0
        )
        self.commit(clean=False)
        self.clean = True

    @property
    def used(self) -> int:
        """Metadata blocks in use."""
        return self._metadata.used

    @property
    def total(self) -> int:
        """Metadata blocks there are."""
        return self._metadata.blocks

    def commit(self, *, clean: bool, needs_check: bool = False) -> None:
        """End the transaction; `clean`: dirty bits and hints are up to date."""
        flags = self.now.flags & ~CacheFlag.CLEAN_SHUTDOWN
        flags |= CacheFlag.CLEAN_SHUTDOWN if clean else CacheFlag(0)
        flags |= CacheFlag.NEEDS_CHECK if needs_check else CacheFlag(0)
        self.now = self.now._replace(
            flags=flags,
            mappings=self._mappings.save(),
            hints=self._hints.save() if self._hints is not None else self.now.hints,
            discards=self.discards.save(),
            discard_blocks=self.discards.bits,
            blocks=len(self._mappings),
            dirty=self._dirty.save() if self._dirty is not None else 0,
        )
        self._metadata.commit(
            SUPERBLOCK, lambda root: self.now._replace(space_map=SpaceMapRoot.decode(root, 0)).encode()
        )
        self.changed = False

    def resize(self, blocks: int) -> None:
        """Let the cache device have so many blocks."""
        self._mappings.resize(blocks, bytes(_MAPPING.size))
        if self._dirty is not None:
            self._dirty.resize_bits(blocks)
        if self._hints is not None:
            self._hints.resize(blocks, bytes(_HINT.size))
        self.changed = True

    def _mapping(self, cblock: int) -> int:
        (value,) = _MAPPING.unpack_from(self._mappings.data, cblock * _MAPPING.size)
        return int(value)

    def mappings(self) -> Iterator[tuple[int, int, bool]]:
        """Yield `(block of the cache device, block of the origin, whether it is dirty)`."""
        for cblock in range(len(self._mappings)):
            value = self._mapping(cblock)
            if value & VALID:
                marked = self._dirty.test(cblock) if self._dirty is not None else bool(value & DIRTY)
                yield cblock, value >> FLAG_BITS, marked or not self.clean

    def place(self, blocks: Mapping[int, int]) -> None:
        """Record which block of the origin a block of the cache device holds, by the latter."""
        for cblock, oblock in blocks.items():
            _MAPPING.pack_into(self._mappings.data, cblock * _MAPPING.size, oblock << FLAG_BITS | VALID)
            self._mappings.touch(cblock)
        self.changed = True

    def remove(self, cblock: int) -> None:
        """Forget what a block of the cache device is for."""
        _MAPPING.pack_into(self._mappings.data, cblock * _MAPPING.size, 0)
        self._mappings.touch(cblock)
        self.changed = True

    def set_dirty(self, dirty: set[int]) -> None:
        """Record which blocks of the cache device are dirty."""
        for cblock in range(len(self._mappings)):
            if self._dirty is not None:
                self._dirty.set(cblock, to=cblock in dirty)
                continue
            value = self._mapping(cblock)
            new = value | DIRTY if cblock in dirty else value & ~DIRTY
            if new != value:
                _MAPPING.pack_into(self._mappings.data, cblock * _MAPPING.size, new)
                self._mappings.touch(cblock)
        self.changed = True

    def set_policy(self, name: str) -> None:
        """Record whose the hints are; those of another policy, or of an unclean end, become 0."""
        before = self.now
        kept = self.clean and (before.policy, before.policy_version[0]) == (name, 2)
        self.now = before._replace(policy=name, policy_version=(2, 0, 0), hint_size=_HINT.size)
        if self._hints is None:
            self._hints = Array(self._metadata, _HINT.size)
        if not kept:
            self._hints.resize(0, b"")
        self._hints.resize(len(self._mappings), bytes(_HINT.size))
