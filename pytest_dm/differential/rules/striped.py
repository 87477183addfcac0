"""striped: as its own strategy draws it, but for legs that share sectors: parts of one request race there."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from dmcore.targets import Striped
from pytest_dm.differential.rule import Rule
from pytest_dm.differential.steps import Discard, Fail, Heal, Read, Status, Write, ZeroOut

if TYPE_CHECKING:
    from collections.abc import Sequence

    from hypothesis.strategies import DrawFn

    from dmcore.target import Target
    from pytest_dm.differential.rule import Room
    from pytest_dm.differential.steps import Step

__all__ = ["RULE"]


class _Striped(Rule):
    lengths = (7, 24, 64, 96)

    def draw(self, draw: DrawFn, room: Room) -> Striped:
        """Draw one whose legs lie one behind another, from the same sector on, where they are on the same device."""
        space = room.space()
        drawn = draw(Striped.strategy(space))
        share = space.length // len(drawn.legs)
        spare = min(space.refs[leg.dev] for leg in drawn.legs) - space.length
        first = drawn.legs[0].offset % (spare + 1)
        apart = (replace(leg, offset=first + number * share) for number, leg in enumerate(drawn.legs))
        return replace(drawn, legs=tuple(apart))

    def scenes(self, target: Target, length: int) -> Sequence[Sequence[Step]]:
        """Zero and discard all legs at once; read one leg while it fails."""
        assert isinstance(target, Striped)
        disk, read = target.legs[0].dev.name, Read(0, length)
        return (
            (ZeroOut(0, length), read, Write(0, length), Discard(0, length), read),
            (Fail(disk, 0, 1 << 16), Read(0, 1), Status(), Heal(disk)),
        )


RULE = _Striped()
