"""The entries of a writecache, as the kernel keeps them in memory. Sources: drivers/md/dm-writecache.c.

Which block is taken next, which one is written back first and which parts of the metadata are written are all as in the
kernel, so that a cache device ends up with the same bytes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dmcore.errors import FormatError
from dmcore.formats.writecache import ENTRY, NEVER, SUPER_BYTES, entries

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["Entries"]

_GRANULE = 65536
_MOST_OF_A_RUN = 256
_SEQ_OF_SUPER = slice(24, 32)


class Entries:
    """Superblock and entries in memory (memory_map), with what finds and orders the entries.

    Attributes:
        metadata: The bytes, as they are or will be on the disk.
        blocks: How many blocks there are.
        block_sectors: Sectors of a block.
        free: How many blocks are free.
        identical: Whether two entries had the same sector and count when they were loaded: the kernel calls it an error.
    """

    def __init__(self, metadata: bytearray, blocks: int, block_sectors: int) -> None:
        self.metadata = metadata
        self.blocks = blocks
        self.block_sectors = block_sectors
        self.free = 0
        self.identical = False
        self._dirty: set[int] = set()
        self._free = bytearray(blocks)
        self._next: int | None = None
        self._at: dict[int, list[int]] = {}
        self._order: dict[int, None] = {}
        self._writing: set[int] = set()

    # -- the bytes ---------------------------------------------------------------------------------------------------

    @property
    def seq_count(self) -> int:
        """The superblock's sequence count: that of entries made from now on."""
        return int.from_bytes(self.metadata[_SEQ_OF_SUPER], "little")

    def advance(self) -> None:
        """Count on, in memory: entries made before are committed once the superblock is written."""
        self.metadata[_SEQ_OF_SUPER] = ((self.seq_count + 1) % 2**64).to_bytes(8, "little")

    def get(self, index: int) -> tuple[int, int]:
        """Return sector and sequence count of an entry."""
        sector, seq = ENTRY.unpack_from(self.metadata, SUPER_BYTES + index * ENTRY.size)
        return sector, seq

    def _set(self, index: int, sector: int, seq: int) -> None:
        ENTRY.pack_into(self.metadata, SUPER_BYTES + index * ENTRY.size, sector, seq)

    def touch(self, index: int) -> None:
        """Let the next commit write the entry."""
        self._dirty.add((SUPER_BYTES + index * ENTRY.size) // _GRANULE)

    def touch_all(self) -> None:
        """Let the next commit write everything."""
        self._dirty.update(range(-(-len(self.metadata) // _GRANULE)))

    @property
    def dirty(self) -> bool:
        """Whether a commit has something to write."""
        return bool(self._dirty)

    def changed(self) -> Iterator[tuple[int, memoryview]]:
        """Yield `(byte, data)` of what the commit has to write, and forget that it has to."""
        dirty, self._dirty = sorted(self._dirty), set()
        whole = memoryview(self.metadata)
        while dirty:
            first = last = dirty.pop(0)
            while dirty and dirty[0] == last + 1:
                last = dirty.pop(0)
            begin, end = first * _GRANULE, (last + 1) * _GRANULE
            if begin < len(whole):
                yield begin, whole[begin:end]

    # -- what is where -----------------------------------------------------------------------------------------------

    def load(self) -> None:
        """Take up what the bytes say (writecache_resume); entries that do not count become free.

        Raises:
            FormatError: A committed entry for a sector that begins no block; the kernel would serve requests in part.
        """
        committed = self.seq_count
        for index, (sector, seq) in enumerate(entries(bytes(self.metadata), self.blocks)):
            if seq >= committed:
                if seq != NEVER:
                    self._set(index, sector, NEVER)
                    self.touch_all()
                self._add_free(index)
                continue
            if sector % self.block_sectors:
                reason = f"entry {index} is for sector {sector}, which begins no block"
                raise FormatError(reason, SUPER_BYTES + index * ENTRY.size)
            self._load(index, sector, seq)

    def _load(self, index: int, sector: int, seq: int) -> None:
        old = self.find(sector)
        if old is None:
            self._insert(index, sector)
            return
        self.touch_all()
        old_seq = self.get(old)[1]
        if old_seq == seq:
            self.identical = True
        if old_seq > seq:
            self._set(index, sector, NEVER)
            self._add_free(index)
        else:
            self.release(old)
            self._insert(index, sector)

    def committed(self, index: int) -> bool:
        """Whether an entry counts after a power cut."""
        return self.get(index)[1] < self.seq_count

    def find(self, sector: int) -> int | None:
        """Return the newest entry for a sector, or None."""
        found = self._at.get(sector)
        return found[-1] if found else None

    def after(self, index: int) -> tuple[int, int] | None:
        """Return the next block's `(sector, entry)`, and of several entries for it the oldest; None without any (rb_next)."""
        sector = self.get(index)[0] + self.block_sectors
        found = self._at.get(sector)
        return (sector, found[0]) if found else None

    def gap(self, sector: int, end: int) -> int:
        """Return how many sectors from `sector` on, and before `end`, have no entry."""
        at = sector
        while at < end and at not in self._at:
            at += self.block_sectors
        return at - sector

    def between(self, start: int, end: int) -> list[int]:
        """Return all entries for the blocks in a range, in order."""
        step = self.block_sectors
        if (end - start) // step <= len(self._at):
            sectors = [at for at in range(-(-start // step) * step, end, step) if at in self._at]
        else:
            sectors = sorted(at for at in self._at if start <= at < end)
        return [index for at in sectors for index in self._at[at]]

    @property
    def newest(self) -> int | None:
        """The entry that was made last."""
        return next(reversed(self._order), None)

    @property
    def oldest(self) -> int | None:
        """The entry that is written back first."""
        return next(iter(self._order), None)

    def uncommitted(self) -> list[int]:
        """Return the entries made since the last commit, oldest first."""
        found: list[int] = []
        for index in reversed(self._order):
            if self.committed(index):
                break
            found.append(index)
        return found[::-1]

    def older(self, index: int) -> int | None:
        """Return the entry that one replaced, if it is still there and not being written back."""
        same = self._at.get(self.get(index)[0], [])
        at = same.index(index) if index in same else 0
        if at == 0 or same[at - 1] in self._writing:
            return None
        return same[at - 1]

    # -- taking and freeing ------------------------------------------------------------------------------------------

    def _add_free(self, index: int) -> None:
        if self._next is None:
            self._next = index
        self._free[index] = 1
        self.free += 1

    def pop(self, sector: int, expected: int | None = None) -> int | None:
        """Take the next free block for a sector; None if none is free, or if it is not the one expected."""
        index = self._next
        if index is None or (expected is not None and index != expected):
            return None
        self._free[index] = 0
        self.free -= 1
        behind = self._free.find(1, index + 1)
        first = behind if behind >= 0 else self._free.find(1)
        self._next = first if first >= 0 else None
        self._set(index, sector, self.seq_count)
        self._insert(index, sector)
        return index

    def _insert(self, index: int, sector: int) -> None:
        self._at.setdefault(sector, []).append(index)
        self._order[index] = None

    def release(self, index: int) -> None:
        """Free a block (writecache_free_entry); the next commit says so on the disk."""
        sector, _ = self.get(index)
        same = self._at[sector]
        same.remove(index)
        if not same:
            del self._at[sector]
        self._order.pop(index, None)
        self._add_free(index)
        self._set(index, sector, NEVER)
        self.touch(index)

    # -- writing back ------------------------------------------------------------------------------------------------

    def take(self, index: int) -> list[int]:
        """Take a block, and those behind it on both disks, for writing back (writecache_writeback)."""
        run = [index]
        self._take(index)
        while len(run) < _MOST_OF_A_RUN:
            following = self.after(run[-1])
            if following is None or following[1] != run[-1] + 1:
                break
            nearby = following[1]
            if nearby in self._writing or not self.committed(nearby):
                break
            self._take(nearby)
            run.append(nearby)
        return run

    def _take(self, index: int) -> None:
        self._order.pop(index, None)
        self._writing.add(index)

    @property
    def writing(self) -> int:
        """How many blocks are being written back."""
        return len(self._writing)

    def written(self, run: list[int], *, free: bool) -> None:
        """End writing back; `free`: it succeeded, and the blocks are free now."""
        self._writing.difference_update(run)
        if free:
            for index in run:
                self.release(index)

    def all(self) -> list[int]:
        """Return all entries by sector."""
        return [index for sector in sorted(self._at) for index in self._at[sector]]
