"""What the rules of the snapshot family have in common: disks, stores, and what of a COW device can be compared."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dmcore.targets import Snapshot
from dmcore.targets.snapshot import Store
from pytest_dm.differential.rule import Rule

if TYPE_CHECKING:
    from collections.abc import Iterable

    from hypothesis.strategies import DrawFn

    from dmcore.ref import Ref
    from dmcore.target import Target
    from pytest_dm.differential.rule import Room
    from pytest_dm.differential.setup import Disk

__all__ = ["CHUNKS", "SnapshotRule", "cow_sectors", "draw_snapshot"]

CHUNKS = (1, 4, 8, 16)
_LOST = {"Invalid", "Overflow", "Merge", "Unknown"}


def cow_sectors(length: int, chunk: int) -> int:
    """Return the sectors of a COW device that a snapshot of so many cannot fill."""
    chunks = -(-length // chunk)
    areas = -(-chunks // (chunk * 32)) + 1
    return (chunks + areas + 4) * chunk


def draw_snapshot(draw: DrawFn, room: Room, origin: Ref, length: int) -> Snapshot:
    """Draw a snapshot with any store; a COW device that can be full only where a request is one chunk then.

    Of the chunks that a request copies at once, those that still find room are a matter of chance.
    """
    from hypothesis import strategies as st

    store = draw(st.sampled_from(Store))
    chunk = draw(st.sampled_from((CHUNKS[0], *CHUNKS)))
    return Snapshot(origin=origin, cow=room.disk(cow_sectors(length, chunk)), store=store, chunk=chunk)


class SnapshotRule(Rule):
    """Disks do not fail: which of several copies under way at once are done is chance."""

    lengths: tuple[int, ...] = (24, 64, 100)
    layer = False
    fails = False

    def hidden(self, target: Target, disks: dict[str, Disk], status: str) -> Iterable[tuple[str, int, int]]:
        """Hide the COW device of a snapshot that was lost: what was on its way to it is chance."""
        if (
            isinstance(target, Snapshot)
            and status.split(maxsplit=1)[0:1]
            and status.split(maxsplit=1)[0] in _LOST
        ):
            yield target.cow.name, 0, disks[target.cow.name].sectors * 512
