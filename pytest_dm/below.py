"""What devices of the factory stand on: disks that were given, or fresh ones of a size."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dmcore.errors import SpecError
from dmcore.units import SECTOR, parse_size
from pytest_dm import devices
from pytest_dm.devices.base import Disk

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pytest_dm.factory import Dm

__all__ = ["Lower", "Size", "a_disk", "beside", "faulty", "flaky", "given", "one"]

Size = str | int
"""Text like "64M", or bytes."""

Lower = Disk | Size
"""A disk that the factory made, or the size of a fresh one."""

_WHAT = "a disk that dm made, or a size like '64M' for a fresh one; a node of yours goes into dm.create(table, devices=)"


def a_disk(field: str, disk: object) -> Disk:
    """Return the disk.

    Raises:
        SpecError: It is none of ours.
    """
    if not isinstance(disk, Disk):
        raise SpecError(field, disk, "a disk that dm made")
    return disk


def given(
    field: str, lower: Lower | None, size: Size | None = None, size_field: str = "size"
) -> tuple[Disk | None, Size | None]:
    """Return the disk that was given, or what is known of a fresh one's size.

    Raises:
        SpecError: Neither a disk of ours nor a size; or a disk, or a size, and a size besides.
    """
    if lower is None:
        return None, size
    if size is not None:
        raise SpecError(size_field, size, f"give {field} or a size, not both")
    if isinstance(lower, str | int):
        try:
            return None, parse_size(lower, field=field)
        except SpecError:
            raise SpecError(field, lower, _WHAT) from None
    if isinstance(lower, Disk):  # pyright: ignore[reportUnnecessaryIsInstance] - callers need not be checked
        return lower, None
    raise SpecError(field, lower, _WHAT)


def one(dm: Dm, field: str, lower: Lower | None, size: Size | None = None) -> Disk:
    """Return the disk that was given, or a fresh one of that size, or of `size`."""
    disk, length = given(field, lower, size)
    return dm.loop(length) if disk is None else disk


def beside(
    dm: Dm,
    field: str,
    lower: Lower | None,
    default: int,
    *,
    label: str,
    size: Size | None = None,
    size_field: str = "size",
) -> Disk:
    """Return the second disk that was given, or a fresh one of that size, or of `size`, or of `default` bytes."""
    disk, length = given(field, lower, size, size_field)
    return dm.loop(default if length is None else length, label=label) if disk is None else disk


def whole(size: int, unit: int) -> int:
    """Return the bytes of as many whole `unit`s of sectors as fit, at least of one."""
    return size - size % (unit * SECTOR) or unit * SECTOR


def flaky(dm: Dm, disk: Disk) -> devices.Flakey:
    """Return a way to the disk that fails on command."""
    return disk if isinstance(disk, devices.Flakey) else dm.flakey(disk)


def faulty(dm: Dm, field: str, disks: int | Sequence[Lower], size: Size | None) -> list[devices.Flakey]:
    """Return ways to the disks, or to as many fresh ones of `size`, that fail on command."""
    if isinstance(disks, str):
        raise SpecError(field, disks, "how many, or the disks; how large fresh ones are: size=")
    if isinstance(disks, int):
        if disks < 1:
            raise SpecError(field, disks, "at least 1")
        return [dm.flakey(size=size) for _ in range(disks)]
    if size is not None:
        raise SpecError("size", size, f"give {field} or a size, not both")
    if None in disks:
        raise SpecError(field, disks, _WHAT)
    return [flaky(dm, one(dm, field, disk)) for disk in disks]
