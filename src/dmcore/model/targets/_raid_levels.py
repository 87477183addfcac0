"""What the raid levels do with requests: stripes, copies. Parity has a file of its own.

Sources: drivers/md/raid0.c (raid0_make_request), drivers/md/raid1.c (raid1_read_request, fix_read_error, raid1_error,
sync_request_write), drivers/md/raid10.c (raid10_error, _enough, sync_request_write, recovery_request_write).
"""

from __future__ import annotations

import errno
from abc import ABC, abstractmethod
from functools import partial
from typing import TYPE_CHECKING

from dmcore.model.block import fault, pieces
from dmcore.units import SECTOR

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from dmcore.model.targets._raid_layout import Copies
    from dmcore.model.targets._raid_members import Member, Members

__all__ = ["PAGE", "CopiesLevel", "Level", "StripesLevel"]

PAGE = 8
"""Sectors of a page: what md repairs, and computes parity for, at once."""

_UNIT = 128
"""Sectors that md compares at once (RESYNC_SECTORS)."""


class Level(ABC):
    """A level at work. Requests fail with EIO; all pieces of them are tried.

    Attributes:
        sectors: Of the set.
        sync_sectors: What a resync goes through, as the status tells it.
    """

    def __init__(self, members: Members, sectors: int, sync_sectors: int) -> None:
        self.members = members
        self.sectors = sectors
        self.sync_sectors = sync_sectors

    @abstractmethod
    def readinto(self, sector: int, buffer: memoryview, flags: int) -> None:
        """Read."""

    @abstractmethod
    def write(self, sector: int, data: memoryview, flags: int) -> None:
        """Write."""

    def discard(self, sector: int, count: int) -> None:
        """Discard; only where the level can."""
        del sector, count
        raise fault(errno.EOPNOTSUPP)

    def resync(self, *, repair: bool) -> int:
        """Make copies or parity agree if `repair`; return the sectors that did not, in md's units."""
        del repair
        return 0

    def recover(self, member: Member) -> bool:
        """Make the content of a device from that of the others; whether it worked."""
        del member
        return False

    def broken(self) -> bool:
        """Whether too many devices are missing for the set to run."""
        return any(member.data is None for member in self.members)


def each(requests: Iterable[Callable[[], None]]) -> None:
    """Try all requests; raise the last failure."""
    failed: OSError | None = None
    for request in requests:
        try:
            request()
        except OSError as error:
            failed = error
    if failed is not None:
        raise failed


