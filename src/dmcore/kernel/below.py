"""What a table stands on, and the mistakes there that kernels do not survive.

A device below itself is accepted up to 6.1 (later kernels refuse the direct case, none the loop over other devices), and
the first block ioctl or bio then recurses until the kernel's stack overflows. A writecache on persistent memory whose
cache has no DAX is an oops in 6.1 built with CONFIG_FS_DAX (drivers/md/dm-writecache.c, writecache_ctr: `dax_synchronous` of no device).
"""

from __future__ import annotations

import re
import stat
from pathlib import Path
from typing import TYPE_CHECKING

from dmcore.abi.devt import DevT
from dmcore.errors import DeviceMissing, SpecError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from dmcore.abi.dm import TableLine
    from dmcore.kernel.control import Control

__all__ = ["devices_of", "refuse_fatal", "refuse_loop"]

_DEVICE_WORD = re.compile(r"(?<!\S)(?:(?P<number>[0-9]{1,4}:[0-9]{1,7})|(?P<path>/\S+))(?!\S)", re.ASCII)


def devices_of(lines: Iterable[TableLine]) -> set[DevT]:
    """Return the block devices that words of the lines name, by "major:minor" or by the path of a node."""
    found: set[DevT] = set()
    for line in lines:
        for match in _DEVICE_WORD.finditer(line.params):
            found |= _device(match)
    return found


def _device(match: re.Match[str]) -> set[DevT]:
    """Return the block device that a word names, if it does."""
    if match["number"]:
        major, minor = map(int, match["number"].split(":"))
        return {DevT(major, minor)} if major < 1 << 12 and minor < 1 << 20 else set()
    try:
        node = Path(match["path"]).stat()
    except OSError:
        return set()
    return {DevT.from_rdev(node.st_rdev)} if stat.S_ISBLK(node.st_mode) else set()


def refuse_fatal(control: Control, lines: Sequence[TableLine], dev: DevT) -> None:
    """Refuse a table for `dev` that would bring the kernel down.

    Raises:
        SpecError: It stands on itself, or wants persistent memory of a device that has none.
    """
    _refuse_no_dax(lines)
    refuse_loop(control, lines, dev)


def _refuse_no_dax(lines: Iterable[TableLine]) -> None:
    for line in lines:
        words = line.params.split()
        if line.type != "writecache" or len(words) < 3 or words[0].lower() != "p":
            continue
        match = _DEVICE_WORD.fullmatch(words[2])
        if match and not all(map(_has_dax, _device(match))):
            reason = "persistent memory needs a device with DAX, and 6.1 does not survive another; s caches on any disk"
            raise SpecError("cache", words[2], reason)


def _has_dax(dev: DevT) -> bool:
    """Whether the device says that it has, or nothing at all; a partition leaves that to its disk."""
    place = Path(f"/sys/dev/block/{dev}")
    for queue in (place / "queue", place / "../queue"):
        try:
            return (queue / "dax").read_text().strip() != "0"
        except OSError:
            continue
    return True


def refuse_loop(control: Control, lines: Iterable[TableLine], dev: DevT) -> None:
    """Refuse a table for `dev` that stands on `dev`, directly or through live tables of other dm devices.

    Raises:
        SpecError: It does.
    """
    todo = devices_of(lines)
    seen: set[DevT] = set()
    while todo:
        below = todo.pop()
        if below == dev:
            reason = "the device would stand on itself, and its first I/O would bring the kernel down"
            raise SpecError("table", str(dev), reason)
        if below.major == dev.major and below not in seen:
            seen.add(below)
            try:
                todo.update(control.deps(below))
            except DeviceMissing:
                continue
