"""Makes logs in the format of dm-log-writes, entry by entry; and a plain reading of what a crash may leave of one.

`reference_images` is the C.3 rule written down a second time, over whole images and sets, as slow as it is plain.
"""

from __future__ import annotations

import itertools
import struct
import zlib

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


class KernelLog(LogMaker):
    """Takes what a program does, and logs it as dm-log-writes does: ordinary writes with the flush that covers them."""

    def __init__(self, sector=512):
        super().__init__(sector)
        self.waiting = []

    def write(self, offset, data, flags=0):
        if flags & FUA:
            super().write(offset, data, flags)
        else:
            self.waiting.append((offset, data, flags))

    def _drain(self):
        for offset, data, flags in self.waiting:
            super().write(offset, data, flags)
        self.waiting = []

    def flush(self, flags=0):
        self._drain()
        super().flush(flags)

    def end(self):
        self._drain()
        super().end()


# A program that keeps its newest value on a raw device: two slots, taken in turn, say where it is.
SLOTS, VALUES, VALUE = 0, 8192, 4096


def value(number):
    return struct.pack("<I", number) * (VALUE // 4)


def slot(number, *, sectors=1, checksum=True):
    head = struct.pack("<II", number, 0)
    where = struct.pack("<Q", VALUES + number * VALUE)
    if sectors == 1:
        body = (head + where).ljust(504, b"\0")
    else:  # the place is in the second sector
        body = head.ljust(512, b"\0") + where.ljust(504, b"\0")
    return body + struct.pack("<Q", zlib.crc32(body) if checksum else 0)


def two_slots(updates, bug=None):
    """Return the log of a run with one planted bug, or none."""
    log = KernelLog()
    for number in range(1, updates + 1):
        at = SLOTS + number % 2 * 1024
        pointer = slot(number, sectors=2 if bug == "torn" else 1, checksum=bug != "torn")
        if bug == "early-ack":
            log.mark(f"put-{number}")
        if bug == "pointer-first":
            log.fua(at, pointer)
        log.write(VALUES + number * VALUE, value(number))
        if bug not in ("no-flush", "never-flush", "pointer-first"):
            log.flush()
        if bug != "pointer-first":
            log.fua(at, pointer)
        if bug in ("no-flush", "never-flush"):
            log.mark(f"put-{number}")
        if bug in ("no-flush", "pointer-first"):
            log.flush()
        if bug not in ("early-ack", "no-flush", "never-flush"):
            log.mark(f"put-{number}")
    log.end()
    return log


def judge_slots(image, acknowledged, *, sectors=1, checksum=True):
    """Return what is wrong with the device of such a program; "" for nothing."""
    best, place = 0, 0
    for at in (SLOTS, SLOTS + 1024):
        raw = image[at : at + 512 * sectors]
        (crc,) = struct.unpack_from("<Q", raw, len(raw) - 8)
        number = struct.unpack_from("<I", raw)[0]
        if number > best and (not checksum or crc == zlib.crc32(raw[:-8])):
            best, place = number, struct.unpack_from("<Q", raw, 8 if sectors == 1 else 512)[0]
    if best and image[place : place + VALUE] != value(best):
        return f"integrity: slot says {best}, which is not at {place}"
    if best < acknowledged:
        return f"durability: {best} of {acknowledged} acknowledged"
    return ""
