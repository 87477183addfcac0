"""The commands of `stats` about regions and groups. Source: lvm2, libdm/dm-tools/dmsetup.c (_stats_create and others)."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dmcore.abi.dm import DmFlag
from dmcore.abi.dm_records import unpack_lines
from dmcore.cli._dmsetup.failed import Failed
from dmcore.cli._dmsetup.options import number
from dmcore.cli._dmsetup.stats_regions import tell
from dmcore.cli._dmsetup.stats_units import parse_bounds, parse_size

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dmcore.cli._dmsetup.session import Where
    from dmcore.cli._dmsetup.stats_regions import Regions
    from dmcore.cli._dmsetup.stats_run import Run

__all__ = ["clear", "create", "delete", "group", "print_", "ungroup"]


def clear(run: Run, arguments: Sequence[str]) -> None:
    if not run.has("regionid") and not run.has("allregions"):
        raise Failed("Please specify a --regionid or use --allregions.")

    def act(where: Where) -> None:
        found = run.regions(where).found
        wanted = list(found) if run.has("allregions") else [run.number("regionid")][: len(found)]
        for region in wanted:
            if region not in found:
                raise Failed(f"No such region: {region}.")
            try:
                tell(run.session, where, f"@stats_clear {region}")
            except Failed as error:
                raise Failed(*error.lines, f"Clearing statistics region {region} failed.") from None

    run.for_each(arguments, act, careful=False)


@dataclass(frozen=True, slots=True)
class _Plan:
    """The regions that `create` makes.

    Attributes:
        start: First sector.
        length: Sectors, 0 for the whole device.
        step: Sectors of an area, or the negative number of areas.
        options: Optional words of the message.
        ascending: Whether the limits of the histogram ascend.
        program: Who makes them.
        aux: The user's data.
    """

    start: int
    length: int
    step: int
    options: str
    ascending: bool
    program: str
    aux: str

    @classmethod
    def of(cls, run: Run) -> _Plan:
        """Return what the options say."""
        value = run.options.value
        areas = number(value("areas") or "0") or 1
        if areas < 0:
            raise Failed(f'Invalid areas argument: "{value("areas")}"')
        size = parse_size(value("areasize") or "0", "areasize")
        precise, words = run.has("precise"), []
        limits = parse_bounds(value("bounds") or "") if run.has("bounds") else ()
        precise = precise or any(limit % 10**6 for limit in limits)
        words = ["precise_timestamps"] if precise else []
        if limits:
            words.append(f"histogram:{','.join(str(limit // (1 if precise else 10**6)) for limit in limits)}")
        return cls(
            start=parse_size(value("start") or "0", "start") // 512,
            length=parse_size(value("length") or "0", "length") // 512,
            step=size // 512 if size else -areas,
            options=" ".join([str(len(words)), *words]) if words else "",
            ascending=list(limits) == sorted(limits),
            program=run.program,
            aux=value("userdata") or "",
        )

    def message(self, start: int, length: int) -> str:
        """Return what makes a region."""
        extent = f"{start}+{length}" if start or length else "-"
        step = f"/{-self.step}" if self.step < 0 else str(self.step)
        return f"@stats_create {extent} {step} {self.options} {self.program} {self.aux}"

    def areas(self, length: int) -> int:
        """Return how many areas a region has."""
        return -self.step if self.step < 0 else -(-length // self.step) if length and self.step else 1


def create(run: Run, arguments: Sequence[str]) -> None:
    for option in ("allregions", "allprograms"):
        if run.has(option):
            raise Failed(f"Cannot use --{option} with create.")
    if run.has("areas") and run.has("areasize"):
        raise Failed("Please specify one of --areas and --areasize.")
    if run.options.value("programid") == "" and not run.has("force"):
        raise Failed("Creating a region with no program id requires --force.")
    if run.has("filemap"):
        raise Failed("dmcore: stats --filemap is not implemented; use dmstats.")

    def act(where: Where) -> None:
        plan = _Plan.of(run)
        if run.has("alias") and run.has("nogroup"):
            raise Failed("Cannot set alias with --nogroup.")
        reply = run.session.ask("table", where, flags=DmFlag.STATUS_TABLE | DmFlag.SKIP_BDGET)
        lines = unpack_lines(reply.header, reply.buffer)
        whole = plan.length or sum(line.length for line in lines)
        extents = (
            [(line.start, line.length) for line in lines] if run.has("segments") else [(plan.start, whole)]
        )
        name = run.session.shown(reply.header.name)
        made = [str(_create_region(run, where, plan, name, extent)) for extent in extents]
        if run.has("segments") and not run.has("nogroup"):
            _group_segments(run, where, plan, ",".join(made))

    run.for_each(arguments, act)


def _create_region(run: Run, where: Where, plan: _Plan, name: str, extent: tuple[int, int]) -> int:
    start, length = extent
    failed = f"{name}: Could not create statistics region."
    if not plan.ascending:
        raise Failed("Histogram boundaries must be in order of increasing magnitude.", failed)
    try:
        region = number(tell(run.session, where, plan.message(start, length)))
    except Failed as error:
        raise Failed(*error.lines, failed) from None
    areas = plan.areas(length)
    sys.stdout.write(f"{name}: Created new region with {areas} area(s) as region ID {region}\n")
    return region


def _group_segments(run: Run, where: Where, plan: _Plan, made: str) -> None:
    alias = run.options.value("alias") or ""
    try:
        group = run.regions(where, plan.program).join(made, alias)
    except Failed as error:
        raise Failed(*error.lines, f"Failed to create group for regions {made}.") from None
    suffix = f" with alias {alias}" if run.has("alias") else ""
    sys.stdout.write(f"Grouped regions {made} as group ID {group.number}{suffix}\n")


def delete(run: Run, arguments: Sequence[str]) -> None:
    if run.has("regionid") and run.has("groupid"):
        raise Failed("Please use one of --regionid and --groupid.")
    if not any(run.has(option) for option in ("regionid", "allregions", "groupid")):
        raise Failed("Please specify a --regionid or --groupid, or use --allregions.")

    def act(where: Where) -> None:
        regions = run.regions(where, run.program)
        if run.has("allregions") and not regions.found:
            return
        group = run.number("groupid") if run.has("groupid") else None
        what = (
            "Could not delete statistics group."
            if group is not None
            else "Could not delete statistics region"
        )
        try:
            if group is not None:
                wanted = [member.number for member in regions.group(group).members][::-1]
            else:
                wanted = list(regions.found) if run.has("allregions") else [run.number("regionid")]
            for region in wanted:
                regions.delete(region)
        except Failed as error:
            dot = "." if run.has("allregions") and group is None else ""
            raise Failed(*error.lines, what + dot) from None
        if group is not None:
            sys.stdout.write(f"Deleted statistics group {group}.\n")

    run.for_each(arguments, act)


def print_(run: Run, arguments: Sequence[str]) -> None:
    every = run.has("allregions")
    if not run.has("regionid") and not every:
        raise Failed("Please specify a --regionid or use --allregions.")
    clear = run.has("clear")

    def text(regions: Regions, region: int) -> str:
        try:
            if region in regions.found:
                return regions.found[region].text(run.session, regions.where, clear=clear)
            return regions.tell(f"@stats_print{'_clear' if clear else ''} {region} ")
        except Failed as error:
            raise Failed(*error.lines, "Could not print statistics region.") from None

    def act(where: Where) -> None:
        regions = run.regions(where)
        for region in list(regions.found) if every else [run.number("regionid")]:
            sys.stdout.write(text(regions, region))
            if every:  # dmsetup prints each of all regions twice
                sys.stdout.write(text(regions, region))

    run.for_each(arguments, act, careful=False)


def group(run: Run, arguments: Sequence[str]) -> None:
    words = run.options.value("regions")
    if words is None:
        raise Failed("Group requires --regions.")

    def act(where: Where) -> None:
        regions = run.regions(where)
        try:
            group = regions.join(words, run.options.value("alias") or "")
        except Failed as error:
            raise Failed(*error.lines, f"Could not create group on {regions.name}: {words}") from None
        sys.stdout.write(f"Grouped regions {words} as group ID {group.number} on {regions.name}\n")

    run.for_each(arguments, act)


def ungroup(run: Run, arguments: Sequence[str]) -> None:
    if not run.has("groupid"):
        raise Failed("Please specify group id.")
    group = run.number("groupid")

    def act(where: Where) -> None:
        regions = run.regions(where)
        try:
            regions.ungroup(group)
        except Failed as error:
            raise Failed(*error.lines, f"Could not delete group {group} on {regions.name}.") from None
        sys.stdout.write(f"Removed group ID {group} on {regions.name}\n")

    run.for_each(arguments, act)
