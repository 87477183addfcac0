"""snapshot-merge: of a store that the model of snapshot has written, which the kernel merges; all is merged after each step."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dmcore.model.stores import MemoryStore
from dmcore.ref import Ref
from dmcore.stack import Stack
from dmcore.table import Table
from dmcore.targets import Snapshot, SnapshotMerge
from dmcore.volume import open_volume
from pytest_dm.differential.rule import patches
from pytest_dm.differential.rules._snapshots import CHUNKS, SnapshotRule, cow_sectors, draw_snapshot
from pytest_dm.differential.steps import pattern

if TYPE_CHECKING:
    from collections.abc import Iterable

    from hypothesis.strategies import DrawFn

    from pytest_dm.differential.rule import Room

__all__ = ["RULE"]


class _SnapshotMerge(SnapshotRule):
    settles = True
    suspends = False  # a suspend waits for what is being merged, which may be any part of it

    def draw(self, draw: DrawFn, room: Room) -> SnapshotMerge:
        """Draw what the snapshot holds, and another snapshot that has to see the merge."""
        from hypothesis import strategies as st

        length = room.length
        base = room.disk(length, seed=90)
        chunk = draw(st.sampled_from(CHUNKS))
        writes = draw(st.lists(st.tuples(st.integers(0, length - 1), st.integers(1, 20)), max_size=6))
        sectors = cow_sectors(length, chunk)
        cow = room.disk(sectors, patches=_written(length, sectors, chunk, writes))
        if draw(st.booleans()):
            room.device(draw_snapshot(draw, room, base, length), length, face=True)
        return SnapshotMerge(origin=base, cow=cow, chunk=chunk)

    def settled(self, text: str) -> bool:
        """Whether all is merged: only metadata are left."""
        used, _, metadata = text.partition(" ")
        return "/" not in used or used.partition("/")[0] == metadata


def _written(
    length: int, sectors: int, chunk: int, writes: Iterable[tuple[int, int]]
) -> tuple[tuple[int, bytes], ...]:
    """Return what the COW device of a snapshot holds after some writes."""
    cow = MemoryStore(sectors * 512)
    table = Table.of(Snapshot(origin=Ref("base"), cow=Ref("cow"), chunk=chunk), length)
    with open_volume(Stack({"snap": table}), {"base": MemoryStore(length * 512), "cow": cow}) as volume:
        for sector, count in writes:
            fits = min(count, length - sector)
            volume.write(sector * 512, pattern(70, sector, fits))
    return patches(cow)


RULE = _SnapshotMerge()
