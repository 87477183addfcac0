"""snapshot-origin: with up to two snapshots, which scripts read and write as well."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dmcore.targets import SnapshotOrigin
from pytest_dm.differential.rules._snapshots import SnapshotRule, draw_snapshot
from pytest_dm.differential.steps import Write

if TYPE_CHECKING:
    from collections.abc import Sequence

    from hypothesis.strategies import DrawFn

    from dmcore.target import Target
    from pytest_dm.differential.rule import Room
    from pytest_dm.differential.steps import Step

__all__ = ["RULE"]


class _SnapshotOrigin(SnapshotRule):
    def draw(self, draw: DrawFn, room: Room) -> SnapshotOrigin:
        """Draw the snapshots."""
        from hypothesis import strategies as st

        base = room.disk(room.length, seed=90)
        for _ in range(draw(st.sampled_from([0, 1, 2, 2, 2]))):
            room.device(draw_snapshot(draw, room, base, room.length), room.length, face=True)
        return SnapshotOrigin(dev=base)

    def scenes(self, target: Target, length: int) -> Sequence[Sequence[Step]]:
        """Write all of it at once, across chunks of every size."""
        del target
        return ((Write(0, length, 6),),)


RULE = _SnapshotOrigin()
