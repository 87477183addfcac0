"""crash_states: what it draws, and what it shrinks to."""

from __future__ import annotations

import pytest
from hypothesis import find, given, settings
from hypothesis import strategies as st
from log_maker import judge_slots, two_slots

from dmcore.crash.checkers import NoFileSystem, Pipeline
from dmcore.crash.epochs import timeline
from dmcore.crash.log import CrashLog
from dmcore.crash.oracles import CallableOracle
from dmcore.crash.states import State, parse_state
from dmcore.crash.tester import Tester
from dmcore.errors import SpecError
from pytest_dm.strategies_crash import crash_states


@pytest.fixture(scope="module")
def opened(tmp_path_factory):
    def open_(bug):
        path = tmp_path_factory.mktemp("log") / "log"
        return CrashLog(two_slots(5, bug).save(path), size=1 << 17)

    return open_


def judge(state):
    return judge_slots(state.image.read_bytes(), len(state.acknowledged)) or None


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_every_state_is_one_of_the_log(opened, data):
    with opened("never-flush") as log:
        state = data.draw(crash_states(log))
        assert parse_state(str(state), timeline(log)) == state


def test_a_bug_shrinks_to_the_earliest_state_with_the_least_missing(opened, tmp_path):
    with opened("no-flush") as log:
        line = timeline(log)
        pipeline = Pipeline(NoFileSystem(), CallableOracle(judge))
        with Tester(log, line, pipeline, tmp_path, torn_size=512) as tester:
            found = find(crash_states(log), lambda state: tester.test(state) is not None)
        assert found == State(0, 1)  # the pointer is there, the value is not


def test_correct_programs_hold(opened, tmp_path):
    with opened(None) as log:
        pipeline = Pipeline(NoFileSystem(), CallableOracle(judge))
        with Tester(log, timeline(log), pipeline, tmp_path, torn_size=512) as tester:

            @given(crash_states(log))
            @settings(max_examples=100, deadline=None)
            def holds(state):
                assert tester.test(state) is None

            holds()


def test_no_torn_states_when_not_asked_for(opened):
    with opened(None) as log:

        @given(crash_states(log, torn=0))
        @settings(max_examples=50, deadline=None)
        def whole(state):
            assert not state.torn

        whole()
        for options in ({"torn": 256}, {"first": 999}):
            with pytest.raises(SpecError):
                crash_states(log, **options)
