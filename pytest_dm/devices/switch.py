"""Switch: a disk whose regions each go to a path that can be changed at any time."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dmcore import targets
from dmcore.errors import SpecError
from dmcore.table import Table
from dmcore.target import Leg
from dmcore.targets.switch import Map, SetRegionMappings
from dmcore.units import SECTOR
from pytest_dm.devices.base import DmDevice

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from pytest_dm.devices.flakey import Flakey
    from pytest_dm.factory import Dm

__all__ = ["Switch"]

_STEPS = 4096
"""Regions set by one message."""


class Switch(DmDevice):
    """A disk in regions of equal size; each lies, at its own place, on one of the paths.

    Attributes:
        paths: The devices below, healthy at first, with the verbs of `flakey`.
        region: Sectors of a region.
        mapping: The path of each region, by their numbers: at first region n goes to path n modulo their number.
    """

    def __init__(self, maker: Dm, paths: Sequence[Flakey], *, region: int) -> None:
        self.paths = tuple(paths)
        self.region = region
        length = min(path.size for path in paths) // SECTOR
        value = targets.Switch(region=region, paths=tuple(Leg(path.ref) for path in paths))
        self.mapping = [number % len(self.paths) for number in range(value.regions(length))]
        super().__init__(maker, Table.of(value, length), label="switch")

    def map(self, region: int, path: int) -> None:
        """Let a region go to a path from now on.

        Raises:
            SpecError: There is no such region or path; nothing is changed.
        """
        self.map_all({region: path}.items())

    def map_all(self, places: Iterable[tuple[int, int]]) -> None:
        """Let regions go to paths: pairs of a region's number and a path's.

        Raises:
            SpecError: There is no such region or path; nothing is changed.
        """
        steps = list(places)
        for region, path in steps:
            if not 0 <= region < len(self.mapping):
                raise SpecError("region", region, f"there are regions 0..{len(self.mapping) - 1}")
            if not 0 <= path < len(self.paths):
                raise SpecError("path", path, f"there are paths 0..{len(self.paths) - 1}")
        for at in range(0, len(steps), _STEPS):
            some = steps[at : at + _STEPS]
            self.device.send(SetRegionMappings(tuple(Map(path, region) for region, path in some)))
            for region, path in some:
                self.mapping[region] = path
        self.forget_cached()
