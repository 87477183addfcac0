"""thin-pool: its messages, over metadata that the kernel formats or the model has made; its own device is its data device."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pytest_dm.differential.rules._pools import BLOCK, PoolRule, draw_pool

if TYPE_CHECKING:
    from hypothesis.strategies import DrawFn

    from dmcore.targets import ThinPool
    from pytest_dm.differential.rule import Room

__all__ = ["RULE"]


class _ThinPool(PoolRule):
    lengths = (BLOCK, 4 * BLOCK)

    def draw(self, draw: DrawFn, room: Room) -> ThinPool:
        """Draw one with or without a device."""
        return draw_pool(draw, room, room.length // BLOCK, 1)


RULE = _ThinPool()
