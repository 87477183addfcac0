"""Exploration of logs whose violating states can be counted by hand; what a checker may do; the budget."""

from __future__ import annotations

import os
import signal
import time

import pytest
from log_maker import KernelLog, LogMaker, judge_slots, two_slots

from dmcore.crash.checkers import CrashState, NoFileSystem, OracleFailed, Problem
from dmcore.crash.epochs import timeline
from dmcore.crash.explore import explore, replay
from dmcore.crash.log import CrashLog
from dmcore.crash.oracles import CallableOracle
from dmcore.crash.report import to_json
from dmcore.crash.states import State, parse_state
from dmcore.errors import SpecError

BUGS = ["early-ack", "no-flush", "pointer-first"]


def oracle(*, torn=False):
    def judge(state: CrashState):
        said = judge_slots(
            state.image.read_bytes(), len(state.acknowledged), sectors=1 + torn, checksum=not torn
        )
        return said or None

    return CallableOracle(judge)


def look(tmp_path, maker, judge, **options):
    options = {"workers": 0, **options}
    with CrashLog(maker.save(tmp_path / "log"), size=1 << 18) as log:
        found = explore(log, oracle=judge, **options)
        return found, to_json(log, found)


def whole(found):
    return [finding for finding in found.findings if not finding.torn]


@pytest.mark.parametrize("seed", range(12))
def test_a_correct_program_is_never_accused(tmp_path, seed):
    for options in ({}, {"max_states": 30}, {"torn": 1024}, {"level": "L0"}):
        found, _ = look(tmp_path, two_slots(9), oracle(), seed=seed, **options)
        assert found.findings == found.set_apart == found.errors == []
        assert found.checked


@pytest.mark.parametrize("bug", BUGS)
@pytest.mark.parametrize("workers", [0, 2])
def test_each_bug_in_as_many_states_as_there_are_updates(tmp_path, bug, workers):
    found, report = look(tmp_path, two_slots(7, bug), oracle(), workers=workers)
    # an early acknowledgement is wrong both before and after the value is there
    assert len(whole(found)) == report["violating"] == (14 if bug == "early-ack" else 7)
    assert {finding.problem.kind for finding in found.findings} == {
        "durability" if bug == "early-ack" else "integrity"
    }
    assert found.exhaustive
    assert report["violations"][0]["id"] == str(found.findings[0].state)


@pytest.mark.parametrize("bug", [None, *BUGS])
def test_what_one_seed_found_sound_is_not_judged_with_the_next(tmp_path, bug):
    """And what fails, fails with each."""
    alone, seen, known, judged = set(), set(), None, []
    asked = oracle()

    def judge(state):
        judged.append(state.id)
        return asked(state)

    maker = two_slots(40, *([bug] if bug else []))
    for seed in range(4):
        by_itself, _ = look(tmp_path, maker, oracle(), seed=seed, max_states=60)
        known, _ = look(tmp_path, maker, CallableOracle(judge), seed=seed, max_states=60, known=known)
        assert known.findings == by_itself.findings
        assert bool(known.findings) == bool(bug)
        alone |= by_itself.sound.keys()
        assert known.sound.keys() == alone
        assert known.checked == len(known.sound.keys() - seen) + len(known.findings)
        assert known.checked <= by_itself.checked
        seen = set(known.sound)
    assert bug or len(judged) == len(seen) < 4 * by_itself.checked


def test_what_was_sound_with_fewer_marks_is_judged_again(tmp_path):
    """The same bytes, first before an acknowledgement, then behind it."""
    maker = LogMaker()
    maker.write(0, b"a" * 512)
    maker.flush()
    known, _ = look(tmp_path, maker, CallableOracle(lambda state: not state.acknowledged))
    assert known.findings == []
    maker.mark("done")
    found, _ = look(tmp_path, maker, CallableOracle(lambda state: not state.acknowledged), known=known)
    assert [finding.acknowledged for finding in found.findings] == [("done",)]


