"""The journal of integrity: a ring of sections, each with entries, their data, and marks that tell whether it is whole.

Source: drivers/md/dm-integrity.c (replay_journal, do_journal_write, integrity_commit, pad_uncommitted, init_journal,
section_mac, dm_integrity_commit_id).
"""

from __future__ import annotations

import errno
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dmcore.model.block import FUA, SYNC
from dmcore.units import SECTOR

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from dmcore.formats.hashes import Hash
    from dmcore.formats.integrity import Layout
    from dmcore.model.block import BlockDevice
    from dmcore.model.targets._integrity_cipher import JournalCipher

__all__ = ["Entry", "Journal"]

_SEQUENCES = 4
_UNUSED = 0xFFFFFFFF << 32
_LAST = 504
_IDS = [int.from_bytes(bytes([0x11 * (sequence + 1)] * 8), "little") for sequence in range(_SEQUENCES)]


@dataclass(frozen=True, slots=True)
class Entry:
    """A block in the journal."""

    sector: int
    data: bytes
    tag: bytes


class Journal:
    """The ring.

    Args:
        layout: Where it is.
        device: The device it is on.
        mac: Gives the hash that protects the entries' sectors (None without one); it has seen what goes before them.
        home: Writes an entry to its place.
        fits: Whether the tag of an entry fits its data.
        failed: Told of an errno that the device fails with from then on.
        cipher: Encrypts it; None: nothing does.
        watermark: Per cent that may be used before all is written home.
    """

    def __init__(
        self,
        layout: Layout,
        device: BlockDevice,
        *,
        mac: Callable[[int], Hash | None],
        home: Callable[[Entry], None],
        fits: Callable[[Entry], bool],
        failed: Callable[[int], None],
        cipher: JournalCipher | None,
        watermark: int,
    ) -> None:
        self._layout, self._device = layout, device
        self._mac, self._home, self._fits, self._failed = mac, home, fits, failed
        self._cipher = cipher
        self._ids = _IDS if cipher is None else cipher.marks(_IDS)
        self.sections = layout.head.journal_sections
        self._size = layout.section_entries
        self.entries = self.sections * self._size
        self.threshold = (self.entries * (100 - watermark) + 50) // 100
        self._begin(0, 1)

    def _begin(self, section: int, sequence: int) -> None:
        self._sequence = sequence
        self._next = section
        self._open: list[Entry] = []
        self._committed: list[list[Entry]] = []
        self._newest: dict[int, Entry] = {}
        self._used = 0
        self._wrote = False

    # -- on disk -----------------------------------------------------------------------------------------------------

    def _first(self, section: int) -> int:
        return self._layout.start + 8 + section * self._layout.section_sectors

    def _mark(self, section: int, sector: int, sequence: int) -> bytes:
        return (self._ids[sequence] ^ (section << 32) ^ sector).to_bytes(8, "little")

    def _place(self, index: int) -> int:
        """Return the byte of a section where entry `index` begins."""
        return index % 8 * SECTOR + index // 8 * self._layout.entry_size

    def _write(self, section: int, entries: list[Entry], sequence: int) -> None:
        blocks, tag_size = self._layout.block_sectors, self._layout.head.tag_size
        content = bytearray(self._layout.section_sectors * SECTOR)
        mac = self._mac(section)
        for index in range(self._size):
            at = self._place(index)
            entry = entries[index] if index < len(entries) else None
            sector = (_UNUSED if entry is None else entry.sector).to_bytes(8, "little")
            content[at : at + 8] = sector
            if mac is not None:
                mac.update(sector)
            if entry is None:
                continue
            data = (8 + index * blocks) * SECTOR
            content[data : data + len(entry.data)] = entry.data
            for block in range(blocks):
                there = at + 8 + 8 * block
                content[there : there + 8] = entry.data[block * SECTOR + _LAST : (block + 1) * SECTOR]
            tag = at + 8 + 8 * blocks
            content[tag : tag + tag_size] = entry.tag
        if mac is not None:
            result = mac.digest().ljust(64, b"\0")
            for number in range(8):
                content[number * SECTOR + 496 : number * SECTOR + _LAST] = result[number * 8 : number * 8 + 8]
        for number in range(self._layout.section_sectors):
            end = (number + 1) * SECTOR
            content[end - 8 : end] = self._mark(section, number, sequence)
        if self._cipher is not None:
            content = self._cipher.encrypt(section, content)
        self._device.write(self._first(section), memoryview(content), SYNC | FUA)

    def _read(self, section: int) -> tuple[bytearray, list[int | None]]:
        """Return a section, and for each of its sectors the sequence that its mark tells (None: none)."""
        content = self._device.read(self._first(section), self._layout.section_sectors)
        if self._cipher is not None:
            content = self._cipher.decrypt(section, content)
        marks: list[int | None] = []
        for number in range(self._layout.section_sectors):
            found = bytes(content[number * SECTOR + _LAST : (number + 1) * SECTOR])
            known = (each for each in range(_SEQUENCES) if self._mark(section, number, each) == found)
            marks.append(next(known, None))
        return content, marks

    def _decode(self, section: int, content: bytearray) -> Iterator[Entry]:
        """Yield the entries of a section; a wrong MAC is told."""
        blocks, tag_size = self._layout.block_sectors, self._layout.head.tag_size
        mac = self._mac(section)
        found: list[Entry] = []
        for index in range(self._size):
            at = self._place(index)
            if mac is not None:
                mac.update(content[at : at + 8])
            if bytes(content[at + 4 : at + 8]) == b"\xff" * 4:
                continue
            data = bytearray(content[(8 + index * blocks) * SECTOR : (8 + (index + 1) * blocks) * SECTOR])
            for block in range(blocks):
                end = (block + 1) * SECTOR
                data[end - 8 : end] = content[at + 8 + 8 * block : at + 16 + 8 * block]
            tag = at + 8 + 8 * blocks
            sector = int.from_bytes(content[at : at + 8], "little")
            found.append(Entry(sector, bytes(data), bytes(content[tag : tag + tag_size])))
        if mac is not None:
            result = mac.digest().ljust(64, b"\0")
            macs = b"".join(content[at * SECTOR + 496 : at * SECTOR + _LAST] for at in range(8))
            if macs != result:
                self._failed(errno.EILSEQ)
        yield from found

    def clear(self, section: int, count: int, sequence: int) -> None:
        """Make sections empty, `count` from `section` on around the ring."""
        for number in range(section, section + count):
            self._write(number % self.sections, [], sequence)

    # -- replay ------------------------------------------------------------------------------------------------------

    def replay(self, *, keep: bool) -> None:
        """Write home what was committed and is whole; then go on behind it, or clear the ring.

        Args:
            keep: The mode goes on to use the ring (J).
        """
        last, empty = self._survey()
        unused = None if last is None else self._first_unused([section >= 0 for section in last])
        if last is None or unused is None:
            self._failed(errno.EIO)
            self._restart(0, 0)
            return
        newest = (unused - 1) % _SEQUENCES
        want = (newest - 1) % _SEQUENCES
        if last[want] < 0 <= last[(want - 1) % _SEQUENCES]:
            empty = True
        start = last[newest] + 1
        if start >= self.sections:
            want, start = (want + 1) % _SEQUENCES, 0
        whole, sequence = self._whole(start, want)
        if not empty:
            for number in range(start, start + whole):
                section = number % self.sections
                for entry in self._decode(section, self._read(section)[0]):
                    self._replay_entry(entry)
        if whole == self.sections and (keep or empty):
            self._begin(start, sequence)
        else:
            self._restart(start, newest)

    def _survey(self) -> tuple[list[int] | None, bool]:
        """Return the last section of each sequence (-1: none; None: a sector has no mark), and whether all are empty."""
        last = [-1] * _SEQUENCES
        empty = True
        for section in range(self.sections):
            content, marks = self._read(section)
            for mark in marks:
                if mark is None:
                    return None, False
                last[mark] = section
            places = [self._place(index) for index in range(self._size)]
            empty = empty and all(bytes(content[at + 4 : at + 8]) == b"\xff" * 4 for at in places)
        return last, empty

    @staticmethod
    def _first_unused(used: list[bool]) -> int | None:
        """Return the sequence that comes next."""
        if used[-1]:
            return next((each for each, there in enumerate(used) if not there), None)
        unused = _SEQUENCES - 1
        while unused and not used[unused - 1]:
            unused -= 1
        return unused

    def _whole(self, start: int, want: int) -> tuple[int, int]:
        """Return how many sections from `start` on are whole, and the sequence that the next one would have."""
        section = start
        for count in range(self.sections):
            if any(mark != want for mark in self._read(section)[1]):
                return count, want
            section += 1
            if section == self.sections:
                section, want = 0, (want + 1) % _SEQUENCES
        return self.sections, want

    def _replay_entry(self, entry: Entry) -> None:
        unit = self._layout.block_sectors
        if entry.sector % unit:
            self._failed(errno.EIO)
            entry = Entry(entry.sector - entry.sector % unit, entry.data, entry.tag)
        if entry.sector >= self._layout.provided:
            return
        if not self._fits(entry):
            self._failed(errno.EILSEQ)
        self._home(entry)

    def _restart(self, start: int, newest: int) -> None:
        """Clear the ring, the first and the last section on their own."""
        sequence = (newest - 2) % _SEQUENCES
        self.clear(start, self.sections, sequence)
        self._begin(0, (sequence + 1) % _SEQUENCES)

    # -- requests ----------------------------------------------------------------------------------------------------

    def find(self, sector: int) -> Entry | None:
        """Return the newest entry of a block that is not home yet."""
        return self._newest.get(sector)

    def conflicts(self, sector: int, count: int) -> bool:
        """Whether blocks of a range are not home yet."""
        return any(sector <= each < sector + count for each in self._newest)

    def put(self, entry: Entry) -> None:
        """Add a block; commits and writes home when there is little room."""
        if self._used == self.entries:
            self.commit()
            self.write_home()
        self._open.append(entry)
        self._newest[entry.sector] = entry
        self._used += 1
        if len(self._open) % self._size == 0 and self.entries - self._used <= self.threshold:
            self.commit()
            self.write_home()

    def commit(self) -> None:
        """Write the sections that were begun."""
        while self._open:
            section, self._open = self._open[: self._size], self._open[self._size :]
            self._used += self._size - len(section)
            self._write(self._next, section, self._sequence)
            self._wrote = True
            self._committed.append(section)
            self._next += 1
            if self._next == self.sections:
                self._next, self._sequence = 0, (self._sequence + 1) % _SEQUENCES

    def write_home(self) -> None:
        """Write all that is committed to its place; of a block written twice the newest only."""
        for section in self._committed:
            for entry in section:
                if self._newest.get(entry.sector) is entry:
                    self._home(entry)
                    del self._newest[entry.sector]
        self._used -= len(self._committed) * self._size
        self._committed.clear()

    def finish(self) -> None:
        """Write everything home, and leave an empty ring."""
        self.commit()
        self.write_home()
        if self._wrote:
            self.clear(self._next, self.sections - self._next, self._sequence)
            self.clear(0, self._next, (self._sequence + 1) % _SEQUENCES)
