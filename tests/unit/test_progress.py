"""Progress of an exploration in a test: when it is told, and in which words."""

from __future__ import annotations

from dmcore.crash.explore import Progress
from pytest_dm.progress import Meter


def _at(seconds, checked=0, states_left=None, seconds_left=None):
    return Progress(checked + 5, checked + 2, checked, 1, seconds, states_left, seconds_left, "single")


def test_nothing_is_said_in_the_first_seconds_and_then_seldom():
    said = []
    meter = Meter(said.append, "tests/test_x.py::TestY::test_z[1]")
    for tenth in range(300):
        meter(_at(tenth / 10, checked=tenth, states_left=1000 - tenth, seconds_left=30.4))
    assert said == [
        "test_z[1]: 25 states, 22 distinct, 20 checked (10/s), 1 failing; left: 980 states, 30 s",
        "test_z[1]: 125 states, 122 distinct, 120 checked (10/s), 1 failing; left: 880 states, 30 s",
        "test_z[1]: 225 states, 222 distinct, 220 checked (10/s), 1 failing; left: 780 states, 30 s",
    ]


def test_a_budget_that_is_not_there_is_not_named():
    assert str(_at(0.0)) == "5 states, 2 distinct, 0 checked (0/s), 1 failing"
