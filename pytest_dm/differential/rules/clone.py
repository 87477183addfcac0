"""clone: without hydration in the background; a script says when. Numbers of metadata blocks are the model's own."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dmcore.targets import Clone
from pytest_dm.differential.rule import Room, Rule
from pytest_dm.differential.steps import Message, Status

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from hypothesis.strategies import DrawFn, SearchStrategy

    from dmcore.target import Target
    from pytest_dm.differential.setup import Disk
    from pytest_dm.differential.steps import Step

__all__ = ["RULE"]


class _Clone(Rule):
    layer = False  # its regions come over in a thread, whatever the layers below do then
    lengths = (24, 64, 100)
    fails = False  # a region is copied by a thread: what a failing sector leaves of it is chance

    def draw(self, draw: DrawFn, room: Room) -> Clone:
        """Draw the size of regions."""
        from hypothesis import strategies as st

        return Clone(
            metadata=room.disk(512),
            dest=room.disk(room.length, seed=90),
            source=room.data(room.length),
            region_sectors=draw(st.sampled_from([8, 8, 16])),
            no_hydration=True,
            no_discard_passdown=draw(st.booleans()),
            hydration_threshold=draw(st.sampled_from([None, 1, 5])),
        )

    def scenes(self, target: Target, length: int) -> Sequence[Sequence[Step]]:
        """Set both numbers, each to one that it had not."""
        del target, length
        return ((Message("hydration_threshold 3"), Message("hydration_batch_size 2"), Status()),)

    def messages(self, target: Target, length: int) -> SearchStrategy[str]:
        """Draw what does not begin hydration."""
        from hypothesis import strategies as st

        del target, length
        return st.sampled_from(
            [
                "disable_hydration",
                "hydration_threshold 3",
                "hydration_batch_size 2",
                "x",
                "hydration_threshold",
            ]
        )

    def hidden(self, target: Target, disks: dict[str, Disk], status: str) -> Iterable[tuple[str, int, int]]:
        """Hide the metadata: blocks have other numbers (images are exchanged in tests of their own)."""
        del status
        assert isinstance(target, Clone)
        yield target.metadata.name, 0, disks[target.metadata.name].sectors * 512


RULE = _Clone()
