"""striped: as its own strategy draws it, but for legs that share sectors: parts of one request race there."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from dmcore.targets import Striped
from pytest_dm.differential.rule import Rule

if TYPE_CHECKING:
    from hypothesis.strategies import DrawFn

    from pytest_dm.differential.rule import Room

__all__ = ["RULE"]


class _Striped(Rule):
    def draw(self, draw: DrawFn, room: Room) -> Striped:
        """Draw one whose legs lie one behind another, from the same sector on, where they are on the same device."""
        space = room.space()
        drawn = draw(Striped.strategy(space))
        share = space.length // len(drawn.legs)
        spare = min(space.refs[leg.dev] for leg in drawn.legs) - space.length
        first = drawn.legs[0].offset % (spare + 1)
        apart = (replace(leg, offset=first + number * share) for number, leg in enumerate(drawn.legs))
        return replace(drawn, legs=tuple(apart))


RULE = _Striped()
