"""Sizes, times and histograms as `stats` reads and shows them. Sources: lvm2, libdm/libdm-string.c and libdm-stats.c."""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dmcore.cli._dmsetup.failed import Failed
from dmcore.params import U64_MAX

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["ALL", "Units", "as_float", "histogram", "parse_bounds", "parse_size", "percent", "take_factor"]

ALL = 100_000_000
"""All of something, in the millionths of a percent that libdevmapper counts in."""
_SMALL = "kmgtpe"
_SIZE = re.compile(r"\s*(\d+)(.*)", re.ASCII | re.DOTALL)
_FACTOR = re.compile(r"(\d+(?:\.\d*)?)?([hHrRbBsSkKmMgGtTpPeE])", re.ASCII)
_BOUND = re.compile(r"(\d+)(ns|us|ms|s)?(?:,|$)", re.ASCII)
_NANOSECONDS = {"s": 10**9, "ms": 10**6, "us": 10**3, "ns": 1}
_PERCENT = 1_000_000


def _bytes(letter: str) -> int:
    if letter in "hHrRbB":
        return 1
    if letter in "sS":
        return 512
    return int((1024 if letter in _SMALL else 1000) ** (_SMALL.index(letter.lower()) + 1))


def take_factor(text: str) -> tuple[int, str, int] | None:
    """Return the bytes of the unit that `text` begins with, its letter, and where it ends; None if with no unit."""
    match = _FACTOR.match(text)
    if match is None:
        return None
    digits, letter = match[1] or "1", match[2]
    whole = float(digits) == int(float(digits))
    if letter in "hHrR":
        return 1 if whole else int(float(digits)), letter, match.end()
    number = int(float(digits)) * _bytes(letter) if whole else int(float(digits) * _bytes(letter))
    return number, letter if int(float(digits)) == 1 else "U", match.end()


@dataclass(frozen=True, slots=True)
class Units:
    """What sizes are shown in.

    Attributes:
        letter: The unit; h, H, r or R for what fits each size, U for one of the user's own.
        factor: Its bytes.
    """

    letter: str
    factor: int

    @classmethod
    def parse(cls, text: str) -> Units:
        """Return what --units says.

        Raises:
            Failed: No such unit.
        """
        found = take_factor(text)
        if found is None or not found[0]:
            raise Failed("Invalid --units argument.")
        return cls(found[1], found[0])

    def sectors(self, sectors: int) -> str:
        """Return the text of a size; it has a unit only where that is not the same for all."""
        return self.bytes(sectors * 512) if sectors else "0"

    def bytes(self, size: int) -> str:
        """Return the text of a size in bytes, 0 of them with its unit too."""
        if self.letter not in "hHrR":
            return f"{float(size) / self.factor:.{0 if self.letter in 'bBsS' else 2}f}"
        base = 1000 if self.letter in "HR" else 1024
        power = next((power for power in range(6, 0, -1) if size >= base**power), 0)
        if not power:
            return f"{size}{'B' if base == 1000 else 'b'}"
        unit = _SMALL[power - 1]
        exact = 100.0 * float(size) / base**power
        rounded_up = self.letter in "rR" and round(exact) != int(exact)
        return f"{'<' if rounded_up else ''}{float(size) / base**power:.2f}{unit.upper() if base == 1000 else unit}"


def parse_size(text: str, name: str) -> int:
    """Return the bytes that a user gives; a number alone counts sectors.

    Raises:
        Failed: No number, or a unit that there is not.
    """
    match = _SIZE.fullmatch(text)
    factor = take_factor(match[2]) if match and match[2] else (512, "s", 0)
    if match is None or factor is None or factor[2] != len(match[2]):
        raise Failed(f'Invalid {name} argument: "{text}"')
    return int(match[1]) * factor[0]


def parse_bounds(text: str) -> tuple[int, ...]:
    """Return the limits of a histogram in nanoseconds; one without a unit has that of the one before it.

    Raises:
        Failed: Something else stands there.
    """
    found: list[int] = []
    place, unit = 0, 1
    while place < len(text) or not found:
        match = _BOUND.match(text, place)
        if match is None and text[place : place + 1] == ",":
            raise Failed(f"Empty histogram bin not allowed: {text}")
        if match is None:
            wrong = re.compile(r"\d*(.?)", re.ASCII | re.DOTALL).match(text, place)
            raise Failed(f"Invalid character in histogram: {wrong[1] if wrong else ''}")
        unit = _NANOSECONDS[match[2]] if match[2] else unit
        found.append(int(match[1]) * unit)
        place = match.end()
    return tuple(found)


def _single(number: float) -> float:
    """Return a number as C's float holds it."""
    return float(struct.unpack("f", struct.pack("f", number))[0])


def as_float(share: int) -> float:
    """Return a share of `ALL` in percent."""
    return _single(_single(share) / _PERCENT)


def percent(part: float, whole: float) -> int:
    """Return `part` of `whole` as a share of `ALL`, which is nothing or all only if exactly that."""
    if not whole:
        return ALL
    if not part or part == whole:
        return ALL if part else 0
    return min(max(int(ALL * (float(part) / float(whole))), 1), ALL - 1)


def _time(nanoseconds: int, *, suffix: bool) -> str:
    if not suffix:
        return str(nanoseconds)
    unit = next(unit for unit, size in _NANOSECONDS.items() if not nanoseconds % size)
    return f"{nanoseconds // _NANOSECONDS[unit]}{unit}"


def _bin(bounds: str, low: int, high: int, width: int, *, suffix: bool, behind: str) -> str:
    """Return what stands before a bin's value: its lower bound, or both."""
    lower = _time(low, suffix=suffix)
    if bounds == "lower":
        return lower.rjust(width) + behind
    if high == U64_MAX:
        return f">{lower}".rjust(width) + behind
    return f"{lower}-{_time(high, suffix=suffix)}{behind}"


def histogram(
    limits: Sequence[int], counts: Sequence[int], values: str, bounds: str, *, suffix: bool, padded: bool
) -> str:
    """Return the text of a histogram.

    Args:
        limits: Upper limits of all bins but the last, in nanoseconds.
        counts: Requests in each bin.
        values: What to show of them: "count", "percent" or "" for nothing.
        bounds: "lower", "range" or "".
        suffix: Times in the largest unit that holds them whole, with its name; else in nanoseconds.
        padded: Values in columns.
    """
    least = 6 if values and padded else 0
    between = ":" if values and not least else ""
    parts: list[str] = []
    low = 0
    for high, count in zip((*limits, U64_MAX), counts, strict=True):
        width, head = least, ""
        if bounds:
            room = (6 if suffix else 10) if width else 0
            head = _bin(bounds, low, high, room, suffix=suffix, behind=":" if values else "")
            between = "," if width or not values else ":"
            width = max(width - (len(head) - room - 1), 0) if width else 0
        share = percent(count, sum(counts)) if sum(counts) else 0
        shown = {"": "", "count": str(count), "percent": f"{as_float(share):.2f}"}[values]
        parts.append(head + shown.rjust(width) + ("%" if values == "percent" else ""))
        low = high
    return between.join(parts)
