"""Sizes: what people type, bytes, and 512-byte sectors.

A table speaks sectors (`dmsetup` does), volumes and files speak bytes, people type "64M".
"""

from __future__ import annotations

import re

from dmcore.errors import SpecError

__all__ = ["SECTOR", "format_size", "parse_size", "to_sectors"]

SECTOR = 512
"""Bytes in a sector of a device-mapper table, whatever the device's logical block size is."""

_SUFFIXES = {"": 0, "K": 10, "M": 20, "G": 30, "T": 40, "P": 50}
_SIZE = re.compile(
    r"\s*(?P<number>[0-9]+(?:\.[0-9]+)?)\s*(?P<suffix>[KMGTP]?)(?P<unit>i?B|S)?\s*", re.IGNORECASE
)


def parse_size(value: str | int, *, field: str = "size") -> int:
    """Return `value` in bytes.

    Args:
        value: Bytes as a number, or text: digits with an optional K M G T P suffix (powers of 1024, `iB` and `B`
            may follow), or `s` for 512-byte sectors: "64M", "1.5GiB", "2048s", "4096".
        field: What the value is for; named in the error.

    Raises:
        SpecError: Not such a size, negative, or not a whole number of bytes.
    """
    if isinstance(value, bool):
        raise SpecError(field, value, "a size is a number of bytes or text like '64M', not a truth value")
    if isinstance(value, int):
        if value < 0:
            raise SpecError(field, value, "a size cannot be negative")
        return value
    match = _SIZE.fullmatch(value)
    unit = (match["unit"] or "").upper() if match else ""
    if match is None or (unit == "S" and match["suffix"]) or (unit == "IB" and not match["suffix"]):
        raise SpecError(field, value, "write it like 512, '64K', '64M', '1.5G', '1GiB' or '2048s' (sectors)")
    scale = SECTOR if unit == "S" else 1 << _SUFFIXES[match["suffix"].upper()]
    whole, _, fraction = match["number"].partition(".")
    numerator = int(whole + fraction) * scale
    size, rest = divmod(numerator, int("1" + "0" * len(fraction)))
    if rest:
        raise SpecError(field, value, "not a whole number of bytes")
    return size


def to_sectors(value: str | int, *, field: str = "size") -> int:
    """Return a size in sectors; the size must be a multiple of 512 bytes.

    Raises:
        SpecError: Not a size (see `parse_size`) or not a multiple of 512 bytes.
    """
    size = parse_size(value, field=field)
    if size % SECTOR:
        raise SpecError(field, value, f"not a multiple of {SECTOR} bytes")
    return size // SECTOR


def format_size(size: int) -> str:
    """Return `size` bytes as the shortest exact text that `parse_size` reads back."""
    for suffix, shift in reversed(_SUFFIXES.items()):
        if shift and size and size % (1 << shift) == 0:
            return f"{size >> shift}{suffix}"
    return str(size)