@pytest.mark.parametrize("updates", [6, 10, 11])
def test_no_flush_at_all(tmp_path, updates):
    """The FUA writes in order, each without its value; then all of them with any of the values but the last."""
    found, report = look(tmp_path, two_slots(updates, "never-flush"), oracle(), torn=0, max_states=20_000)
    assert report["violating"] == updates - 1 + 2 ** (updates - 1)
    assert report["generated"] == updates + 2**updates
    assert found.exhaustive
    assert not found.truncated
    (proof,) = found.proofs
    minimal = proof.minimal
    assert minimal.done
    assert f"put-{minimal.state.epoch}" in str(proof.words)
    assert len(minimal.missing) <= 1


def test_a_torn_pointer(tmp_path):
    found, report = look(tmp_path, two_slots(6, "torn"), oracle(torn=True))
    assert report["violating"] == 0
    assert report["violating_torn"] == len(found.findings) == 6
    assert all(finding.torn for finding in found.findings)
    assert {str(finding.state).rpartition(".")[2] for finding in found.findings} == {"f1"}
    (proof,) = found.proofs
    assert "only 1 of its 2 sectors of 512 bytes" in "\n".join(proof.words)
    for options in ({"torn": 0}, {"torn": 1024}):
        found, _ = look(tmp_path, two_slots(6, "torn"), oracle(torn=True), **options)
        assert found.findings == []


def test_a_lying_disk_is_found_only_when_asked_for(tmp_path):
    found, _ = look(tmp_path, two_slots(6), oracle(), level="L3", torn=0)
    kinds = {finding.problem.kind for finding in found.findings}
    assert kinds == {"durability", "integrity"}
    assert len(found.proofs) == 2


@pytest.mark.parametrize("updates", [40])
def test_the_smallest_proof(tmp_path, updates):
    """Many writes on their way, two of them needed together: one lost, of which another one tells."""
    maker = KernelLog()
    maker.write(0, b"\1" * 512)
    maker.flush()
    for number in range(updates):
        maker.write(4096 * (number + 1), bytes([number + 1]) * 4096)
    maker.mark("all")
    maker.flush()
    maker.end()

    def judge(state):
        data = state.image.read_bytes()
        have = {number for number in range(updates) if data[4096 * (number + 1)] == number + 1}
        assert not (31 in have and 7 not in have), "integrity: 31 without 7"

    found, report = look(tmp_path, maker, CallableOracle(judge), max_states=1500, torn=0)
    (proof,) = found.proofs
    assert proof.minimal.missing == (7,)
    assert proof.minimal.problem == Problem("integrity", "integrity: 31 without 7")
    assert proof.minimal.checks < 60
    text = "\n".join(proof.words)
    assert "lost: write of 4096 bytes at 32768 (entry 10)" in text
    assert "there: the other 39" in text
    assert report["minimal"][0]["missing"][0]["entry"] == 10
    assert report["minimal"][0]["smallest"]


def test_a_proof_by_what_is_there(tmp_path):
    maker = KernelLog()
    for number in range(12):
        maker.write(4096 * number, bytes([number + 1]) * 4096)
    maker.end()

    def judge(state):
        data = state.image.read_bytes()
        have = [number for number in range(12) if data[4096 * number] == number + 1]
        assert 5 not in have or len(have) > 2, "integrity 5 nearly alone"

    found, _ = look(tmp_path, maker, CallableOracle(judge), torn=0)
    (proof,) = found.proofs
    assert proof.minimal.present == (5,)
    assert "there: write of 4096 bytes at 20480 (entry 5)" in proof.words


def test_torn_writes_are_made_whole_where_that_fails_too(tmp_path):
    maker = KernelLog()
    maker.write(0, b"a" * 4096)
    maker.write(8192, b"b" * 4096)
    maker.end()

    def judge(state):
        data = state.image.read_bytes()
        return "integrity: b" if state.torn and data[8192 + 4095] else None

    found, _ = look(tmp_path, maker, CallableOracle(judge))
    assert found.findings
    assert all(finding.torn for finding in found.findings)
    assert {proof.minimal.problem.kind for proof in found.proofs} == {"integrity"}


