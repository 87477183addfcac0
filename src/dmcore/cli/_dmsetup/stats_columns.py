"""The columns that `stats` adds to those of `info`. Source: lvm2, libdm/dm-tools/dmsetup.c (_report_fields), libdm-stats.c."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from dmcore.cli._dmsetup.columns import COLUMNS, Column, Item, Shown
from dmcore.cli._dmsetup.stats_units import ALL, as_float, histogram, percent

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from dmcore.cli._dmsetup.session import Reply
    from dmcore.cli._dmsetup.stats_regions import Group, Region, Regions
    from dmcore.cli._dmsetup.stats_units import Units
    from dmcore.stats import StatsArea

__all__ = ["ALL_COLUMNS", "STATS_COLUMNS", "Row"]

_SECOND = 10**9


@dataclass(frozen=True, slots=True)
class Row:
    """What a row of `stats` is about: an area, a region with all of its areas, or a group with all of its regions.

    Attributes:
        reply: The kernel's answer about the device.
        regions: The device's regions.
        units: What sizes are shown in.
        interval: Nanoseconds over which the counts ran up.
        region: The region; the first one of a group.
        area: Index of the area, None for a whole region or group.
        group: The group, None for an area or region.
    """

    reply: Reply
    regions: Regions
    units: Units
    interval: int
    region: Region
    area: int | None = None
    group: Group | None = None

    @property
    def kind(self) -> str:
        """ "area", "region" or "group"."""
        return "group" if self.group else "region" if self.area is None else "area"

    @property
    def members(self) -> list[Region]:
        """The regions it adds up."""
        return self.group.members if self.group else [self.region]

    @property
    def length(self) -> int:
        """Sectors of the region, or of all regions of the group."""
        return sum(one.length for one in self.members)

    def _areas(self) -> Iterator[StatsArea]:
        for one in self.members:
            if one.areas is not None:
                yield from one.areas if self.area is None else one.areas[self.area : self.area + 1]

    def total(self, *names: str) -> int:
        """Return the sum of some counts; times are in nanoseconds."""
        return sum(getattr(area, name) for area in self._areas() for name in names)

    def per_second(self, *names: str) -> float:
        """Return the same for each second of the interval."""
        return self.total(*names) * _SECOND / self.interval

    def milliseconds(self, time: tuple[str, ...], requests: tuple[str, ...]) -> float:
        """Return the time that one request took, 0 without any."""
        done = self.total(*requests)
        return self.total(*time) / done / 10**6 if done else 0.0

    @property
    def busy(self) -> int:
        """The part of the interval with a request on its way, in shares of `ALL`."""
        part = min(self.total("io_time"), self.interval) / self.interval
        return percent(int(10**6 * part), 10**6)

    @property
    def service_time(self) -> float:
        """Milliseconds with a request on its way, for each request."""
        done = self.total("reads", "writes")
        return min(self.total("io_time"), self.interval) / done / 10**6 if done else 0.0

    def counts(self) -> list[int]:
        """Return the requests in each bin of the histogram."""
        found = [0] * (len(self.region.bounds) + 1)
        for area in self._areas():
            for index, count in enumerate(area.histogram):
                found[index] += count
        return found


def _count(name: str) -> Callable[[Item], int]:
    return lambda item: item.stats.total(name)


def _fixed(value: Callable[[Row], float]) -> Callable[[Item], Shown]:
    def shown(item: Item) -> Shown:
        number = value(item.stats)
        return Shown(f"{number:.2f}", number)

    return shown


def _size(value: Callable[[Row], float]) -> Callable[[Item], Shown]:
    def shown(item: Item) -> Shown:
        sectors = value(item.stats)
        return Shown(item.stats.units.sectors(int(sectors)), sectors)

    return shown


def _rate(*names: str) -> Callable[[Item], Shown]:
    return _fixed(lambda row: row.per_second(*names))


def _wait(*kinds: str) -> Callable[[Item], Shown]:
    times = tuple(f"{kind}_time" for kind in kinds)
    requests = tuple(f"{kind}s" for kind in kinds)
    return _fixed(lambda row: row.milliseconds(times, requests))


def _request_size(row: Row) -> float:
    done = row.total("reads", "writes")
    return row.total("read_sectors", "write_sectors") / done if done else 0.0


def _util(item: Item) -> Shown:
    share = item.stats.busy
    least = ALL // 10_000
    shown = as_float(share)
    if 0 < share < least:
        shown = 0.01
    elif ALL - least < share < ALL:
        shown = 99.99
    return Shown(f"{shown:.2f}", share)


def _bins(values: str, bounds: str) -> Callable[[Item], str]:
    def shown(item: Item) -> str:
        row, given = item.stats, item.session.options.has
        if not row.region.bounds:
            return ""
        return histogram(
            row.region.bounds, row.counts(), values, bounds, suffix=not given("notimesuffix"), padded=not given("noheadings")
        )  # fmt: skip

    return shown


def _region_id(item: Item) -> Shown:
    row = item.stats
    number = row.region.number
    return Shown(row.group.ranges if row.group else str(number), number)


def _offset(start: Callable[[Row], int]) -> Callable[[Item], Shown]:
    """Return what shows where an area starts, counted from a sector; dmsetup has 0 of whole regions with its unit."""

    def shown(item: Item) -> Shown:
        row = item.stats
        sectors = start(row) + row.region.step * (row.area or 0)
        text = row.units.bytes(sectors * 512) if row.kind == "region" else row.units.sectors(sectors)
        return Shown(text, sectors)

    return shown


def _group_id(item: Item) -> Shown:
    group = item.stats.region.group
    return Shown(str(group.number), group.number) if group else Shown("-", (1 << 64) - 1)


def _name(item: Item) -> str:
    group = item.stats.region.group
    return group.alias if group and group.alias else item.stats.regions.name


def _program(item: Item) -> str:
    return "dmstats" if item.stats.group else item.stats.region.program


def _bin_count(item: Item) -> str:
    row = item.stats
    return str(len(row.region.bounds) + 1 if row.region.bounds and not row.group else 0)


def _interval(item: Item) -> Shown:
    seconds = item.stats.interval / _SECOND
    return Shown(f"{seconds:.6f}", seconds)


def _number(name: str, heading: str, width: int, value: Callable[[Item], int | Shown], about: str) -> Column:
    return Column("stats", name, heading, width, value, about, number=True)


def _about(name: str, heading: str, width: int, value: Callable[[Item], int | Shown], about: str) -> Column:
    return Column("region", name, heading, width, value, about, number=True)


def _sectors(name: str, heading: str, width: int, value: Callable[[Item], int | Shown], about: str) -> Column:
    return Column("region", name, heading, width, value, about, number=True, size=True)


STATS_COLUMNS = (
    _number("read_count", "#Reads", 6, _count("reads"), "Reads that are done."),
    _number("reads_merged_count", "#RdMrgs", 7, _count("reads_merged"), "Reads that were merged."),
    _number("read_sector_count", "#RdSectors", 10, _count("read_sectors"), "Sectors read."),
    _number("read_time", "AccRdTime", 11, _count("read_time"), "Time that reads took, added up (ns)."),
    _number("write_count", "#Writes", 7, _count("writes"), "Writes that are done."),
    _number("writes_merged_count", "#WrMrgs", 7, _count("writes_merged"), "Writes that were merged."),
    _number("write_sector_count", "#WrSectors", 10, _count("write_sectors"), "Sectors written."),
    _number("write_time", "AccWrTime", 11, _count("write_time"), "Time that writes took, added up (ns)."),
    _number("in_progress_count", "#InProg", 7, _count("in_flight"), "Requests on their way now."),
    _number("io_ticks", "IoTicks", 7, _count("io_time"), "Time with a request on its way (ns)."),
    _number("queue_ticks", "QueueTicks", 10, _count("queue_time"), "The same, times the number of requests (ns)."),
    _number("read_ticks", "RdTicks", 7, _count("read_io_time"), "Time with a read on its way (ns)."),
    _number("write_ticks", "WrTicks", 7, _count("write_io_time"), "Time with a write on its way (ns)."),
    _number("reads_merged_per_sec", "RMrg/s", 6, _rate("reads_merged"), "Reads merged each second."),
    _number("writes_merged_per_sec", "WMrg/s", 6, _rate("writes_merged"), "Writes merged each second."),
    _number("reads_per_sec", "R/s", 3, _rate("reads"), "Reads each second."),
    _number("writes_per_sec", "W/s", 3, _rate("writes"), "Writes each second."),
    _number("read_size_per_sec", "RSz/s", 5, _size(lambda row: row.per_second("read_sectors")), "Read each second."),
    _number("write_size_per_sec", "WSz/s", 5, _size(lambda row: row.per_second("write_sectors")), "Written each second."),
    _number("avg_request_size", "AvgRqSz", 7, _size(_request_size), "Size of a request, on average."),
    _number("queue_size", "QSize", 5, _fixed(lambda row: row.total("queue_time") / row.interval), "Requests on their way, on average."),
    _number("await", "AWait", 5, _wait("read", "write"), "Time that a request took, on average (ms)."),
    _number("read_await", "RdAWait", 7, _wait("read"), "Time that a read took, on average (ms)."),
    _number("write_await", "WrAWait", 7, _wait("write"), "Time that a write took, on average (ms)."),
    _number("throughput", "Throughput", 10, _rate("reads", "writes"), "Requests each second."),
    _number("service_time", "SvcTm", 5, _fixed(lambda row: row.service_time), "Time with a request on its way, for each (ms)."),
    _number("util", "Util%", 5, _util, "Part of the time with a request on its way."),
    Column("stats", "hist_count", "Histogram Counts", 16, _bins("count", ""), "Requests by their time."),
    Column("stats", "hist_count_bounds", "Histogram Counts", 16, _bins("count", "lower"), "The same, with each bin's lower bound."),
    Column("stats", "hist_count_ranges", "Histogram Counts", 16, _bins("count", "range"), "The same, with each bin's bounds."),
    Column("stats", "hist_percent", "Histogram%", 10, _bins("percent", ""), "Part of the requests by their time."),
    Column("stats", "hist_percent_bounds", "Histogram%", 10, _bins("percent", "lower"), "The same, with each bin's lower bound."),
    Column("stats", "hist_percent_ranges", "Histogram%", 10, _bins("percent", "range"), "The same, with each bin's bounds."),
    _number("interval_ns", "IntervalNs", 10, lambda item: item.stats.interval, "Time over which it was counted (ns)."),
    _number("interval", "Interval", 8, _interval, "Time over which it was counted (s)."),
    _about("region_id", "RgID", 4, _region_id, "Number of the region."),
    _sectors("region_start", "RgStart", 7, _size(lambda row: row.region.start), "Where the region starts."),
    _sectors("region_len", "RgSize", 6, _size(lambda row: row.length), "Length of the region."),
    _about("area_id", "ArID", 4, lambda item: item.stats.area or 0, "Index of the area."),
    _sectors("area_start", "ArStart", 7, _offset(lambda row: row.region.start), "Where the area starts, on the device."),
    _sectors("area_len", "ArSize", 6, _size(lambda row: row.length if row.group else row.region.step), "Length of an area."),
    _sectors("area_offset", "ArOff", 5, _offset(lambda _row: 0), "Where the area starts, in the region."),
    _about("area_count", "#Areas", 6, lambda item: 1 if item.stats.group else item.stats.region.count, "Areas of the region."),
    _about("group_id", "GrpID", 5, _group_id, "Number of the group."),
    Column("region", "program_id", "ProgID", 6, _program, "Who made the region."),
    Column("region", "user_data", "UserData", 8, lambda item: "" if item.stats.group else item.stats.region.aux, "What its maker wants to remember of it."),
    Column("region", "precise", "Precise", 7, lambda item: str(int(item.stats.region.precise)), "1 if times are counted in nanoseconds, else 0."),
    Column("region", "hist_bins", "#Bins", 9, _bin_count, "Bins of the histogram."),
    Column("region", "hist_bounds", "Histogram Bounds", 16, _bins("", "lower"), "Lower bounds of the histogram's bins."),
    Column("region", "hist_ranges", "Histogram Ranges", 16, _bins("", "range"), "Bounds of the histogram's bins."),
    Column("region", "stats_name", "Name", 16, _name, "Name of the device, or the group's alias."),
    Column("region", "obj_type", "ObjType", 7, lambda item: item.stats.kind, "area, region or group."),
)  # fmt: skip
"""Counts and what follows from them ("stats"), and what they are counts of ("region")."""

ALL_COLUMNS = (*COLUMNS, *STATS_COLUMNS)
