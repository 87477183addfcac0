"""State machines over kernel and models: they run, and find a model that is wrong."""

from __future__ import annotations

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import rule

from dmcore.model.targets import dust
from pytest_dm.differential.divergence import Divergence
from pytest_dm.differential.machine import Machine
from pytest_dm.differential.setup import Setup
from pytest_dm.differential.steps import Message, Read, Write
from pytest_dm.strategies import setups

pytestmark = pytest.mark.dm


class _Dust(Machine):
    def stack(self):
        return Setup.of("top: 0 8 dust data 0 512", {"data": 8})

    @rule(block=st.integers(0, 3))
    def lose(self, block):
        self.do(Message("enable"))
        self.do(Message(f"addbadblock {block}"))

    @rule(block=st.integers(0, 3))
    def lose_and_mend(self, block):
        self.lose(block)
        self.do(Write(block, 1))
        self.do(Read(block, 1))


class _Any(Machine):
    def stack(self):
        return st.sampled_from(["striped", "switch", "zero"]).flatmap(setups)


@pytest.mark.parametrize("machine", [_Dust, _Any])
def test_runs(dm_pair, machine):
    dm_pair.examples = min(dm_pair.examples, 5)
    dm_pair.explore(machine)
    assert dm_pair.tally.compared


def test_finds_a_model_that_does_not_heal(dm_pair, monkeypatch):
    monkeypatch.setattr(dust.MODEL, "_check_write", lambda self, lower: None)
    with pytest.raises(Divergence) as caught:
        dm_pair.explore(_Dust)
    assert len(caught.value.script) <= 8
