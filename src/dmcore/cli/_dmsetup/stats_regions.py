"""The regions of one device that `stats` is about, and their groups. Source: lvm2, libdm/libdm-stats.c.

The kernel knows no groups: libdevmapper keeps a group in the auxiliary data of its first region, as
`DMS_GROUP=<alias>:<regions>#<the user's data>`, and so do we.
"""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from dmcore.abi.dm_records import pack_message, unpack_reply
from dmcore.cli._dmsetup.failed import Failed
from dmcore.errors import SpecError
from dmcore.stats import StatsArea, StatsList, StatsPrint

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from dmcore.cli._dmsetup.session import Session, Where
    from dmcore.stats import StatsRegion

__all__ = ["Group", "Region", "Regions", "parse_list", "tell"]

_TAG = "DMS_GROUP="
_LINE = 320
"""Bytes of an area's line at most, without its histogram: 15 numbers of 64 bits."""
_PIECE = 1 << 19
"""Bytes of the areas that are asked for at a time, at most: what is longer than its room is not told at all."""
_TIMES = ("read_time", "write_time", "io_time", "queue_time", "read_io_time", "write_io_time")
_RANGE = re.compile(r"\s*(\d+)\s*(?:-\s*(\d+)\s*)?", re.ASCII)


def tell(session: Session, where: Where, text: str) -> str:
    """Send a message to the device, return its reply.

    Raises:
        Failed: The kernel refused it.
    """
    try:
        payload = pack_message(0, text)
    except SpecError:
        raise Failed(f"device-mapper: message ioctl on {where} failed: Invalid argument") from None
    reply = session.ask("message", where, payload=payload)
    return unpack_reply(reply.header, reply.buffer)


def parse_list(text: str) -> list[tuple[int, int]] | None:
    """Return the ranges of a list such as "0,2,4-7", first and last of each; None if it is none."""
    ranges: list[tuple[int, int]] = []
    for word in text.split(","):
        match = _RANGE.fullmatch(word)
        if match is None and word.strip():
            return None
        if match is not None:
            first, last = int(match[1]), int(match[2] or match[1])
            if last < first:
                return None
            ranges.append((first, last))
    return ranges


