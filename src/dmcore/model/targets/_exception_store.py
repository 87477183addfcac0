"""Exception stores of snapshots: which chunk of the origin is where on the COW device.

Sources: drivers/md/dm-snap-persistent.c, drivers/md/dm-snap-transient.c.
"""

from __future__ import annotations

import errno
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, NamedTuple

from dmcore.errors import FormatError, SpecError
from dmcore.formats.snapshot_store import (
    DEFAULT_CHUNK,
    FIRST_FREE,
    RECORD,
    Header,
    area_chunk,
    per_area,
    read_area,
    walk,
)
from dmcore.model.block import FUA, PREFLUSH, SYNC, ZERO_PAGE, fault, pieces, zeros
from dmcore.units import SECTOR

if TYPE_CHECKING:
    from dmcore.model.block import BlockDevice

__all__ = ["ExceptionStore", "PersistentStore", "Run", "TransientStore", "check_chunk"]


class Run(NamedTuple):
    """Chunks that follow each other on the origin and on the COW device: the first of each, and how many."""

    old: int
    new: int
    length: int


def check_chunk(chunk: int, *devices: BlockDevice) -> None:
    """Refuse a chunk size that is no multiple of the logical blocks of origin and COW device."""
    for device in devices:
        if chunk % (device.block_size // SECTOR):
            reason = f"not a multiple of the {device.block_size}-byte blocks of {device.word}"
            raise SpecError("chunk", chunk, reason)


class ExceptionStore(ABC):
    """Where a snapshot's chunks go.

    Attributes:
        chunk: Sectors of a chunk; 0 until it is known.
        exceptions: COW chunks by the chunk of the origin.
        valid: Whether the snapshot can be used.
    """

    word: str
    merges: bool

    def __init__(self, cow: BlockDevice, chunk: int) -> None:
        self.cow = cow
        self.chunk = chunk
        self.exceptions: dict[int, int] = {}
        self.valid = True

    @abstractmethod
    def load(self, origin: BlockDevice) -> None:
        """Read what the COW device holds, or make a new store."""

    @abstractmethod
    def prepare(self) -> int | None:
        """Return a free chunk; None if there is none."""

    @abstractmethod
    def commit(self, old: int, new: int, *, copied: bool) -> bool:
        """Write down where a chunk is, once it was copied; return whether that worked."""

    @abstractmethod
    def drop(self) -> None:
        """Write down that the snapshot is invalid."""

    @abstractmethod
    def usage(self) -> tuple[int, int]:
        """Return how many sectors are in use, and how many hold metadata."""


class TransientStore(ExceptionStore):
    """Chunks in the order in which they come; forgotten with the table."""

    word = "N"
    merges = False

    def __init__(self, cow: BlockDevice, chunk: int) -> None:
        super().__init__(cow, chunk)
        self._used = 0

    def load(self, origin: BlockDevice) -> None:
        """Begin with nothing."""
        del origin
        if not self.chunk:
            raise SpecError("chunk", self.chunk, "a transient store needs a chunk size")

    def prepare(self) -> int | None:
        """Return the next chunk."""
        if self.cow.sectors < self._used + self.chunk:
            return None
        self._used += self.chunk
        return self._used // self.chunk - 1

    def commit(self, old: int, new: int, *, copied: bool) -> bool:
        """Remember it."""
        if copied:
            self.exceptions[old] = new
        return copied

    def drop(self) -> None:
        """Nothing is written down."""

    def usage(self) -> tuple[int, int]:
        """Return the sectors in use; there are no metadata."""
        return self._used, 0


class PersistentStore(ExceptionStore):
    """The store of `dmcore.formats.snapshot_store`."""

    word = "P"
    merges = True

    def __init__(self, cow: BlockDevice, chunk: int) -> None:
        super().__init__(cow, chunk)
        self._next = FIRST_FREE
        self._area = 0
        self._committed = 0
        self._records = bytearray()
        self._healthy = True

    def load(self, origin: BlockDevice) -> None:
        """Read the store, whose own chunk size counts, or make one (persistent_read_metadata)."""
        self.chunk = self.chunk or max(DEFAULT_CHUNK, self.cow.block_size // SECTOR)
        if self.cow.sectors < self.chunk:
            raise fault(errno.EIO)
        header = Header.read(self.cow)
        if header is None:
            self._write_header()
            self._zero_area(0)
            self._records = self._blank()
            return
        if header.chunk != self.chunk:
            self.chunk = header.chunk
            check_chunk(self.chunk, self.cow, origin)
        self.valid = self._healthy = header.valid
        if header.valid:
            self._read()

    def _read(self) -> None:
        for area, index, old, new in walk(self.cow, self.chunk):
            if old in self.exceptions:
                reason = (
                    f"the exception store has chunk {old} twice, in record {index} of area {area} as well"
                )
                raise FormatError(
                    reason, area_chunk(area, self.chunk) * self.chunk * SECTOR + index * RECORD.size
                )
            self.exceptions[old] = new
            self._next = max(self._next, new + 1)
            self._area, self._committed = area, index + 1
        if self._committed == per_area(self.chunk):
            self._area, self._committed = self._area + 1, 0
        self._records = read_area(self.cow, self._area, self.chunk)
        self._skip_area()

    # -- what stands on the device -----------------------------------------------------------------------------------

    def _write(self, chunk: int, data: bytes | bytearray, flags: int) -> None:
        self.cow.write(chunk * self.chunk, memoryview(data), flags)

    def _write_header(self) -> None:
        data = Header(self._healthy, self.chunk).encode()
        first = min(self.chunk * SECTOR, ZERO_PAGE)
        self._write(0, data.ljust(first, b"\0"), SYNC)
        self._zero(first // SECTOR, self.chunk - first // SECTOR)

    def _zero(self, sector: int, count: int) -> None:
        for piece in pieces(sector, count, ZERO_PAGE // SECTOR):
            self.cow.write(piece.sector, zeros(piece.length * SECTOR), SYNC)

    def _zero_area(self, area: int) -> None:
        first = area_chunk(area, self.chunk) * self.chunk
        if first + self.chunk > self.cow.sectors:
            raise fault(errno.EIO)
        self._zero(first, self.chunk)

    def _blank(self) -> bytearray:
        return bytearray(min(self.chunk * SECTOR, 1 << 16))

    def _write_area(self) -> None:
        self._write(area_chunk(self._area, self.chunk), self._records, SYNC | PREFLUSH | FUA)

    def _put(self, index: int, old: int, new: int) -> None:
        at = index * RECORD.size
        if at == len(self._records):
            self._records += bytes(min(1 << 16, self.chunk * SECTOR - at))
        RECORD.pack_into(self._records, at, old, new)

    # -- chunks ------------------------------------------------------------------------------------------------------

    def _skip_area(self) -> None:
        if self._next % (per_area(self.chunk) + 1) == 1:
            self._next += 1

    def prepare(self) -> int | None:
        """Return the next free chunk."""
        if self.cow.sectors < (self._next + 1) * self.chunk:
            return None
        new = self._next
        self._next += 1
        self._skip_area()
        return new

    def commit(self, old: int, new: int, *, copied: bool) -> bool:
        """Write the record; the next area is zeroed before one becomes full (persistent_commit_exception)."""
        self._healthy &= copied
        self._put(self._committed, old, new)
        self._committed += 1
        full = self._committed == per_area(self.chunk)
        try:
            if full:
                self._zero_area(self._area + 1)
            if self._healthy:
                self._write_area()
        except OSError:
            self._healthy = False
        if full:
            self._area, self._committed = self._area + 1, 0
            self._records = self._blank()
        if self._healthy:
            self.exceptions[old] = new
        return self._healthy

    def drop(self) -> None:
        """Write a header that says so; that this fails is not told."""
        self._healthy = False
        try:
            self._write_header()
        except OSError:
            return

    def usage(self) -> tuple[int, int]:
        """Return the sectors up to the next free chunk, and those of the header and the areas so far."""
        return self._next * self.chunk, (self._area + FIRST_FREE) * self.chunk

    # -- merging -----------------------------------------------------------------------------------------------------

    def last_run(self) -> Run | None:
        """Return the last chunks of the store, as many as can be merged at once; None if it is empty.

        Raises:
            OSError: The area before cannot be read.
        """
        if not self._committed:
            if not self._area:
                return None
            self._area -= 1
            self._records = read_area(self.cow, self._area, self.chunk)
            self._committed = per_area(self.chunk)
        old, new = self._record(1)
        count = 1
        while count < self._committed and self._record(1 + count) == (old - count, new - count):
            count += 1
        return Run(old + 1 - count, new + 1 - count, count)

    def _record(self, back: int) -> tuple[int, int]:
        old, new = RECORD.unpack_from(self._records, (self._committed - back) * RECORD.size)
        return old, new

    def merged(self, run: Run) -> None:
        """Clear the records of a run that is on the origin now (persistent_commit_merge).

        Raises:
            OSError: They cannot be written.
        """
        for back in range(1, run.length + 1):
            self._put(self._committed - back, 0, 0)
        self._write_area()
        self._committed -= run.length
        self._next = area_chunk(self._area, self.chunk) + self._committed + 1
        for old in range(run.old, run.old + run.length):
            self.exceptions.pop(old, None)
