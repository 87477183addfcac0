"""raid: sets with metadata that come into sync, and stay whole. Devices that fail have scripts of their own."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dmcore.targets import Raid
from dmcore.targets.raid import Raid10Format, RaidDevice, RaidType
from pytest_dm.differential.rule import Room, Rule

if TYPE_CHECKING:
    from collections.abc import Iterable

    from hypothesis.strategies import DrawFn

    from dmcore.target import Target
    from pytest_dm.differential.setup import Disk

__all__ = ["RULE"]

_META = 64
"""Sectors of a metadata device: a superblock, and a bitmap from byte 4096."""


class _Raid(Rule):
    lengths = (96, 192)  # whole chunks of 8 on each device, whether 1, 2, 3 or 4 have data
    layer = False  # md's threads and a layer that fails do not go together
    fails = False  # when a device is given up depends on which of md's requests meet it
    settles = True

    def draw(self, draw: DrawFn, room: Room) -> Raid:
        """Draw a kind; with metadata, since without them levels 4, 5 and 6 hang after a resync."""
        from hypothesis import strategies as st

        kind = draw(
            st.sampled_from([kind for kind in RaidType if kind.level != 10 or kind is RaidType.RAID10])
        )
        if kind.level == 1:
            count, part = draw(st.integers(2, 3)), room.length
        elif kind.level == 10:
            count = 4
            part = room.length // 2
        else:
            wide = draw(st.integers(2, 4))
            count, part = wide + kind.parity, room.length // wide
        devices = [RaidDevice(room.data(part), room.disk(_META)) for _ in range(count)]
        return Raid(
            kind=kind,
            chunk=0 if kind.level == 1 else 8,
            devices=tuple(devices),
            raid10_format=draw(st.none() | st.sampled_from(Raid10Format)) if kind.level == 10 else None,
        )

    def hidden(self, target: Target, disks: dict[str, Disk], status: str) -> Iterable[tuple[str, int, int]]:
        """Hide the metadata, which count how often they were written (tests of their own compare the rest)."""
        del status
        assert isinstance(target, Raid)
        for device in target.devices:
            assert device.meta is not None
            yield device.meta.name, 0, disks[device.meta.name].sectors * 512

    def settled(self, text: str) -> bool:
        """Whether nothing goes on, and all of it is in sync."""
        _, _, letters, ratio, action, *_ = text.split()
        done, _, total = ratio.partition("/")
        return action == "idle" and done == total and "a" not in letters


RULE = _Raid()
