"""I/O statistics of a dm device: the messages `@stats_...`, which every bio-based device takes, whatever its targets.

Send them with `Device.send`. Counting begins with `StatsCreate` and ends with `StatsDelete`, or with the device: a region
lives through reloads and suspends. Nobody is counted for a request-based device (multipath by default).

Sources: drivers/md/dm-stats.c (dm_stats_message, message_stats_create, dm_stats_create, dm_stats_list, dm_stats_print),
Documentation/admin-guide/device-mapper/statistics.rst.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, fields

from dmcore import validate
from dmcore.errors import ParseError, SpecError
from dmcore.params import U32_MAX, U64_MAX, quote
from dmcore.target import Message, Silent

__all__ = [
    "StatsArea",
    "StatsClear",
    "StatsCreate",
    "StatsDelete",
    "StatsList",
    "StatsPrint",
    "StatsRegion",
    "StatsSetAux",
]

_INT_MAX = 2**31 - 1
_REGION = re.compile(r"(\d+): (\d+)\+(\d+) (\d+) (\S+) (.*)", re.DOTALL)
_TAIL = re.compile(
    r"(?P<aux>.*?)(?P<precise> precise_timestamps)?(?: histogram:(?P<histogram>[0-9,]+))?", re.DOTALL
)
_AREA = re.compile(r"(\d+)\+(\d+)((?: \d+){13})(?: ([0-9:]+))?")


def _check_id(region: object) -> None:
    validate.integer("region", region, 0, _INT_MAX)


def _check_word(field: str, value: object, *, blanks: bool) -> None:
    validate.instance(field, value, str, "'pytest-dm'")
    assert isinstance(value, str)
    if not value or "\0" in value or "\n" in value or (not blanks and re.search(r"\s", value)):
        raise SpecError(field, value, "a line of text, not empty" if blanks else "a word without white space")


@dataclass(frozen=True, slots=True, kw_only=True)
class StatsCreate(Message[int]):
    """Count I/O to a range of the device from now on; the reply is the region's number.

    The range is cut into areas that are counted each for itself. At most a quarter of the memory goes to counters (ENOMEM).

    Attributes:
        start: First sector.
        length: Sectors; None for the whole device, which `start` must be 0 for.
        step: Sectors of an area, 1..2^64-1.
        areas: Or the number of areas, 1..2^32-1; the last may be shorter. One area, if neither is given.
        precise: Times are in nanoseconds, and not in milliseconds of the kernel's clock ticks.
        histogram: Also count requests by how long they took: ascending upper limits, in the unit of the times.
        program: Who made it, for `StatsList`: a word, not a number.
        aux: What the maker wants to remember of it.

    Raises:
        SpecError: A value the kernel would refuse (EINVAL).
    """

    start: int = 0
    length: int | None = None
    step: int | None = None
    areas: int | None = None
    precise: bool = False
    histogram: tuple[int, ...] = ()
    program: str = "-"
    aux: str = "-"

    def __post_init__(self) -> None:
        validate.integer("start", self.start, 0, U64_MAX, "sectors")
        if self.length is None and self.start:
            raise SpecError("start", self.start, "needs a length")
        if self.length is not None:
            validate.integer("length", self.length, 1, U64_MAX - self.start, "sectors")
        if self.step is not None and self.areas is not None:
            raise SpecError("areas", self.areas, "give the step or the number of areas, not both")
        if self.step is not None:
            validate.integer("step", self.step, 1, U64_MAX, "sectors")
        if self.areas is not None:
            validate.integer("areas", self.areas, 1, U32_MAX)
        validate.boolean("precise", self.precise)
        validate.instance("histogram", self.histogram, tuple, "(10, 20)")
        for index, limit in enumerate(self.histogram):
            low = self.histogram[index - 1] + 1 if index else 1
            validate.integer(f"histogram[{index}]", limit, low, U64_MAX)
        _check_word("program", self.program, blanks=False)
        if self.program.isdecimal():
            raise SpecError("program", self.program, "must not be a number")
        _check_word("aux", self.aux, blanks=True)

    def encode(self) -> str:
        """Return `@stats_create <range> <step> [<#words> <words>] <program> <aux>`."""
        words = ["@stats_create", "-" if self.length is None else f"{self.start}+{self.length}"]
        words.append(f"/{self.areas or 1}" if self.step is None else str(self.step))
        options = ["precise_timestamps"] if self.precise else []
        if self.histogram:
            options.append(f"histogram:{','.join(map(str, self.histogram))}")
        if options:
            words += [str(len(options)), *options]
        return " ".join([*words, quote(self.program), quote(self.aux)])

    def parse_reply(self, reply: str) -> int:
        """Return the region's number."""
        if not re.fullmatch("[0-9]{1,10}", reply):
            raise ParseError(reply, 0, reply, "the number of a region")
        return int(reply)


@dataclass(frozen=True, slots=True)
class StatsRegion:
    """A region that is counted.

    Attributes:
        region: Its number.
        start: First sector.
        length: Sectors.
        step: Sectors of an area.
        program: Who made it; "-" for nobody in particular.
        aux: What the maker wants to remember of it; "-" for nothing.
        precise: Whether times are in nanoseconds.
        histogram: Upper limits of the times that requests are counted by; none without a histogram.
    """

    region: int
    start: int
    length: int
    step: int
    program: str
    aux: str
    precise: bool
    histogram: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class StatsList(Message[tuple[StatsRegion, ...]]):
    """Tell which regions are counted, by their numbers.

    Attributes:
        program: Only those that it made; None for all.

    Raises:
        SpecError: Not a word.
    """

    program: str | None = None

    def __post_init__(self) -> None:
        if self.program is not None:
            _check_word("program", self.program, blanks=False)

    def encode(self) -> str:
        """Return `@stats_list [<program>]`."""
        return "@stats_list" if self.program is None else f"@stats_list {quote(self.program)}"

    def parse_reply(self, reply: str) -> tuple[StatsRegion, ...]:
        """Return the regions; a program's name with white space, which others may have given, is cut at the first."""
        return tuple(_decode_region(reply, index, line) for index, line in enumerate(reply.splitlines()))


