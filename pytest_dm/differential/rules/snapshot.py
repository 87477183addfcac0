"""snapshot: of a device that its snapshot-origin, beside it, writes; discards with chunks that do not kill kernels."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dmcore.targets import Snapshot, SnapshotOrigin
from dmcore.targets.snapshot import Store
from pytest_dm.differential.rules._snapshots import SnapshotRule, cow_sectors, draw_snapshot
from pytest_dm.differential.steps import Discard, Read, Write

if TYPE_CHECKING:
    from collections.abc import Sequence

    from hypothesis.strategies import DrawFn

    from dmcore.target import Target
    from pytest_dm.differential.rule import Room
    from pytest_dm.differential.steps import Step

__all__ = ["RULE"]

_SAFE_CHUNK = 512
"""Of a snapshot that takes discards: below, kernel 7.2.7 divides by zero."""


class _Snapshot(SnapshotRule):
    lengths = (24, 64, 100, 2100, 2100)

    def draw(self, draw: DrawFn, room: Room) -> Snapshot:
        """Draw store and chunk, and whether the origin is written, too."""
        from hypothesis import strategies as st

        base = room.disk(room.length, seed=90)
        if room.length > 2 * _SAFE_CHUNK:
            return Snapshot(
                origin=base,
                cow=room.disk(cow_sectors(room.length, _SAFE_CHUNK)),
                store=draw(st.sampled_from([Store.PERSISTENT, Store.OVERFLOW])),
                chunk=_SAFE_CHUNK,
                discard_zeroes_cow=True,
                discard_passdown_origin=draw(st.sampled_from([True, True, False])),
            )
        found = draw_snapshot(draw, room, base, room.length)
        if draw(st.booleans()):
            room.device(SnapshotOrigin(dev=base), room.length, face=True)
        return found

    def scenes(self, target: Target, length: int) -> Sequence[Sequence[Step]]:
        """Write so much that chunks of a sector fill the first area of metadata; discard some chunks of those that may."""
        assert isinstance(target, Snapshot)
        discard = Discard(target.chunk or 0, 2 * (target.chunk or 0)), Read(0, length)
        return (Write(0, min(length, 100), 7),), discard if target.discard_zeroes_cow else ()


RULE = _Snapshot()
