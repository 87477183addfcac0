"""Stores that fail when they are told to, and damage."""

from __future__ import annotations

import errno

from dmcore.formats.persistent_data import Reader, stamp
from dmcore.model.block import SYNC
from dmcore.model.stores import MemoryStore


class FailingStore(MemoryStore):
    """Fails requests that touch certain sectors, and flushes.

    Attributes:
        unread, unwritten: The sectors whose reads and writes fail.
        flushes: Whether flushes succeed.
        error: The errno of what fails.
    """

    def __init__(self, sectors: int, word: str = "") -> None:
        super().__init__(sectors * 512, word=word)
        self.unread: set[int] = set()
        self.unwritten: set[int] = set()
        self.flushes = True
        self.error = errno.EIO

    def fail(self) -> None:
        """Let everything fail."""
        self.unread = self.unwritten = set(range(self.sectors))
        self.flushes = False

    def heal(self) -> None:
        """Let everything succeed."""
        self.unread = self.unwritten = set()
        self.flushes = True

    def peek(self, sector: int) -> int:
        """Return the first byte of a sector, whatever fails."""
        data = bytearray(512)
        super().readinto(sector, memoryview(data))
        return data[0]

    def readinto(self, sector, buffer, flags=SYNC):
        if self.unread & set(range(sector, sector + len(buffer) // 512)):
            raise OSError(self.error, "unread")
        super().readinto(sector, buffer, flags)

    def write(self, sector, data, flags=SYNC):
        if self.unwritten & set(range(sector, sector + len(data) // 512)):
            raise OSError(self.error, "unwritten")
        super().write(sector, data, flags)

    def flush(self):
        if not self.flushes:
            raise OSError(self.error, "not flushed")
        super().flush()


class BreakingStore(MemoryStore):
    """Fails all requests of some kinds.

    Attributes:
        broken: Words: "read", "write", "flush".
    """

    broken = ""

    def _check(self, what):
        if what in self.broken:
            raise OSError(errno.EIO, "broken")

    def readinto(self, sector, buffer, flags=SYNC):
        self._check("read")
        super().readinto(sector, buffer, flags)

    def write(self, sector, data, flags=SYNC):
        self._check("write")
        super().write(sector, data, flags)

    def flush(self):
        self._check("flush")


def damage(store, offset, data):
    """Overwrite bytes of a store, as far as it goes."""
    first = offset // 512
    count = min(-(-(offset + len(data)) // 512), store.sectors) - first
    if count > 0:
        around = store.read(first, count)
        inside = data[: count * 512 - offset % 512]
        around[offset % 512 : offset % 512 + len(inside)] = inside
        store.write(first, memoryview(around))


def damage_superblock(store, kind, at, data):
    """Overwrite bytes of a superblock of persistent data, put its checksum right, and return the block."""
    block = Reader(store).raw(0, "superblock")
    block[at : at + len(data)] = data
    store.write(0, memoryview(stamp(kind, 0, block)))
    return block
