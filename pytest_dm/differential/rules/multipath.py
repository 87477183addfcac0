"""multipath: paths to disks that differ, so that data tell which path was taken."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dmcore.targets import Multipath
from dmcore.targets.multipath import Group, Path, QueueMode, Selector
from pytest_dm.differential.rule import Room, Rule
from pytest_dm.differential.steps import Message, Read, Status

if TYPE_CHECKING:
    from collections.abc import Sequence

    from hypothesis.strategies import DrawFn, SearchStrategy

    from dmcore.target import Target
    from pytest_dm.differential.steps import Step

__all__ = ["RULE"]


class _Multipath(Rule):
    layer = False  # several requests under way choose otherwise than one after the other

    def draw(self, draw: DrawFn, room: Room) -> Multipath:
        """Draw groups of one path.

        With more it counts how often the kernel tries: BLKZEROOUT first asks the disk for zeros, which a file below it may
        not have, and then writes them.
        """
        return self.groups(draw, room, most=1)

    def groups(self, draw: DrawFn, room: Room, *, most: int) -> Multipath:
        """Draw groups of up to `most` paths; none that waits without one, since that is for ever, none with a clock."""
        from hypothesis import strategies as st

        selectors = [Selector.ROUND_ROBIN, Selector.QUEUE_LENGTH, Selector.SERVICE_TIME]
        if f"multipath.{Selector.IO_AFFINITY}" in room.features:
            selectors.append(Selector.IO_AFFINITY)

        def group() -> Group:
            selector = draw(st.sampled_from(selectors))
            if selector is Selector.IO_AFFINITY:
                return Group((Path(room.data(room.length), cpus=1),), selector)
            throughput = st.integers(0, 2) if selector is Selector.SERVICE_TIME else st.none()
            count = draw(st.integers(1, most))
            return Group(
                tuple(Path(room.data(room.length), 1, draw(throughput)) for _ in range(count)), selector
            )

        groups = tuple(group() for _ in range(draw(st.integers(1, 3))))
        return Multipath(
            groups=groups,
            initial=draw(st.none() | st.integers(1, len(groups) + 1)),
            pg_init_retries=draw(st.none() | st.just(3)),
            queue_mode=QueueMode.BIO,
        )

    def scenes(self, target: Target, length: int) -> Sequence[Sequence[Step]]:
        """Disable the first group after it was used, and before another one is chosen."""
        del target, length
        disable, read = Message("disable_group 1"), Read(0, 1)
        return (read, disable, read, Status()), (disable, Message("switch_group 2"), Status())

    def discard_unit(self, target: Target) -> int:
        """Return the granularity of the disks in sectors: a discard from between is two requests, both under way at once.

        Where the first of them fails a path, the second has already chosen it or not, as it happens.
        """
        del target
        return 8

    def messages(self, target: Target, length: int) -> SearchStrategy[str]:
        """Draw what is about groups; devices have other numbers each time."""
        from hypothesis import strategies as st

        del target, length
        names = ["switch_group", "disable_group", "Enable_Group"]
        about = st.builds("{} {}".format, st.sampled_from(names), st.integers(0, 4))
        return about | st.sampled_from(["fail_if_no_path", "nonsense", "fail_path", "disable_group x"])


RULE = _Multipath()