@dataclass(slots=True)
class Region:
    """A region.

    Attributes:
        number: Its number.
        start: First sector.
        length: Sectors; those of whole areas once they were read.
        step: Sectors of an area.
        program: Who made it, "" for nobody in particular.
        aux: The user's data, "" for none.
        precise: Whether the kernel counts in nanoseconds, not milliseconds.
        bounds: Limits of its histogram in nanoseconds.
        areas: Counts, with all times in nanoseconds; None before they are read.
        group: The group it is in.
    """

    number: int
    start: int
    length: int
    step: int
    program: str
    aux: str
    precise: bool
    bounds: tuple[int, ...]
    areas: tuple[StatsArea, ...] | None = None
    group: Group | None = None

    @classmethod
    def of(cls, listed: StatsRegion) -> Region:
        """Return it as the kernel lists it."""
        program, aux = ("" if text == "-" else text for text in (listed.program, listed.aux))
        scale = 1 if listed.precise else 10**6
        bounds = tuple(limit * scale for limit in listed.histogram)
        return cls(
            listed.region, listed.start, listed.length, listed.step, program, aux, listed.precise, bounds
        )

    @property
    def count(self) -> int:
        """How many areas it has."""
        return -(-self.length // self.step) if self.length and self.step else 1

    def read(self, session: Session, where: Where) -> None:
        """Read its counts and clear them, in pieces that fit their room."""
        count = max(1, _PIECE // (_LINE + 21 * (len(self.bounds) + 1)))
        areas: list[StatsArea] = []
        for first in range(0, self.count, count):
            message = StatsPrint(self.number, first, count, clear=True)
            areas += message.parse_reply(tell(session, where, message.encode()))
        if not areas:
            raise Failed("Could not parse @stats_print message response.")
        self.start, self.step = areas[0].start, areas[0].length
        self.length = areas[-1].start + areas[-1].length - self.start
        self.areas = tuple(areas if self.precise else map(_in_nanoseconds, areas))

    def text(self, session: Session, where: Where, *, clear: bool) -> str:
        """Return its counts in the kernel's own words, and clear them if so asked."""
        count = max(1, _PIECE // (_LINE + 21 * (len(self.bounds) + 1)))
        verb = "@stats_print_clear" if clear else "@stats_print"
        pieces = range(0, self.count, count)
        return "".join(tell(session, where, f"{verb} {self.number} {first} {count}") for first in pieces)


def _in_nanoseconds(area: StatsArea) -> StatsArea:
    return replace(area, **{name: getattr(area, name) * 10**6 for name in _TIMES})


@dataclass(slots=True)
class Group:
    """Regions that are counted together.

    Attributes:
        alias: Its name, "" without one.
        members: Its regions by number; the number of the first is the group's.
    """

    alias: str
    members: list[Region]

    @property
    def number(self) -> int:
        """Its number."""
        return self.members[0].number

    @property
    def ranges(self) -> str:
        """The numbers of its regions, such as "0,2-4"."""
        words: list[str] = []
        first = last = -1
        for number in [*(member.number for member in self.members), None]:
            if number is None or number != last + 1 or first < 0:
                if first >= 0:
                    words.append(str(first) if first == last else f"{first}-{last}")
                first = -1 if number is None else number
            last = -1 if number is None else number
        return ",".join(words)


class Regions:
    """The regions of a device that a program made, and their groups.

    Args:
        session: The run.
        where: The device.
        program: Whose regions: "" for all.

    Attributes:
        name: The device's name.
        found: The regions by their numbers.

    Raises:
        Failed: There is no such device, or the kernel does not tell.
    """

    def __init__(self, session: Session, where: Where, program: str) -> None:
        self.session = session
        self.where = where
        self.name = session.shown(session.ask("info", where).header.name)
        listed = StatsList().parse_reply(tell(session, where, f"@stats_list {program}"))
        self.found = {one.region: Region.of(one) for one in listed}
        for region in self.found.values():
            if _TAG in region.aux:
                self._group(region)

    @property
    def groups(self) -> list[Group]:
        """The groups by their numbers."""
        return [one.group for one in self.found.values() if one.group and one.group.number == one.number]

    @property
    def last(self) -> int:
        """The highest number of a region, 0 if there is none."""
        return max(self.found, default=0)

    def _group(self, leader: Region) -> None:
        """Put a group together as its first region tells it."""
        alias, colon, rest = leader.aux.partition(_TAG)[2].partition(":")
        words, _, aux = rest.partition("#")
        ranges = parse_list(words) if colon else None
        if not ranges or min(first for first, _ in ranges) != leader.number:
            sys.stderr.write(
                f"Failed to parse group descriptor from region_id {leader.number} aux_data:'{leader.aux}'\n"
            )
            return
        leader.aux = "" if aux == "-" else aux
        members = [
            one for one in self.found.values() if any(low <= one.number <= high for low, high in ranges)
        ]
        self._join(Group(alias, members))

    def _join(self, group: Group) -> None:
        for member in group.members:
            member.group = group

    def read(self) -> None:
        """Read the counts of all regions and clear them."""
        for region in self.found.values():
            region.read(self.session, self.where)

    def tell(self, text: str) -> str:
        """Send a message to the device."""
        return tell(self.session, self.where, text)

    def _save(self, region: Region) -> None:
        """Have the kernel remember the user's data of a region, and the group that it is the first of."""
        group = region.group
        tag = f"{_TAG}{group.alias}:{group.ranges}#" if group and group.number == region.number else ""
        self.tell(f"@stats_set_aux {region.number} {tag}{region.aux or '-'} ")

    def delete(self, number: int) -> None:
        """Delete a region; a group goes with its first one.

        Raises:
            Failed: There is none of that number, or the kernel refused it.
        """
        if not self.found:
            raise Failed(f"Could not delete region ID {number}: no regions found")
        if number not in self.found:
            raise Failed(f"Region ID {number} does not exist")
        region = self.found[number]
        group = region.group
        if group is not None:
            leader = group.members[0]
            if leader is region:
                self._part(group)
            else:
                group.members.remove(region)
                region.group = None
            self._save(leader)
        self.tell(f"@stats_delete {number}")
        del self.found[number]

    def _part(self, group: Group) -> None:
        for member in group.members:
            member.group = None

    def group(self, number: int) -> Group:
        """Return the group of a number.

        Raises:
            Failed: There is none.
        """
        found = self.found[number].group if number in self.found else None
        if found is not None and found.number == number:
            return found
        raise Failed(
            f"Invalid group ID: {number}" if number > self.last else f"Group ID {number} does not exist"
        )

    def ungroup(self, number: int) -> None:
        """Take a group apart; its regions stay."""
        group = self.group(number)
        leader = group.members[0]
        self._part(group)
        self._save(leader)

    def join(self, text: str, alias: str) -> Group:
        """Make a group of the regions of a list.

        Raises:
            Failed: It is no list, or names regions that are not there, that are grouped, or of other histograms.
        """
        if not self.found:
            raise Failed("Could not create group: no regions found.")
        ranges = parse_list(text)
        if ranges is None:
            raise Failed(f"Could not parse list: '{text}'")
        last = max((high for _, high in ranges), default=-1)
        if not 0 <= last <= self.last:
            raise Failed(f"Invalid region ID: {last}")
        group = Group(
            alias, self._joinable(sorted({n for low, high in ranges for n in range(low, high + 1)}))
        )
        if len({one.precise for one in group.members}) > 1:
            sys.stderr.write(
                "WARNING: Grouping regions with different clock resolution: precision may be lost.\n"
            )
        _warn_of_overlaps(group.members)
        self._join(group)
        self._save(group.members[0])
        return group

    def _joinable(self, numbers: Iterable[int]) -> list[Region]:
        members: list[Region] = []
        bounds: tuple[int, ...] = ()
        for number in numbers:
            region = self.found.get(number)
            if region is None:
                raise Failed(f"Region ID {number} does not exist")
            if region.group is not None:
                raise Failed(f"Region ID {number} already a member of group ID {region.group.number}")
            bounds = bounds or region.bounds
            if region.bounds and region.bounds != bounds:
                raise Failed("All region histogram bounds must match exactly")
            members.append(region)
        return members


def _warn_of_overlaps(members: Sequence[Region]) -> None:
    """Say which regions lie on each other, as libdevmapper finds them: one sector in common it does not see."""
    extents = sorted(((one.start, one.length, one.number) for one in members), key=lambda extent: extent[0])
    merged = True
    while merged:
        merged, index = False, 0
        while index + 1 < len(extents):
            start, length, number = extents[index]
            start2, length2, number2 = extents[index + 1]
            if start + length - 1 <= start2:
                index += 1
                continue
            sys.stderr.write(
                f"WARNING: region IDs {number} and {number2} overlap. Some events will be counted twice.\n"
            )
            if start + length > start2 + length2:
                length2, number2 = length, number
            extents[index : index + 2] = [(min(start, start2), length2, number2)]
            merged = True
