"""switch: regions that messages send elsewhere; steps that name what is not there, too.

Paths on the same device begin at the same sector: where they were shifted, parts of one request would race for sectors.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from dmcore.targets import Switch
from pytest_dm.differential.rule import Rule
from pytest_dm.differential.steps import Message, Read

if TYPE_CHECKING:
    from collections.abc import Sequence

    from hypothesis.strategies import DrawFn, SearchStrategy

    from dmcore.target import Target
    from pytest_dm.differential.rule import Room
    from pytest_dm.differential.steps import Step

__all__ = ["RULE"]

_ODD = ["set_region_mappings", "set_region_mappings 0", "set_region_mappings R1", "SET_region_mappings 0:0", "nonsense 0:0"]  # fmt: skip


class _Switch(Rule):
    def draw(self, draw: DrawFn, room: Room) -> Switch:
        """Draw one whose paths on the same device begin at the same sector, and that mostly has several regions."""
        from hypothesis import strategies as st

        drawn = draw(Switch.strategy(room.space()))
        first = {path.dev: path.offset for path in reversed(drawn.paths)}
        paths = tuple(replace(path, offset=first[path.dev]) for path in drawn.paths)
        few = st.sampled_from([max(1, room.length // regions) for regions in (8, 5, 3)])
        return replace(drawn, paths=paths, region=draw(st.one_of(few, few, st.just(drawn.region))))

    def scenes(self, target: Target, length: int) -> Sequence[Sequence[Step]]:
        """Repeat two regions up to the last one, and one too far; go on without a number, and behind the last one."""
        assert isinstance(target, Switch)
        regions = target.regions(length)
        read = Read(0, length)
        repeated = f"0:1 1:0 R2,{max(regions - 2, 0):x}"
        steps = (repeated, f"0:0 R1,{regions:x}", "0:0 :1 :0", f"{regions - 1:x}:0 :0")
        return tuple((Message(f"set_region_mappings {words}"), read) for words in steps)

    def messages(self, target: Target, length: int) -> SearchStrategy[str]:
        """Draw steps over the line's regions and one behind them, paths and one too many."""
        from hypothesis import strategies as st

        assert isinstance(target, Switch)
        regions = min(target.regions(length), 64)
        path = st.integers(0, len(target.paths))
        region = st.integers(0, regions)
        step = st.one_of(
            st.builds("{:x}:{:x}".format, region, path),
            st.builds(":{:x}".format, path),
            st.builds("R{:x},{:x}".format, st.integers(0, 4), region),
        )
        mappings = st.lists(step, min_size=1, max_size=4).map(" ".join)
        return st.one_of(mappings.map("set_region_mappings {}".format), st.sampled_from(_ODD))


RULE = _Switch()
