"""snapshot-origin: with up to two snapshots, which scripts read and write as well."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dmcore.targets import SnapshotOrigin
from pytest_dm.differential.rules._snapshots import SnapshotRule, draw_snapshot

if TYPE_CHECKING:
    from hypothesis.strategies import DrawFn

    from pytest_dm.differential.rule import Room

__all__ = ["RULE"]


class _SnapshotOrigin(SnapshotRule):
    def draw(self, draw: DrawFn, room: Room) -> SnapshotOrigin:
        """Draw the snapshots."""
        from hypothesis import strategies as st

        base = room.disk(room.length, seed=90)
        for _ in range(draw(st.integers(0, 2))):
            room.device(draw_snapshot(draw, room, base, room.length), room.length, face=True)
        return SnapshotOrigin(dev=base)


RULE = _SnapshotOrigin()
