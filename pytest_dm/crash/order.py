"""When each request was issued and completed: the kernel's block tracepoints, matched with a log of log-writes.

The log has requests in the order in which they became durable. The order in which they were issued and completed, which
says what a power cut could leave (level L2), comes from three tracepoints, on kernels that have them (CONFIG_FTRACE and
block tracing: distributions' kernels do, user-mode Linux does not):

* `block_bio_queue` of the disk below: a request is issued to it;
* `block_bio_complete` of the log-writes device: whoever issued it is told that it is done;
* a trace marker for each mark.

A completion counts from when it was told: what has not been told, nobody above can have relied on. The flush that the
dm core splits off a request with data (PREFLUSH) is told to nobody; it counts as done when the data is issued.

Sources: include/trace/events/block.h (block_bio_queue, block_bio_complete), block/blk-core.c
(submit_bio_noacct_nocheck), drivers/md/dm.c (dm_split_and_process_bio, dm_io_complete).
"""

from __future__ import annotations

import itertools
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from dmcore.errors import DmError, IoctlError
from dmcore.formats.log_writes import BARRIER, END_MARK, LogFlag, LogReader
from dmcore.kernel.mount import mount
from dmcore.units import SECTOR

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["Request", "Trace", "Unordered", "match", "open_trace", "parse"]

_ROOT = Path("/sys/kernel/tracing")
_EVENTS = ("block_bio_queue", "block_bio_complete")
_BUFFER_KB = 16 << 10
_MARK = "pytest-dm-mark "
_numbers = itertools.count(1)
_BIO = re.compile(
    r"\s(?P<clock>\d+): (?P<event>block_bio_queue|block_bio_complete): "
    r"(?P<major>\d+),(?P<minor>\d+) (?P<rwbs>[A-Z]+) (?P<sector>\d+) \+ (?P<count>\d+) \["
)
_MARKER = re.compile(rf"\s(?P<clock>\d+): tracing_mark_write: {_MARK}(?P<text>.*)$")


class Unordered(DmError):
    """There is no precise order for a log; says why."""


@dataclass(slots=True)
class Request:
    """A request to the disk below the log.

    Attributes:
        sector: Its first 512-byte sector.
        count: How many sectors; 0 for a flush.
        discard: Whether it is a discard.
        fua: Whether it is durable when it completes.
        issued: When it was issued.
        completed: When that was told; -1 if it never was.
    """

    sector: int
    count: int
    discard: bool
    fua: bool
    issued: int
    completed: int = -1


class Found(NamedTuple):
    """What a trace holds.

    Attributes:
        requests: Requests to the disk below, as they were issued.
        marks: Text and time of each mark.
    """

    requests: list[Request]
    marks: list[tuple[str, int]]


class Trace:
    """A trace instance of its own: other users of the tracepoints see and disturb nothing."""

    def __init__(self, below: int, above: int) -> None:
        """Start tracing the requests of two device numbers (`st_rdev`).

        Raises:
            Unordered: This kernel has no block tracepoints, or they may not be used.
        """
        self.below, self.above = below, above
        _mount_tracefs()
        self._folder = _ROOT / "instances" / f"pytest-dm-{os.getpid()}-{next(_numbers)}"
        try:
            self._folder.mkdir()
        except OSError as error:
            message = f"no trace instance: {error}"
            raise Unordered(message) from error
        try:
            self._write("trace_clock", "counter")
            self._write("buffer_size_kb", str(_BUFFER_KB))
            numbers = " || ".join(f"dev == {os.major(dev) << 20 | os.minor(dev)}" for dev in (below, above))
            for event in _EVENTS:
                self._write(f"events/block/{event}/filter", numbers)
                self._write(f"events/block/{event}/enable", "1")
            self._marker = os.open(self._folder / "trace_marker", os.O_WRONLY | os.O_CLOEXEC)
        except OSError as error:
            self._folder.rmdir()
            message = f"block tracepoints cannot be used: {error}"
            raise Unordered(message) from error

    def _write(self, name: str, text: str) -> None:
        (self._folder / name).write_text(text, encoding="ascii")

    def mark(self, text: str) -> None:
        """Put a mark between the requests."""
        os.write(self._marker, f"{_MARK}{text}\n".encode(errors="surrogateescape"))

    def read(self) -> str:
        """Stop, and return the trace as text.

        Raises:
            Unordered: Events were lost.
        """
        self._write("tracing_on", "0")
        for stats in self._folder.glob("per_cpu/cpu*/stats"):
            words = dict(
                line.split(": ", 1) for line in stats.read_text(encoding="ascii").splitlines() if ": " in line
            )
            lost = int(words.get("overrun", 0)) + int(words.get("dropped events", 0))
            if lost:
                message = f"{lost} events did not fit into the trace buffer"
                raise Unordered(message)
        return (self._folder / "trace").read_text(encoding="utf-8", errors="surrogateescape")

    def close(self) -> None:
        """Remove the instance; a second call does nothing."""
        if self._marker >= 0:
            os.close(self._marker)
            self._marker = -1
            self._folder.rmdir()


