"""thin: on a pool with two devices, which messages shoot and delete; a script may load another device in its place."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from dmcore.targets import Thin
from pytest_dm.differential.rules._pools import BLOCK, PoolRule, draw_pool
from pytest_dm.differential.steps import Message, Write

if TYPE_CHECKING:
    from collections.abc import Sequence

    from hypothesis.strategies import DrawFn, SearchStrategy

    from dmcore.target import Target
    from pytest_dm.differential.rule import Room
    from pytest_dm.differential.steps import Step

__all__ = ["RULE"]

_POOL_BLOCKS = 48


class _Thin(PoolRule):
    lengths = (8, 3 * BLOCK, 3 * BLOCK + 40)

    def draw(self, draw: DrawFn, room: Room) -> Thin:
        """Draw the pool, and an external origin, which may be shorter."""
        from hypothesis import strategies as st

        pool = room.device(draw_pool(draw, room, _POOL_BLOCKS, 2), _POOL_BLOCKS * BLOCK)
        origin = None
        if draw(st.booleans()):
            origin = room.disk(draw(st.sampled_from([room.length, 100, 2 * BLOCK])), seed=85)
        return Thin(pool=pool, dev_id=0, origin=origin)

    def prelude(self, target: Target, length: int) -> Sequence[Step]:
        """Write it, shoot it, and write a part of a block that both have."""
        assert isinstance(target, Thin)
        return Write(0, length, seed=3), Message("create_snap 2 0", on=target.pool.name), Write(2, 3, seed=4)

    def reloads(self, target: Target, length: int) -> SearchStrategy[Target]:
        """Draw other devices of the pool, and one that is not there."""
        from hypothesis import strategies as st

        del length
        assert isinstance(target, Thin)
        return st.integers(0, 3).map(lambda number: replace(target, dev_id=number))


RULE = _Thin()