def test_a_mark_acknowledges_what_is_durable_and_a_start_does_not(tmp_path):
    maker = KernelLog()
    maker.mark("start:one")
    maker.write(0, b"1" * 512)
    maker.flush()
    maker.mark("done:one")
    maker.mark("start:two")
    maker.mark("pytest-dm-barrier-9")
    maker.write(512, b"2" * 512)
    maker.flush()
    maker.end()
    told = {}

    def judge(state):
        told[state.image.read_bytes()[:1024]] = (state.acknowledged, state.started)

    look(tmp_path, maker, CallableOracle(judge))
    zero = bytes(512)
    assert told == {
        zero + zero: ((), ("one",)),
        b"1" * 512 + zero: (("one",), ("two",)),
        b"1" * 512 + b"2" * 512: (("one",), ("two",)),
    }


def test_a_state_is_judged_with_the_most_that_was_acknowledged(tmp_path):
    """The same bytes are left by cuts at several times: once with each mark. The last counts."""
    maker = KernelLog()
    maker.fua(0, b"1" * 512)
    maker.mark("a")
    maker.flush()
    maker.mark("b")
    maker.flush()
    maker.mark("c")
    maker.end()
    told = []
    look(
        tmp_path,
        maker,
        CallableOracle(lambda state: told.append((state.image.read_bytes()[0], state.acknowledged))),
    )
    assert told == [(0, ()), (0x31, ("a", "b", "c"))]


@pytest.mark.parametrize(
    ("judge", "kind", "reason"),
    [
        (lambda _: False, "oracle", "the oracle said no"),
        (lambda _: "Durability: gone\nmore", "durability", "Durability: gone"),
        (lambda _: Problem("mine", "so"), "mine", "so"),
        (lambda _: 1 // 0, "ZeroDivisionError", "ZeroDivisionError: integer division or modulo by zero"),
        (lambda _: time.sleep(30), "timeout", "the oracle took longer than 0.3 s"),
    ],
)
def test_what_an_oracle_says(tmp_path, judge, kind, reason):
    maker = LogMaker()
    maker.write(0, b"x" * 512)
    found, _ = look(tmp_path, maker, CallableOracle(judge, timeout=0.3), minimise=False)
    assert {finding.problem for finding in found.findings} == {Problem(kind, reason)}


@pytest.mark.parametrize("workers", [0, 1])
def test_an_oracle_that_fails_is_no_finding(tmp_path, workers):
    def judge(state):
        if state.image.read_bytes()[0]:
            raise OracleFailed("no tool", state.id)

    maker = LogMaker()
    maker.write(0, b"x" * 512)
    found, report = look(tmp_path, maker, CallableOracle(judge), workers=workers)
    assert found.findings == []
    assert found.errors == ["the oracle failed at e0:1: no tool"]
    assert report["error"] == found.errors[0]
    found, _ = look(tmp_path, maker, CallableOracle(lambda _: 7), workers=workers)
    assert len(found.errors) == 2
    assert "it returned 7" in found.errors[0]


def test_an_oracle_that_kills_its_process_costs_the_states_it_dies_of(tmp_path):
    def judge(state):
        if state.image.read_bytes()[4096 * 3]:
            os.kill(os.getpid(), signal.SIGKILL)

    maker = LogMaker()
    for number in range(5):
        maker.write(4096 * number, b"x" * 4096)
    found, _ = look(tmp_path, maker, CallableOracle(judge), workers=2, torn=0)
    assert len(found.findings) == 16
    assert {finding.problem for finding in found.findings} == {
        Problem("crash", "the process that judged it died: signal 9")
    }
    assert found.checked == 32
    assert len(found.proofs) == 1
    assert any("died" in warning for warning in found.warnings)


def test_an_oracle_may_ruin_the_image(tmp_path):
    def judge(state):
        data = state.image.read_bytes()
        said = judge_slots(data, len(state.acknowledged))
        with state.image.open("r+b") as file:
            file.write(os.urandom(8192))
            file.truncate(9000)
        return said or None

    found, report = look(tmp_path, two_slots(5), CallableOracle(judge))
    assert found.findings == []
    found, report = look(tmp_path, two_slots(5, "no-flush"), CallableOracle(judge))
    assert report["violating"] == 5


def test_nothing_stays_behind(tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path / "t"))
    monkeypatch.setattr("tempfile.tempdir", None)
    (tmp_path / "t").mkdir()
    look(tmp_path, two_slots(4, "no-flush"), oracle(), workers=2)
    assert list((tmp_path / "t").iterdir()) == []
    with pytest.raises(KeyboardInterrupt):
        look(tmp_path, two_slots(4), oracle(), workers=2, progress=interrupt)
    assert list((tmp_path / "t").iterdir()) == []


