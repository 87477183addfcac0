"""Makes logs in the format of dm-log-writes, entry by entry; and a plain reading of what a crash may leave of one.

`reference_images` is the C.3 rule written down a second time, over whole images and sets, as slow as it is plain.
"""

from __future__ import annotations

import itertools
import struct

MAGIC = 0x6A736677736872
FLUSH, FUA, DISCARD, MARK, METADATA = 1, 2, 4, 8, 16
END = "dm-log-writes-end"


class LogMaker:
    """A log that grows by calls."""

    def __init__(self, sector=512):
        self.sector = sector
        self.entries = []

    def _add(self, offset, length, flags, data=b"", text=b""):
        assert offset % self.sector == length % self.sector == 0
        header = struct.pack("<QQQQ", offset // self.sector, length // self.sector, flags, len(text)) + text
        self.entries.append((offset, length, flags, data, header.ljust(self.sector, b"\0") + data))

    def write(self, offset, data, flags=0):
        self._add(offset, len(data), flags, data)

    def fua(self, offset, data):
        self.write(offset, data, FUA)

    def discard(self, offset, length):
        self._add(offset, length, DISCARD)

    def flush(self, flags=0):
        self._add(0, 0, FLUSH | flags)

    def mark(self, text):
        self._add(0, 0, MARK, text=text.encode())

    def end(self):
        self.mark(END)

    def bytes(self, nr_entries=None):
        count = len(self.entries) if nr_entries is None else nr_entries
        head = struct.pack("<QQQI", MAGIC, 1, count, self.sector).ljust(self.sector, b"\0")
        return head + b"".join(entry[4] for entry in self.entries)

    def save(self, path, nr_entries=None):
        path.write_bytes(self.bytes(nr_entries))
        return path


def apply(image, entry):
    offset, length, flags, data, _ = entry
    image[offset : offset + length] = bytes(length) if flags & DISCARD else data


class Reference:
    """Every image that a cut may leave by the L1 rule: `found` has image -> the most marks that stand before such a cut."""

    def __init__(self, base):
        self.durable = bytearray(base)
        self.pending = []  # ordinary writes since the last flush, without what a FUA write behind them overwrote
        self.marks = 0
        self.found = {}

    def leave(self, pending):
        for size in range(len(pending) + 1):
            for chosen in itertools.combinations(pending, size):
                image = bytearray(self.durable)
                for entry in chosen:
                    apply(image, entry)
                key = bytes(image)
                self.found[key] = max(self.found.get(key, -1), self.marks)

    def take(self, entry):
        _, length, flags, _, raw = entry
        if flags & MARK:
            self.marks += raw[32:].rstrip(b"\0").decode() != END
            return
        if flags & FLUSH:
            self.leave(self.pending)
            for one in self.pending:
                apply(self.durable, one)
            self.pending = []
        if length and flags & FUA:
            self.leave([*self.pending, entry])
            self.pending = [rest for one in self.pending for rest in without(one, entry)]
            apply(self.durable, entry)
        elif length:
            self.pending.append(entry)


def reference_images(entries, base):
    reference = Reference(base)
    for entry in entries:
        reference.take(entry)
    reference.leave(reference.pending)
    return reference.found


def without(entry, later):
    """Return what a later entry leaves of one: it overwrites all of it or nothing, by construction."""
    offset, length, *_ = entry
    start, end = later[0], later[0] + later[1]
    if end <= offset or start >= offset + length:
        return [entry]
    assert start <= offset, "the reference knows only whole overlaps"
    assert end >= offset + length, "the reference knows only whole overlaps"
    return []
