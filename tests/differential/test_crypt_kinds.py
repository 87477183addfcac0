"""Every kind of IV, with small and large numbers of sectors in one table."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dmcore.stack import Stack
from dmcore.table import Line, Table
from dmcore.targets import Crypt
from pytest_dm.differential.rule import Room
from pytest_dm.differential.rules.crypt import KINDS, OFFSETS, RULE
from pytest_dm.differential.setup import Disk, Setup
from pytest_dm.differential.steps import Read, Write

pytestmark = pytest.mark.dm
LENGTH = 24


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.cipher)
def test_every_sector_is_encrypted_alike(dm_pair, kind):
    features = dm_pair.runtime.features(Crypt)

    @dm_pair.settings(0.1)
    @given(st.data())
    def check(data):
        disks: dict[str, Disk] = {}
        lines: list[Line] = []
        for number, offset in enumerate(OFFSETS):
            room = Room(data.draw, LENGTH, features, disks)
            lines.append(Line(number * LENGTH, LENGTH, RULE.of(data.draw, room, kind, offset)))
        setup = Setup(
            Stack({"top": Table(lines)}),
            {ref.name: disks[ref.name] for line in lines for ref in line.target.refs()},
        )
        whole = len(lines) * LENGTH
        dm_pair.run(setup, [Read(0, whole), Write(0, whole), Read(0, whole)])

    check()
