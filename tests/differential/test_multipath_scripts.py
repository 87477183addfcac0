"""Multipath with several paths to a group: which one is taken."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dmcore.stack import Stack
from dmcore.table import Line, Table
from dmcore.targets import Multipath
from pytest_dm.differential.rule import Room
from pytest_dm.differential.rules.multipath import RULE
from pytest_dm.differential.setup import Disk, Setup
from pytest_dm.differential.steps import ZeroOut
from pytest_dm.strategies import scripts

pytestmark = pytest.mark.dm
LENGTH = 64


def test_the_same_paths_are_taken(dm_pair):
    """Without zeros: how often the kernel tries those depends on the file below."""
    features = dm_pair.runtime.features(Multipath)

    @dm_pair.settings(0.5)
    @given(st.data())
    def check(data):
        disks: dict[str, Disk] = {}

        def target(draw):
            return RULE.groups(draw, Room(draw, LENGTH, features, disks), most=3)

        line = Line(0, LENGTH, data.draw(st.composite(target)()))
        setup = Setup(Stack({"top": Table([line])}), disks)
        script = data.draw(scripts(setup))
        dm_pair.run(setup, [step for step in script if not isinstance(step, ZeroOut)])

    check()
