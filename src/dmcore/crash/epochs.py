"""At which instants a power cut is looked at, and what must and what may be on the disk then.

A write is *durable* once a flush that was issued after it completed, has completed, or when it was a FUA write and
completed; a disk that honours flush and FUA has it from then on. What was issued and is not durable is *pending*: each of
it may be there or not, whole or in part. What may be left only grows until something becomes durable, so it is enough to
look at the instants just before that: an `Epoch` is one such instant.

What a log says of that depends on who wrote it.

L0  Durable prefixes only: nothing pending. Sound on any log.
L1  The rule for logs of dm-log-writes, the default. The kernel logs FUA writes when they complete, but an ordinary write
    only when a flush that covers it does: between two flushes stand first the FUA writes, then the ordinary ones, however
    they were issued. So a FUA write that is logged earlier than an ordinary one may have come later, and the ordinary one
    without it is no state to accuse anybody with. States are: the FUA writes in order, the next one absent or torn; then
    all FUA writes and any subset of the ordinary ones. What it cannot see: an ordinary write on the disk before a FUA
    write of the same epoch.
    Logs whose entries stand in the order of completion (QEMU's blklogwrites, the volume of dmcore's model) have ordinary
    writes before FUA writes too; those are pending with the FUA writes behind them, until a flush. That too is only what
    the log proves.
L2  The exact partial order, from the times at which each request was issued and completed (`read_times`).
L3  A disk that ignores flush and FUA: any subset of the writes of the last `window` flushes. Not what disks may do;
    for "what if", and to see that an oracle notices loss at all.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from dmcore.errors import FormatError, SpecError
from dmcore.formats.log_writes import LogFlag

if TYPE_CHECKING:
    import os
    from collections.abc import Iterable, Sequence

    from dmcore.crash.log import CrashLog

__all__ = ["Ambiguous", "Epoch", "Level", "Piece", "Timeline", "Times", "Write", "read_times", "timeline"]

ZEROS = -1


class Level(StrEnum):
    """How much order is assumed; see the module."""

    L0 = "L0"
    L1 = "L1"
    L2 = "L2"
    L3 = "L3"


class Piece(NamedTuple):
    """A part of a write.

    Attributes:
        offset: First byte of the device.
        length: Bytes.
        source: Byte of the log where the data is; -1 for zeros (a discard).
    """

    offset: int
    length: int
    source: int


class Write(NamedTuple):
    """What an entry changes on the device.

    Attributes:
        entry: Number of the log entry.
        flags: Its `LogFlag` bits.
        pieces: Which parts of it count: all of it, unless a later request overwrote some before it was durable itself.
    """

    entry: int
    flags: int
    pieces: tuple[Piece, ...]

    @property
    def tearable(self) -> bool:
        """Whether a part of it may be there: not of a discard, whose parts a device does not promise anything about."""
        return not self.flags & LogFlag.DISCARD


@dataclass(frozen=True, slots=True)
class Epoch:
    """An instant just before something becomes durable.

    Attributes:
        index: Its number.
        position: Entries before this number were logged by then.
        durable: What became durable since the epoch before, in the order that it applies; on top of all of theirs.
        pending: What may be there besides, in the order that it applies.
        marks: How many of the log's marks had been made: their operations are acknowledged or started.
        ends: What makes something durable next: "flush", "fua", or "end" of the log.
    """

    index: int
    position: int
    durable: tuple[Write, ...]
    pending: tuple[Write, ...]
    marks: int
    ends: str


class Ambiguous(NamedTuple):
    """An ordinary and a FUA write of the same blocks between two flushes: a kernel's log does not say which was last.

    Attributes:
        fua: Entry of the FUA write, logged first.
        ordinary: Entry of the ordinary write.
    """

    fua: int
    ordinary: int


@dataclass(frozen=True, slots=True)
class Timeline:
    """All epochs of a log at one level.

    Attributes:
        level: The level.
        epochs: In order of time.
        ambiguous: Pairs of writes whose order a kernel's log leaves open; empty at L2.
    """

    level: Level
    epochs: tuple[Epoch, ...]
    ambiguous: tuple[Ambiguous, ...] = ()


class Times(NamedTuple):
    """When a request was issued and completed, in any unit with one clock; for a mark both are when it was made."""

    issued: int
    completed: int


def read_times(path: str | os.PathLike[str], entries: int) -> list[Times]:
    """Read a side file of times: one line `ENTRY ISSUED COMPLETED` for each entry of the log, `#` begins a comment.

    Numbers are decimal integers, of nanoseconds or any unit of one clock.

    Raises:
        FormatError: A line that is not such, an entry that is missing, or one that completed before it was issued.
        OSError: The file cannot be read.
    """
    found: dict[int, Times] = {}
    offset = 0
    for number, line in enumerate(Path(path).read_text(encoding="utf-8").splitlines(keepends=True), 1):
        words = line.partition("#")[0].split()
        if words:
            try:
                entry, issued, completed = map(int, words)
            except ValueError:
                what = f"line {number} is {line.strip()!r}, not ENTRY ISSUED COMPLETED"
                raise FormatError(what, offset) from None
            if completed < issued or not 0 <= entry < entries or entry in found:
                what = f"line {number} has entry {entry} of {entries}, issued {issued}, completed {completed}"
                raise FormatError(what, offset)
            found[entry] = Times(issued, completed)
        offset += len(line.encode())
    missing = next((entry for entry in range(entries) if entry not in found), None)
    if missing is not None:
        what = f"no times of entry {missing}; each of the {entries} entries needs them"
        raise FormatError(what, offset)
    return [found[entry] for entry in range(entries)]


def timeline(
    log: CrashLog,
    level: Level | str = Level.L1,
    *,
    times: Sequence[Times] | None = None,
    window: int = 6,
    fua_last: bool = False,
) -> Timeline:
    """Return the epochs of a log.

    Args:
        log: The log.
        level: How much order is assumed.
        times: For L2: of each entry.
        window: For L3: how many flushes back a write may be lost.
        fua_last: For L0 and L1: of an ordinary and a FUA write of the same blocks between two flushes, take the FUA write for the
            later one, though it is logged first. Epochs and pending writes keep their numbers.

    Raises:
        SpecError: No such level; L2 without times of each entry; `window` below 1.
    """
    try:
        level = Level(level)
    except ValueError:
        raise SpecError("level", level, "is one of L0, L1, L2, L3") from None
    if level is Level.L2:
        if times is None or len(times) != len(log.index):
            have = "none" if times is None else len(times)
            raise SpecError("times", have, f"L2 needs times of each of the {len(log.index)} entries")
        return Timeline(level, tuple(_exact(log, times)))
    if level is Level.L3:
        if window < 1:
            raise SpecError("window", window, "must be at least 1")
        return Timeline(level, tuple(_hostile(log, window)))
    ambiguous: list[Ambiguous] = []
    epochs = _logged(log, ambiguous, fua_last=fua_last)
    if level is Level.L0:
        epochs = [
            Epoch(epoch.index, epoch.position, epoch.durable, (), epoch.marks, epoch.ends) for epoch in epochs
        ]
    return Timeline(level, tuple(epochs), tuple(ambiguous))


def _write(log: CrashLog, entry: int) -> Write:
    offset, length = log.index.extent_of(entry)
    flags = log.index.flags(entry)
    return Write(entry, flags, (Piece(offset, length, log.index.data_offset(entry)),))


def _overlaps(one: Write, other: Write) -> bool:
    return any(
        a.offset < b.offset + b.length and b.offset < a.offset + a.length
        for a in one.pieces
        for b in other.pieces
    )


def _without(piece: Piece, start: int, end: int) -> list[Piece]:
    """Return what is left of a piece that bytes `start`..`end` of the device were overwritten of."""
    if end <= piece.offset or start >= piece.offset + piece.length:
        return [piece]
    left: list[Piece] = []
    if start > piece.offset:
        left.append(Piece(piece.offset, start - piece.offset, piece.source))
    behind = piece.offset + piece.length - end
    if behind > 0:
        skipped = end - piece.offset
        left.append(Piece(end, behind, piece.source if piece.source == ZEROS else piece.source + skipped))
    return left


def _trim(write: Write, later: Write) -> Write | None:
    """Return what a later write leaves of an earlier one; None for nothing."""
    pieces = list(write.pieces)
    for over in later.pieces:
        pieces = [
            rest for piece in pieces for rest in _without(piece, over.offset, over.offset + over.length)
        ]
    return Write(write.entry, write.flags, tuple(pieces)) if pieces else None


def _trim_all(writes: Iterable[Write], later: Write) -> list[Write]:
    return [
        kept
        for write in writes
        if (kept := _trim(write, later) if _overlaps(write, later) else write) is not None
    ]


class _Builder:
    """Collects epochs."""

    def __init__(self, log: CrashLog) -> None:
        self._log = log
        self._durable: list[Write] = []
        self._marks = 0
        self._pending: tuple[Write, ...] = ()
        self.epochs: list[Epoch] = []

    def add(self, position: int, pending: Sequence[Write], ends: str, marks: int | None = None) -> None:
        """An epoch, unless it is the one before in all that can be seen."""
        marks = self._log.marks_before(position) if marks is None else marks
        if (
            self.epochs
            and not self._durable
            and marks == self.epochs[-1].marks
            and tuple(pending) == self.epochs[-1].pending
        ):
            return
        self.epochs.append(
            Epoch(len(self.epochs), position, tuple(self._durable), tuple(pending), marks, ends)
        )
        self._durable = []

    def durable(self, writes: Iterable[Write]) -> None:
        self._durable.extend(writes)


def _logged(log: CrashLog, ambiguous: list[Ambiguous], *, fua_last: bool) -> list[Epoch]:
    """L1: from the order of the log alone."""
    builder = _Builder(log)
    pending: list[Write] = []
    fuas: list[Write] = []
    index = log.index
    for entry in range(len(index)):
        flags = index.flags(entry)
        if flags & LogFlag.FLUSH:
            builder.add(entry, pending, "flush")
            builder.durable(pending)
            pending = []
            fuas = []
        if not index.extent_of(entry)[1]:
            continue
        write = _write(log, entry)
        if flags & LogFlag.FUA:
            builder.add(entry, [*pending, write], "fua")
            pending = _trim_all(pending, write)
            builder.durable([write])
            fuas.append(write)
        else:
            overlapped = [fua for fua in fuas if _overlaps(fua, write)]
            ambiguous.extend(Ambiguous(fua.entry, entry) for fua in overlapped)
            for fua in overlapped if fua_last else ():
                write = _trim(write, fua) or Write(entry, flags, ())
            pending.append(write)
    builder.add(len(index), pending, "end")
    return builder.epochs


def _hostile(log: CrashLog, window: int) -> list[Epoch]:
    """L3: whatever was written since `window` flushes ago may be missing."""
    builder = _Builder(log)
    groups: list[list[Write]] = [[]]
    index = log.index
    for entry in range(len(index)):
        if index.flags(entry) & LogFlag.FLUSH:
            builder.add(entry, [write for group in groups for write in group], "flush")
            groups.append([])
            if len(groups) > window:
                builder.durable(groups.pop(0))
        if index.extent_of(entry)[1]:
            groups[-1].append(_write(log, entry))
    builder.add(len(index), [write for group in groups for write in group], "end")
    return builder.epochs


def _exact(log: CrashLog, times: Sequence[Times]) -> list[Epoch]:
    """L2: from times of issue and completion. Where writes overlap, the one issued later wins."""
    index = log.index
    marks = sorted(times[mark.position].issued for mark in log.marks)
    writes = {entry: _write(log, entry) for entry in range(len(index)) if index.extent_of(entry)[1]}
    issued = sorted(writes, key=lambda entry: (times[entry].issued, entry))
    growths = sorted(
        (times[entry].completed, entry)
        for entry in range(len(index))
        if index.flags(entry) & LogFlag.FLUSH or (entry in writes and index.flags(entry) & LogFlag.FUA)
    )
    builder = _Builder(log)
    pending: dict[int, Write] = {}
    at = made = 0
    for instant, cause in growths:
        while at < len(issued) and times[issued[at]].issued < instant:
            pending[issued[at]] = writes[issued[at]]
            at += 1
        while made < len(marks) and marks[made] < instant:
            made += 1
        flags = index.flags(cause)
        builder.add(cause, list(pending.values()), "flush" if flags & LogFlag.FLUSH else "fua", made)
        durable = [
            entry
            for entry in pending
            if (flags & LogFlag.FLUSH and times[entry].completed < times[cause].issued)
            or (entry == cause and flags & LogFlag.FUA)
        ]
        for entry in durable:
            write = pending.pop(entry)
            builder.durable([write])
            for earlier in [other for other in pending if _before(times, other, entry)]:
                kept = _trim(pending[earlier], write)
                if kept is None:
                    del pending[earlier]
                else:
                    pending[earlier] = kept
    while at < len(issued):
        pending[issued[at]] = writes[issued[at]]
        at += 1
    builder.add(len(index), list(pending.values()), "end", len(marks))
    return builder.epochs


def _before(times: Sequence[Times], one: int, other: int) -> bool:
    return (times[one].issued, one) < (times[other].issued, other)