def _decode_region(reply: str, index: int, line: str) -> StatsRegion:
    match = _REGION.fullmatch(line)
    tail = _TAIL.fullmatch(match[6]) if match else None
    if match is None or tail is None:
        raise ParseError(reply, index, line, "<region>: <start>+<length> <step> <program> <aux>")
    region, start, length, step = (int(match[number]) for number in range(1, 5))
    histogram = tail["histogram"]
    return StatsRegion(
        region, start, length, step, match[5], tail["aux"], tail["precise"] is not None,
        tuple(int(limit) for limit in histogram.split(",") if limit) if histogram else (),
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class StatsArea:
    """Counts of one area; times are in milliseconds, or nanoseconds of a precise region.

    Attributes:
        start: First sector.
        length: Sectors of an area, also of a last one that is shorter.
        reads: Reads that are done.
        reads_merged: Reads that were merged: 0.
        read_sectors: Sectors read.
        read_time: Time that reads took, added up.
        writes: Writes that are done, discards included.
        writes_merged: Writes that were merged: 0.
        write_sectors: Sectors written or discarded.
        write_time: Time that writes took, added up.
        in_flight: Requests on their way now.
        io_time: Time with a request on its way.
        queue_time: The same, times the number of requests.
        read_io_time: Time with a read on its way.
        write_io_time: Time with a write on its way.
        histogram: Requests by their time: one more number than there are limits; none without a histogram.
    """

    start: int
    length: int
    reads: int
    reads_merged: int
    read_sectors: int
    read_time: int
    writes: int
    writes_merged: int
    write_sectors: int
    write_time: int
    in_flight: int
    io_time: int
    queue_time: int
    read_io_time: int
    write_io_time: int
    histogram: tuple[int, ...] = ()


_COUNTS = tuple(field.name for field in fields(StatsArea) if field.name != "histogram")


@dataclass(frozen=True, slots=True)
class StatsPrint(Message[tuple[StatsArea, ...]]):
    """Tell the counts of a region's areas. ENOENT if there is none of that number.

    A reply holds some hundred areas (16 KiB of text): more fail with ENOBUFS, and are asked for in pieces.

    Attributes:
        region: Its number.
        first: First area, from 0.
        count: How many; None for all that follow.
        clear: Set what was told to 0 (not `in_flight`) in the same moment; nothing is cleared if the reply does not fit.

    Raises:
        SpecError: A value the kernel would refuse (EINVAL).
    """

    region: int
    first: int = 0
    count: int | None = None
    clear: bool = False

    def __post_init__(self) -> None:
        _check_id(self.region)
        validate.integer("first", self.first, 0, U64_MAX)
        if self.count is not None:
            validate.integer("count", self.count, 0, U64_MAX)
        validate.boolean("clear", self.clear)

    def encode(self) -> str:
        """Return `@stats_print[_clear] <region> <first> <count>`."""
        verb = "@stats_print_clear" if self.clear else "@stats_print"
        return f"{verb} {self.region} {self.first} {'-' if self.count is None else self.count}"

    def parse_reply(self, reply: str) -> tuple[StatsArea, ...]:
        """Return the areas."""
        return tuple(_decode_area(reply, index, line) for index, line in enumerate(reply.splitlines()))


def _decode_area(reply: str, index: int, line: str) -> StatsArea:
    match = _AREA.fullmatch(line)
    if match is None:
        raise ParseError(reply, index, line, "<start>+<length> and 13 numbers")
    histogram = tuple(int(count) for count in match[4].split(":") if count) if match[4] else ()
    numbers = map(int, (match[1], match[2], *match[3].split()))
    return StatsArea(**dict(zip(_COUNTS, numbers, strict=True)), histogram=histogram)


@dataclass(frozen=True, slots=True)
class _OfRegion(Silent):
    """A message about one region. ENOENT if there is none of that number.

    Attributes:
        region: Its number.

    Raises:
        SpecError: Not such a number.
    """

    region: int

    def __post_init__(self) -> None:
        _check_id(self.region)


@dataclass(frozen=True, slots=True)
class StatsDelete(_OfRegion):
    """End the counting of a region."""

    def encode(self) -> str:
        """Return `@stats_delete <region>`."""
        return f"@stats_delete {self.region}"


@dataclass(frozen=True, slots=True)
class StatsClear(_OfRegion):
    """Set a region's counts to 0, `in_flight` apart."""

    def encode(self) -> str:
        """Return `@stats_clear <region>`."""
        return f"@stats_clear {self.region}"


@dataclass(frozen=True, slots=True)
class StatsSetAux(_OfRegion):
    """Remember something else of a region.

    Attributes:
        region: Its number.
        aux: What.

    Raises:
        SpecError: Not such a number, or not a line of text.
    """

    aux: str

    def __post_init__(self) -> None:
        _check_id(self.region)
        _check_word("aux", self.aux, blanks=True)

    def encode(self) -> str:
        """Return `@stats_set_aux <region> <aux>`."""
        return f"@stats_set_aux {self.region} {quote(self.aux)}"
