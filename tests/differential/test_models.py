"""Every modelled target against the kernel: alone, and in stacks of up to four layers."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dmcore.model.registry import modelled
from dmcore.registry import find
from pytest_dm.differential.rule import ruled
from pytest_dm.strategies import layers, scripts, setups, stacks

WAITING: set[str] = set()
"""Models whose rules are still to be written; tests of their own hold them against the kernel."""
READY = sorted(set(modelled()) & set(ruled()))


def test_every_modelled_target_has_a_rule():
    assert set(modelled()) - set(ruled()) == WAITING


@pytest.mark.dm
@pytest.mark.parametrize("kind", READY)
def test_alone(dm_pair, kind):
    features = dm_pair.runtime.features(find(kind))

    @dm_pair.settings()
    @given(st.data())
    def check(data):
        setup = data.draw(setups(kind, features=features))
        dm_pair.run(setup, data.draw(scripts(setup)))

    check()


@pytest.mark.dm
@pytest.mark.parametrize("kind", layers())
def test_in_stacks(dm_pair, kind):
    """This one somewhere in them, the others around it."""
    features = dm_pair.runtime.features(*map(find, layers()))

    @dm_pair.settings(0.25)
    @given(st.data())
    def check(data):
        setup = data.draw(stacks([kind, *layers()], features=features))
        dm_pair.run(setup, data.draw(scripts(setup)))

    check()
