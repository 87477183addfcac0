"""switch: regions that messages send elsewhere; steps that name what is not there, too.

Paths on the same device begin at the same sector: where they were shifted, parts of one request would race for sectors.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from dmcore.targets import Switch
from pytest_dm.differential.rule import Rule

if TYPE_CHECKING:
    from hypothesis.strategies import DrawFn, SearchStrategy

    from dmcore.target import Target
    from pytest_dm.differential.rule import Room

__all__ = ["RULE"]

_ODD = ["set_region_mappings", "set_region_mappings 0", "set_region_mappings R1", "SET_region_mappings 0:0", "nonsense 0:0"]  # fmt: skip


class _Switch(Rule):
    def draw(self, draw: DrawFn, room: Room) -> Switch:
        """Draw one whose paths on the same device begin at the same sector."""
        drawn = draw(Switch.strategy(room.space()))
        first = {path.dev: path.offset for path in reversed(drawn.paths)}
        return replace(drawn, paths=tuple(replace(path, offset=first[path.dev]) for path in drawn.paths))

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