def open_trace(below: int, above: int) -> Trace:
    """Start a trace; errors are those of `Trace`."""
    return Trace(below, above)


def _mount_tracefs() -> None:
    if (_ROOT / "instances").is_dir():
        return
    if not _ROOT.is_dir():
        message = f"the kernel {os.uname().release} has no tracing"
        raise Unordered(message)
    try:
        mount("tracefs", _ROOT, "tracefs")
    except IoctlError as error:
        message = f"tracefs cannot be mounted: {error}"
        raise Unordered(message) from error


def parse(lines: Iterable[str], below: int, above: int) -> Found:
    """Return the requests and marks of a trace, times doubled so that there is room between two."""
    requests: list[Request] = []
    waiting: list[Request] = []
    marks: list[tuple[str, int]] = []
    for line in lines:
        if marked := _MARKER.search(line):
            marks.append((marked["text"], 2 * int(marked["clock"])))
        elif event := _BIO.search(line):
            clock = 2 * int(event["clock"])
            dev = os.makedev(int(event["major"]), int(event["minor"]))
            sector, count = int(event["sector"]), int(event["count"])
            discard = "D" in event["rwbs"]
            if event["rwbs"].lstrip("F")[:1] not in ("W", "D", ""):
                continue  # reads
            if event["event"] == "block_bio_queue" and dev == below:
                fua = bool(count) and "F" in event["rwbs"].lstrip("F")
                waiting = _flushed(waiting, sector, clock) if count else waiting
                requests.append(Request(sector, count, discard, fua, clock))
                waiting.append(requests[-1])
            elif event["event"] == "block_bio_complete" and dev == above:
                waiting = _completed(waiting, (sector, count), clock, discard=discard)
    return Found(requests, marks)


def _flushed(waiting: list[Request], sector: int, clock: int) -> list[Request]:
    """End the flush that came before the data of the same request: it is done when the data is issued."""
    for request in waiting:
        if not request.count and request.sector == sector:
            request.completed = clock - 1
            return [other for other in waiting if other is not request]
    return waiting


def _completed(
    waiting: list[Request], extent: tuple[int, int], clock: int, *, discard: bool
) -> list[Request]:
    """End what was told to be done: the oldest request of that very extent, else all pieces of a larger one."""
    sector, count = extent
    for request in waiting:
        if (request.sector, request.count, request.discard) == (sector, count, discard):
            request.completed = clock
            return [other for other in waiting if other is not request]
    left: list[Request] = []
    for request in waiting:
        inside = sector <= request.sector and request.sector + request.count <= sector + count
        if request.count and inside and request.discard == discard:
            request.completed = clock
        else:
            left.append(request)
    return left


def match(log: str | os.PathLike[str], found: Found) -> list[tuple[int, int]]:
    """Return when each entry of a log was issued and completed.

    Entries and requests of the same extent and kind are paired in the order of completion, which the log has them in.

    Raises:
        Unordered: An entry has no request, or the other way round.
        FormatError: The log is damaged.
    """
    queues: dict[tuple[int, int, bool, bool], list[Request]] = {}
    for request in sorted(found.requests, key=lambda one: one.completed):
        if request.completed < 0:
            message = f"the request for sectors {request.sector}+{request.count} was never told to be done"
            raise Unordered(message)
        key = (request.sector, request.count, request.discard, request.fua)
        queues.setdefault(key, []).append(request)
    marks: dict[str, list[int]] = {}
    for text, clock in found.marks:
        marks.setdefault(text, []).append(clock)
    last = max((request.completed for request in found.requests), default=0)
    last = max([last, *(clock for _, clock in found.marks)]) + 1
    times: list[tuple[int, int]] = []
    with LogReader(log) as reader:
        scale = reader.sector_size // SECTOR
        for entry in reader:
            if entry.mark is not None:
                known = marks.get(entry.mark, [])
                if entry.mark.startswith(BARRIER):
                    known = [max((completed for _, completed in times), default=0)]
                if not known and entry.mark != END_MARK:
                    message = f"the trace has no mark {entry.mark!r} for entry {entry.index}"
                    raise Unordered(message)
                clock = known.pop(0) if known else last
                times.append((clock, clock))
                continue
            count = entry.nr_sectors * scale
            fua = bool(count) and bool(entry.flags & LogFlag.FUA)
            key = (entry.sector * scale, count, bool(entry.flags & LogFlag.DISCARD), fua)
            if not queues.get(key):
                message = f"the trace has no request for entry {entry.index}, sectors {key[0]}+{count}"
                raise Unordered(message)
            request = queues[key].pop(0)
            times.append((request.issued, request.completed))
    rest = sum(map(len, queues.values()))
    if rest:
        message = f"the trace has {rest} requests that the log lacks"
        raise Unordered(message)
    return times
