"""unstriped: as its own strategy draws it, chunks behind the end of the device included, or the last one at that end."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dmcore.targets import Unstriped
from pytest_dm.differential.rule import Rule

if TYPE_CHECKING:
    from hypothesis.strategies import DrawFn

    from pytest_dm.differential.rule import Room

__all__ = ["RULE"]


class _Unstriped(Rule):
    def draw(self, draw: DrawFn, room: Room) -> Unstriped:
        """Draw any, or the last leg of a set that fills a disk."""
        from hypothesis import strategies as st

        if draw(st.booleans()):
            return draw(Unstriped.strategy(room.space()))
        stripes = draw(st.integers(1, 4))
        chunks = [chunk for chunk in range(1, room.length + 1) if room.length % chunk == 0]
        return Unstriped(
            stripes=stripes,
            chunk=draw(st.sampled_from(chunks)),
            index=stripes - 1,
            dev=room.disk(stripes * room.length, seed=50, solid=False),
            offset=0,
        )


RULE = _Unstriped()
