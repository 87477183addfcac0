"""stats: I/O statistics, as dmsetup and dmstats have them. Source: lvm2, libdm/dm-tools/dmsetup.c (_stats and others)."""

from __future__ import annotations

import sys
from functools import partial
from typing import TYPE_CHECKING

from dmcore.cli._dmsetup import info, show, stats_change
from dmcore.cli._dmsetup.failed import Failed
from dmcore.cli._dmsetup.report import Form, Report, column_help
from dmcore.cli._dmsetup.session import Where
from dmcore.cli._dmsetup.stats_columns import ALL_COLUMNS, Row
from dmcore.cli._dmsetup.stats_run import Run

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from dmcore.cli._dmsetup.options import Options
    from dmcore.cli._dmsetup.session import Session
    from dmcore.cli._dmsetup.stats_regions import Group, Region, Regions

__all__ = ["begin"]

_ID = "statsname,group_id,region_id,obj_type"
_AREA = "area_id,area_start,area_len"
_REGION = f"{_ID},region_start,region_len,area_count,area_len"
_ALL_OF_AREA = f"{_ID},region_start,region_len,area_count,{_AREA}"
_METRICS = (
    "reads_merged_per_sec,writes_merged_per_sec,reads_per_sec,writes_per_sec,read_size_per_sec,write_size_per_sec,"
    "avg_request_size,queue_size,util,await,read_await,write_await"
)
_COUNTS = (
    "read_count,reads_merged_count,read_sector_count,read_time,read_ticks,write_count,writes_merged_count,"
    "write_sector_count,write_time,write_ticks,in_progress_count,io_ticks,queue_ticks"
)


def _form(options: Options, command: str) -> Form:
    """Return the columns that a command has by default, and those that it knows."""
    histogram = options.has("histogram")
    if command == "list":
        base = _ALL_OF_AREA if options.verbose else _REGION
        return Form(f"{base},{'hist_bins,hist_bounds' if histogram else 'program_id'}", ALL_COLUMNS, "region")
    if histogram:
        values = "hist_percent_bounds" if options.has("relative") else "hist_count_bounds"
        return Form(f"{_REGION},util,await,{values}", ALL_COLUMNS, every=("stats", "region"))
    values = _COUNTS if options.has("raw") else _METRICS
    return Form(f"{_ID},{_AREA},{values}", ALL_COLUMNS, every=("stats", "region"))


def _walk(run: Run, command: str) -> tuple[bool, bool, bool, bool]:
    """Return whether rows are made of areas, regions and groups, and of regions only if they have several areas."""
    asked = [run.has(kind) for kind in ("area", "region", "group")]
    if (command == "list" and run.options.verbose) or (command == "report" and not any(asked)):
        return True, True, True, True
    areas, regions, groups = asked if any(asked) else (False, True, True)
    return areas, regions, groups, False


def _objects(
    regions: Regions, walk: tuple[bool, bool, bool, bool]
) -> Iterator[tuple[Region, int | None, Group | None]]:
    """Return what rows are made of: all areas, then all regions, then all groups."""
    areas, whole, groups, several = walk
    found = list(regions.found.values())
    if areas:
        yield from ((region, index, None) for region in found for index in range(region.count))
    if whole:
        yield from ((region, None, None) for region in found if region.count > 1 or not several)
    if groups:
        yield from ((group.members[0], None, group) for group in regions.groups)


def _tabulate(run: Run, arguments: Sequence[str], command: str) -> None:
    """list and report."""
    session, report = run.session, run.session.report
    assert report is not None, "both report"
    walk = _walk(run, command)
    counted = command == "report" or any(one.group == "stats" for one in report.wanted)

    def act(where: Where) -> None:
        reply = info.existing(session.ask("info", where))
        regions = run.regions(Where(dev=reply.info.dev), run.program)
        if regions.found and counted:
            regions.read()
        interval = run.interval() if regions.found and counted else 0
        row = partial(Row, reply, regions, run.units, interval)
        for region, area, group in _objects(regions, walk):
            report.add(session, row(region, area, group))

    try:
        run.for_each(arguments, act, careful=False)
    except Failed:
        if arguments or run.has("uuid") or run.has("major"):
            session.report = None
        raise


_COMMANDS: dict[str, Callable[[Run, Sequence[str]], None]] = {
    "clear": stats_change.clear, "create": stats_change.create, "delete": stats_change.delete,
    "print": stats_change.print_, "group": stats_change.group, "ungroup": stats_change.ungroup,
    "list": lambda run, arguments: _tabulate(run, arguments, "list"),
    "report": lambda run, arguments: _tabulate(run, arguments, "report"),
}  # fmt: skip
_NOT_BOTH = (("allprograms", "programid"), ("allregions", "regionid"))


def _check(options: Options) -> None:
    for one, other in _NOT_BOTH:
        if options.has(one) and options.has(other):
            raise Failed(f"Please supply one of --{one} and --{other}")
    if options.has("follow") and options.has("nomonitor"):
        raise Failed("Use of --follow is incompatible with --nomonitor.")


def begin(session: Session, words: Sequence[str]) -> Callable[[Session, Sequence[str]], None]:
    """Return what does a command of `stats`, for a device or all.

    Args:
        session: The run; it gets the report of `list` and `report`.
        words: The command, and devices.

    Raises:
        Failed: No such command, columns or units.
    """
    command = words[0]
    session.report = Report(session, form=_form(session.options, command))
    run = Run(session)
    if command not in {"list", "report"}:
        session.report = None

    def act(_session: Session, arguments: Sequence[str]) -> None:
        if command in {"help", "version"}:
            _about(session, command)
            return
        if command == "update_filemap":
            raise Failed("dmcore: stats update_filemap is not implemented; use dmstats.")
        if command not in _COMMANDS:
            raise Failed("Unknown stats command.", *_usage().splitlines())
        _check(session.options)
        _COMMANDS[command](run, arguments)

    return act


def _usage() -> str:
    from dmcore.cli._dmsetup.commands import usage  # noqa: PLC0415 - it imports us

    return usage()


def _about(session: Session, command: str) -> None:
    if command == "version":
        show.version(session, ())
        return
    sys.stderr.write(_usage() + column_help(ALL_COLUMNS))
