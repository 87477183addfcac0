"""Every modelled target against the kernel: alone."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dmcore.model.registry import modelled
from dmcore.registry import find
from pytest_dm.differential.rule import ruled
from pytest_dm.strategies import scripts, setups

WAITING = {
    "cache", "crypt", "era", "integrity", "snapshot", "snapshot-merge", "snapshot-origin", "switch", "thin",
    "thin-pool", "unstriped", "verity",
}  # fmt: skip
"""Models whose rules are still to be written; tests of their own hold them against the kernel."""
READY = sorted(set(modelled()) & set(ruled()))


def test_every_modelled_target_has_a_rule():
    assert set(modelled()) - set(ruled()) == WAITING


@pytest.mark.dm
@pytest.mark.parametrize("kind", READY)
def test_alone(dm_pair, kind):
    features = dm_pair.runtime.features(find(kind))

    @dm_pair.settings(0.5)
    @given(st.data())
    def check(data):
        setup = data.draw(setups(kind, features=features))
        dm_pair.run(setup, data.draw(scripts(setup)))

    check()
