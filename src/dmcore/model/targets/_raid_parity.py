"""Levels 4, 5 and 6: parity. Sources: drivers/md/raid5.c (handle_stripe and what it calls, raid5_end_read_request, raid5_error)."""

from __future__ import annotations

import errno
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

from dmcore.model.block import fault, pieces
from dmcore.model.targets._raid_layout import Row, parity, row, solve
from dmcore.model.targets._raid_levels import PAGE, Level, each
from dmcore.units import SECTOR

if TYPE_CHECKING:
    from collections.abc import Iterable

    from dmcore.model.targets._raid_members import Member, Members

__all__ = ["ParityLevel"]


class _Part(NamedTuple):
    """What a write puts into one chunk of a row: data from sector `begin` to `end` of the chunk."""

    begin: int
    end: int
    data: memoryview


class ParityLevel(Level):
    """One row of chunks after the other, in pages: reads go to one device, writes to it and to the parity.

    What cannot be read is computed, and written where it was to be read; a device that does not take that, or a write,
    fails. With more devices gone than the level has parity, what they held fails, and all writes.
    """

    def __init__(self, members: Members, kind: str, sectors: int, chunk: int) -> None:
        self._kind = kind
        self._spare = 2 if kind.startswith("raid6") else 1
        self._wide = len(members) - self._spare
        self._chunk = chunk
        self._rows = sectors // self._wide // chunk
        super().__init__(members, self._rows * chunk * self._wide, self._rows * chunk)

    def broken(self) -> bool:
        """Whether more devices are missing than there is parity."""
        return self.members.degraded > self._spare

    def _row(self, number: int) -> Row:
        count = len(self.members)
        return row(self._kind, count, number % (count * (count - 1)))

    def readinto(self, sector: int, buffer: memoryview, flags: int) -> None:
        """Read each chunk's part."""
        parts = pieces(sector, len(buffer) // SECTOR, self._chunk)
        each(partial(self._read, piece.sector, buffer[piece.data], flags) for piece in parts)

    def _read(self, sector: int, buffer: memoryview, flags: int) -> None:
        chunk, rest = divmod(sector, self._chunk)
        number, place = divmod(chunk, self._wide)
        index = self._row(number).data[place]
        member = self.members[index]
        if member.readable:
            try:
                member.readinto(number * self._chunk + rest, buffer, flags)
            except OSError:
                pass
            else:
                return
        begin, end = _pages(rest, rest + len(buffer) // SECTOR)
        found = self._gather(number, begin, end)[index]
        buffer[:] = found[(rest - begin) * SECTOR :][: len(buffer)]

    def _gather(self, number: int, begin: int, end: int, without: Member | None = None) -> dict[int, bytes]:
        """Return what each device of a row holds, or should, in sectors of its chunk that are whole pages.

        Raises:
            OSError: EIO: more cannot be read than can be computed.
        """
        at, count = number * self._chunk + begin, end - begin
        blocks: dict[int, bytes] = {}
        bad: list[Member] = []
        for member in self.members:
            if not member.readable or member is without:
                continue
            try:
                blocks[member.index] = member.read(at, count)
            except OSError:
                bad.append(member)
        if bad and count > PAGE:
            return self._gather_pages(number, begin, end, without)
        where = self._row(number)
        if len(self.members) - len(blocks) > self._spare:
            for member in bad:
                self.members.fail(member)
            raise fault(errno.EIO)
        whole = solve(where, blocks, count * SECTOR)
        for member in bad:
            self._rewrite(member, at, whole[member.index])
        return whole

    def _gather_pages(self, number: int, begin: int, end: int, without: Member | None) -> dict[int, bytes]:
        pages = [self._gather(number, at, at + PAGE, without) for at in range(begin, end, PAGE)]
        return {index: b"".join(page[index] for page in pages) for index in pages[0]}

    def _rewrite(self, member: Member, at: int, data: bytes) -> None:
        """Write what could not be read, and read it again; the device fails if either does."""
        try:
            member.write(at, data)
            member.read(at, len(data) // SECTOR)
        except OSError:
            self.members.fail(member)

    def write(self, sector: int, data: memoryview, flags: int) -> None:
        """Write, row by row."""
        width = self._chunk * self._wide
        each(
            partial(self._write_row, piece.sector, data[piece.data], flags)
            for piece in pieces(sector, len(data) // SECTOR, width)
        )

    def _write_row(self, sector: int, data: memoryview, flags: int) -> None:
        """Write what lies in one row: cut where another set of its chunks is written, as pages go by themselves."""
        number, first = divmod(sector, self._chunk * self._wide)
        parts: dict[int, _Part] = {}
        for piece in pieces(first, len(data) // SECTOR, self._chunk):
            place, rest = divmod(piece.sector, self._chunk)
            parts[self._row(number).data[place]] = _Part(rest, rest + piece.length, data[piece.data])
        edges = [at for part in parts.values() for at in (part.begin, part.end)]
        cuts = sorted({cut for at in edges for cut in _pages(at, at)})
        each(
            partial(self._write_pages, number, begin, end, parts, flags)
            for begin, end in pairwise(cuts)
            if any(part.begin < end and begin < part.end for part in parts.values())
        )

    def _write_pages(self, number: int, begin: int, end: int, parts: dict[int, _Part], flags: int) -> None:
        """Write pages of a row, and their parity."""
        where = self._row(number)
        touched = {i: part for i, part in parts.items() if part.begin < end and begin < part.end}
        old = [
            index
            for index in where.data
            if index not in touched or touched[index].begin > begin or touched[index].end < end
        ]
        if self.members.degraded > self._spare:
            raise fault(errno.EIO)
        blocks = self._old(number, begin, end, old) if old else {}
        for index, part in touched.items():
            low, high = max(begin, part.begin), min(end, part.end)
            block = bytearray(blocks.get(index, bytes((end - begin) * SECTOR)))
            block[(low - begin) * SECTOR : (high - begin) * SECTOR] = part.data[
                (low - part.begin) * SECTOR : (high - part.begin) * SECTOR
            ]
            blocks[index] = bytes(block)
        made = parity(where, blocks)
        self._put({index: blocks[index] for index in touched} | made, number * self._chunk + begin, flags)

    def _old(self, number: int, begin: int, end: int, wanted: Iterable[int]) -> dict[int, bytes]:
        """Return what devices of a row hold, read from them if that is possible."""
        at, count = number * self._chunk + begin, end - begin
        try:
            if all(self.members[index].readable for index in wanted):
                return {index: self.members[index].read(at, count) for index in wanted}
        except OSError:
            pass
        whole = self._gather(number, begin, end)
        return {index: whole[index] for index in wanted}

    def _put(self, blocks: dict[int, bytes], at: int, flags: int) -> None:
        """Write blocks of a row.

        Raises:
            OSError: EIO: more devices have failed by then than there is parity.
        """
        for index in sorted(blocks):
            member = self.members[index]
            if member.there:
                try:
                    member.write(at, blocks[index], flags)
                except OSError:
                    self.members.fail(member)
        if self.members.degraded > self._spare:
            raise fault(errno.EIO)

    def resync(self, *, repair: bool) -> int:
        """Compute the parity of every row; nothing if no parity is left to compare."""
        if self.members.degraded >= self._spare:
            return 0
        return sum(self._check(number, repair=repair) for number in range(self._rows))

    def _check(self, number: int, *, repair: bool) -> int:
        where = self._row(number)
        try:
            whole = self._gather(number, 0, self._chunk)
        except OSError:
            return 0
        right = parity(where, whole)
        wrong = {index: block for index, block in right.items() if block != whole[index]}
        if not wrong:
            return 0
        size = PAGE * SECTOR
        pages = sum(
            any(block[at : at + size] != whole[index][at : at + size] for index, block in wrong.items())
            for at in range(0, self._chunk * SECTOR, size)
        )
        if repair:
            self._put(wrong, number * self._chunk, 0)
        return pages * PAGE

    def recover(self, member: Member) -> bool:
        """Compute what the device should hold."""
        for number in range(self._rows):
            try:
                block = self._gather(number, 0, self._chunk, member)[member.index]
                member.write(number * self._chunk, block)
            except OSError:
                return False
        return True


def _pages(begin: int, end: int) -> tuple[int, int]:
    """Return the whole pages around a range of sectors."""
    return begin - begin % PAGE, end + -end % PAGE
