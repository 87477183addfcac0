"""What a table stands on, and the one mistake there that kernels do not survive.

A device below itself is accepted up to 6.1 (later kernels refuse the direct case, none the loop over other devices), and
the first block ioctl or bio then recurses until the kernel's stack overflows.
"""

from __future__ import annotations

import re
import stat
from pathlib import Path
from typing import TYPE_CHECKING

from dmcore.abi.devt import DevT
from dmcore.errors import DeviceMissing, SpecError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from dmcore.abi.dm import TableLine
    from dmcore.kernel.control import Control

__all__ = ["devices_of", "refuse_loop"]

_DEVICE_WORD = re.compile(r"(?<!\S)(?:(?P<number>[0-9]{1,4}:[0-9]{1,7})|(?P<path>/\S+))(?!\S)", re.ASCII)


def devices_of(lines: Iterable[TableLine]) -> set[DevT]:
    """Return the block devices that words of the lines name, by "major:minor" or by the path of a node."""
    found: set[DevT] = set()
    for line in lines:
        for match in _DEVICE_WORD.finditer(line.params):
            if match["number"]:
                major, minor = map(int, match["number"].split(":"))
                if major < 1 << 12 and minor < 1 << 20:
                    found.add(DevT(major, minor))
                continue
            try:
                node = Path(match["path"]).stat()
            except OSError:
                continue
            if stat.S_ISBLK(node.st_mode):
                found.add(DevT.from_rdev(node.st_rdev))
    return found


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