def interrupt(_progress):
    raise KeyboardInterrupt


def test_the_budget_of_time(tmp_path):
    def judge(_state):
        time.sleep(0.02)

    began = time.monotonic()
    seen = []
    found, _ = look(
        tmp_path, two_slots(11, "never-flush"), CallableOracle(judge), max_seconds=1, progress=seen.append
    )
    assert time.monotonic() - began < 10
    assert found.truncated
    assert not found.exhaustive
    assert "stopped after 1 s" in found.warnings[0]
    assert found.checked < 100
    assert seen[-1].checked == found.checked
    assert seen[-1].seconds_left == 0
    assert seen[-1].rate > 0


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"max_states": 0}, "max_states"),
        ({"torn": 256}, "torn"),
        ({"torn": 768}, "torn"),
        ({"level": "x"}, "level"),
        ({"workers": -1}, "workers"),
        ({"max_seconds": 0}, "max_seconds"),
        ({"max_seconds": float("nan")}, "max_seconds"),
    ],
)
def test_values_that_mean_nothing(tmp_path, options, field):
    with pytest.raises(SpecError, match=f"^{field}="):
        look(tmp_path, two_slots(2), oracle(), **options)


def test_no_torn_states_below_the_log_sector(tmp_path):
    maker = LogMaker(4096)
    maker.write(0, b"x" * 8192)
    found, _ = look(tmp_path, maker, oracle(), minimise=False)
    assert found.torn_size == 4096
    with pytest.raises(SpecError, match="torn=512"):
        look(tmp_path, maker, oracle(), torn=512)


def test_order_that_the_log_leaves_open_accuses_nobody(tmp_path):
    """The program writes a draft of its header, then the header by FUA. The kernel logs the draft last."""
    maker = LogMaker()
    maker.fua(0, b"H" * 512)
    maker.mark("written")
    maker.write(0, b"d" * 512)
    maker.flush()
    maker.end()

    def judge(state):
        first = state.image.read_bytes()[:1]
        return "durability: header lost" if state.acknowledged and first != b"H" else None

    found, report = look(tmp_path, maker, CallableOracle(judge))
    assert found.findings == []
    assert "the log does not say which came last" in report["warnings"][0]


def test_both_orders_failing_is_a_finding(tmp_path):
    maker = LogMaker()
    maker.fua(0, b"H" * 512)
    maker.mark("written")
    maker.write(0, b"d" * 512)
    maker.flush()
    maker.end()
    found, report = look(
        tmp_path, maker, CallableOracle(lambda state: "integrity" if state.acknowledged else None)
    )
    assert report["violating"] == 2
    assert found.warnings == []


def test_one_state_alone(tmp_path):
    with CrashLog(two_slots(3, "no-flush").save(tmp_path / "log"), size=1 << 17) as log:
        found = explore(log, oracle=oracle(), workers=0)
        line = timeline(log)
        for finding in found.findings:
            state = parse_state(str(finding.state), line)
            proof = replay(log, line, state, oracle=oracle(), torn_size=512)
            assert proof is not None
            assert proof.minimal.problem == finding.problem
        assert replay(log, line, State(0, 0), oracle=oracle(), torn_size=512) is None


def test_a_checker_of_ones_own(tmp_path):
    class Checker:
        writes = False

        def check(self, state):
            return Problem("mine", state.id) if state.image.read_bytes()[0] else None

    maker = LogMaker()
    maker.write(0, b"x" * 512)
    with CrashLog(maker.save(tmp_path / "log")) as log:
        found = explore(log, checker=Checker, workers=1)
    assert [finding.problem for finding in found.findings] == [Problem("mine", "e0:1")]
    assert NoFileSystem().name == "none"
