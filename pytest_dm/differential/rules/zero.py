"""zero: nothing to draw and nothing below."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dmcore.targets import Zero
from pytest_dm.differential.rule import Room, Rule

if TYPE_CHECKING:
    from hypothesis.strategies import DrawFn

__all__ = ["RULE"]


class _Zero(Rule):
    def draw(self, draw: DrawFn, room: Room) -> Zero:
        """Take no device."""
        del draw, room
        return Zero()


RULE = _Zero()
