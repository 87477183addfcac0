"""Mirrors that copy, and logs on disks: scripts without failures, which the rule of mirror leaves out."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_dm.differential.setup import Disk, Setup
from pytest_dm.differential.steps import Settle
from pytest_dm.strategies import scripts

pytestmark = pytest.mark.dm
LENGTH = 100
DISKS = {"a": LENGTH, "b": LENGTH + 8, "c": LENGTH, "log": Disk(8, seed=7)}
LEGS = "3 a 0 b 8 c 0"


def test_scripts_without_failures(dm_pair):
    @dm_pair.settings(0.3)
    @given(st.data())
    def check(data):
        log = data.draw(
            st.sampled_from(["core 1 8", "core 2 2 nosync", "disk 2 log 8", "disk 3 log 2 nosync"])
        )
        setup = Setup.of(f"top: 0 {LENGTH} mirror {log} {LEGS}", DISKS)
        dm_pair.run(setup, [Settle(), *data.draw(scripts(setup, faults=False))])

    check()
