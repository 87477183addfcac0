"""switch: regions that go to paths. Sources: drivers/md/dm-switch.c (switch_map, process_set_region_mappings)."""

from __future__ import annotations

import errno
import re
from typing import TYPE_CHECKING

from dmcore.model.block import fault
from dmcore.model.target import Area, ModelTarget
from dmcore.params import U64_MAX
from dmcore.targets.switch import Switch

if TYPE_CHECKING:
    from collections.abc import Iterable

    from dmcore.model.block import BlockDevice
    from dmcore.model.target import Context

__all__ = ["MODEL"]

_REPEAT = re.compile("[Rr](?!,)([0-9a-fA-F]*),([0-9a-fA-F]+)")
_MAP = re.compile("([0-9a-fA-F]*):([0-9a-fA-F]+)")


class _Switch(ModelTarget[Switch]):
    """One line. Of the regions, only those that a message sent elsewhere are kept."""

    def __init__(self, target: Switch, context: Context) -> None:
        super().__init__(target, context)
        self.max_io_len = target.region
        self._regions = target.regions(context.length)
        self._offsets = [path.offset for path in target.paths]
        self._changed: dict[int, int] = {}

    @property
    def areas(self) -> Iterable[Area]:
        """Each path's part, as long as the line."""
        length = self.context.length
        return [Area(dev, offset, length) for dev, offset in zip(self.lower, self._offsets, strict=True)]

    @property
    def flushed(self) -> Iterable[BlockDevice]:
        """None: flushes end here."""
        return ()

    @property
    def discards(self) -> bool:
        """Whether all paths take them."""
        return all(dev.discards for dev in self.lower)

    def _path(self, region: int) -> int:
        return self._changed.get(region, region % len(self.lower))

    def _place(self, sector: int) -> tuple[BlockDevice, int]:
        path = self._path(sector // self.max_io_len)
        return self.lower[path], self._offsets[path] + sector

    def readinto(self, sector: int, buffer: memoryview, flags: int) -> None:
        """Read from the region's path."""
        dev, at = self._place(sector)
        dev.readinto(at, buffer, flags)

    def write(self, sector: int, data: memoryview, flags: int) -> None:
        """Write to the region's path."""
        dev, at = self._place(sector)
        dev.write(at, data, flags)

    def discard(self, sector: int, count: int) -> None:
        """Discard all of it on the path of the first sector."""
        dev, at = self._place(sector)
        dev.discard(at, count)

    def message(self, words: list[str]) -> str:
        """Take `set_region_mappings` and its steps; those before a wrong one stay done."""
        if words[0].lower() != "set_region_mappings":
            raise fault(errno.EINVAL)
        region = 0
        for word in words[1:]:
            if repeat := _REPEAT.fullmatch(word):
                region = self._repeat(region, _number(repeat[1]), _number(repeat[2]))
            elif step := _MAP.fullmatch(word):
                region = _number(step[1]) if step[1] else region + 1
                self._map(region, _number(step[2]))
            else:
                raise fault(errno.EINVAL)
        return ""

    def _map(self, region: int, path: int) -> None:
        if region >= self._regions or path >= len(self.lower):
            raise fault(errno.EINVAL)
        self._changed[region] = path

    def _repeat(self, region: int, cycle: int, count: int) -> int:
        """Let `count` regions behind `region` go on as those before; return the last one."""
        if not cycle or cycle - 1 > region or region + count >= self._regions:
            raise fault(errno.EINVAL)
        for each in range(region + 1, region + count + 1):
            self._changed[each] = self._path(each - cycle)
        return region + count


def _number(digits: str) -> int:
    """Read hexadecimal digits as an unsigned long, which wraps; none are 0."""
    return int(digits or "0", 16) & U64_MAX


MODEL = _Switch