class StripesLevel(Level):
    """Level 0: chunks in turn."""

    def __init__(self, members: Members, sectors: int, chunk: int) -> None:
        count = len(members)
        rows = sectors // count // chunk
        super().__init__(members, rows * chunk * count, sectors // count)
        self._chunk = chunk

    def _parts(self, sector: int, count: int) -> Iterator[tuple[Member, int, int, slice]]:
        for piece in pieces(sector, count, self._chunk):
            chunk, rest = divmod(piece.sector, self._chunk)
            row, index = divmod(chunk, len(self.members))
            yield self.members[index], row * self._chunk + rest, piece.length, piece.data

    def readinto(self, sector: int, buffer: memoryview, flags: int) -> None:
        """Read each chunk's part from its device."""
        parts = self._parts(sector, len(buffer) // SECTOR)
        each(partial(member.readinto, at, buffer[data], flags) for member, at, _, data in parts)

    def write(self, sector: int, data: memoryview, flags: int) -> None:
        """Write each chunk's part to its device."""
        parts = self._parts(sector, len(data) // SECTOR)
        each(partial(member.write, at, data[where], flags) for member, at, _, where in parts)

    def discard(self, sector: int, count: int) -> None:
        """Discard each chunk's part."""
        for member, at, length, _ in self._parts(sector, count):
            assert member.data is not None
            member.data.discard(member.offset + at, length)


class CopiesLevel(Level):
    """Level 10; and level 1, which has one chunk that is on all devices."""

    def __init__(self, members: Members, places: Copies, chunk: int, sync_sectors: int) -> None:
        super().__init__(members, places.chunks * chunk, sync_sectors)
        self._places = places
        self._chunk = chunk

    def _copies(self, sector: int) -> list[tuple[Member, int]]:
        """Return each copy of a sector: the device, and where on it."""
        number, rest = divmod(sector, self._chunk)
        return [
            (self.members[index], chunk * self._chunk + rest) for index, chunk in self._places.places(number)
        ]

    def _enough(self, but: Member | None = None) -> bool:
        """Whether every chunk has a copy on a device that can be read, other than `but`."""
        return all(
            any(self.members[index].readable and self.members[index] is not but for index, _ in copies)
            for copies in map(self._places.places, range(min(self._places.chunks, len(self.members))))
        )

    def broken(self) -> bool:
        """Whether a chunk has no copy."""
        return not self._enough()

    def _fail(self, member: Member) -> None:
        """Use a device no longer, unless it has the last copy of something."""
        if not member.readable or self._enough(member):
            self.members.fail(member)

    def readinto(self, sector: int, buffer: memoryview, flags: int) -> None:
        """Read a copy of each chunk's part; what cannot be read is made anew from another copy."""
        parts = pieces(sector, len(buffer) // SECTOR, self._chunk)
        each(partial(self._read, piece.sector, buffer[piece.data], flags) for piece in parts)

    def _read(self, sector: int, buffer: memoryview, flags: int) -> None:
        copies = [(member, at) for member, at in self._copies(sector) if member.readable]
        copies.sort(key=lambda copy: copy[0].write_mostly)
        for place, (member, at) in enumerate(copies):
            try:
                member.readinto(at, buffer, flags)
            except OSError:
                others = copies[place + 1 :] + copies[:place]
                self._fix(member, at, others, len(buffer) // SECTOR)
                continue
            return
        raise fault(errno.EIO)

    def _fix(self, member: Member, at: int, others: list[tuple[Member, int]], count: int) -> None:
        """Write what `member` could not read from another copy, page by page; it fails if that does not help."""
        for first in range(0, count, PAGE):
            length = min(PAGE, count - first)
            try:
                member.read(at + first, length)
            except OSError:
                pass
            else:
                continue
            try:
                good = _read_any(others, first, length)
                member.write(at + first, good)
                member.read(at + first, length)
            except OSError:
                self._fail(member)
                return

    def write(self, sector: int, data: memoryview, flags: int) -> None:
        """Write all copies; a device that fails is used no longer."""
        parts = pieces(sector, len(data) // SECTOR, self._chunk)
        each(partial(self._write, piece.sector, data[piece.data], flags) for piece in parts)

    def _write(self, sector: int, data: memoryview, flags: int) -> None:
        written = False
        for member, at in self._copies(sector):
            if not member.there:
                continue
            try:
                member.write(at, data, flags)
            except OSError:
                self._fail(member)
            else:
                written = written or member.in_sync
        if not written:
            raise fault(errno.EIO)

    def discard(self, sector: int, count: int) -> None:
        """Discard all copies."""
        for piece in pieces(sector, count, self._chunk):
            for member, at in self._copies(piece.sector):
                if member.there:
                    assert member.data is not None
                    member.data.discard(member.offset + at, piece.length)

    def resync(self, *, repair: bool) -> int:
        """Compare all copies with the first that can be read."""
        unit = min(_UNIT, self._chunk)
        return sum(self._compare(first, repair=repair) for first in range(0, self.sectors, unit))

    def _compare(self, first: int, *, repair: bool) -> int:
        count = min(_UNIT, self._chunk, self.sectors - first)
        good: bytes | None = None
        different = 0
        copies = sorted(self._copies(first), key=lambda copy: copy[0].write_mostly)
        for member, at in copies:
            if not member.readable:
                continue
            try:
                found = member.read(at, count)
            except OSError:
                continue
            if good is None:
                good = found
            elif found != good:
                different += count
                if repair:
                    self._try_write(member, at, good)
        return different

    def _try_write(self, member: Member, at: int, data: bytes) -> None:
        try:
            member.write(at, data)
        except OSError:
            self._fail(member)

    def recover(self, member: Member) -> bool:
        """Copy every chunk that is on the device from another one."""
        for first in range(0, self.sectors, min(_UNIT, self._chunk)):
            count = min(_UNIT, self._chunk, self.sectors - first)
            copies = self._copies(first)
            sources = [(other, at) for other, at in copies if other.readable]
            for target, at in copies:
                if target is not member:
                    continue
                try:
                    good = _read_any(sources, 0, count)
                except OSError:
                    return False
                self._try_write(member, at, good)
                if not member.there:
                    return False
        return True


def _read_any(copies: list[tuple[Member, int]], first: int, count: int) -> bytes:
    """Return the first copy that can be read.

    Raises:
        OSError: EIO: none can.
    """
    for member, at in copies:
        try:
            return member.read(at + first, count)
        except OSError:
            continue
    raise fault(errno.EIO)
