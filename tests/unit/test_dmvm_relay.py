"""The line's language: frames cut anywhere, lanes, jobs, marks; and the guest's own copy of the codec."""

from __future__ import annotations

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dmcore.errors import AbiError, SpecError
from dmvm import guest_init
from dmvm.machine import visible_paths
from dmvm.relay import PIECE, Decoder, Job, Marks, Outbox, Outcome, encode, pieces

FROM_GUEST = st.tuples(st.sampled_from([b"R", b"A", b"L", b"O", b"E", b"T", b"X"]), st.binary(max_size=5000))
TO_GUEST = st.tuples(st.sampled_from([b"J", b"G", b"D", b"C", b"K", b"W", b"P"]), st.binary(max_size=PIECE))


def cut(data: bytes, sizes: list[int]) -> list[bytes]:
    parts = []
    while data:
        size = sizes.pop(0) if sizes else len(data)
        parts.append(data[:size])
        data = data[size:]
    return parts


@given(st.lists(FROM_GUEST, max_size=8), st.lists(st.integers(1, 3000)))
def test_frames_of_the_guest_arrive_however_cut(frames: list[tuple[bytes, bytes]], sizes: list[int]) -> None:
    wire = b"".join(guest_init.encode(kind, payload) for kind, payload in frames)
    decoder = Decoder()
    assert [frame for part in cut(wire, sizes) for frame in decoder.feed(part)] == frames


@given(st.lists(TO_GUEST, max_size=8), st.lists(st.integers(1, 3000)))
def test_frames_of_the_host_arrive_however_cut(frames: list[tuple[bytes, bytes]], sizes: list[int]) -> None:
    wire = b"".join(encode(kind, payload) for kind, payload in frames)
    decoder = guest_init.Decoder()
    assert [frame for part in cut(wire, sizes) for frame in decoder.feed(part)] == frames


@pytest.mark.parametrize("wire", [b"login: ", b"Z\0\0\0\0", b"O\x7f\xff\xff\xff"])
def test_what_is_no_frame_is_refused(wire: bytes) -> None:
    with pytest.raises(AbiError, match="no frame"):
        Decoder().feed(wire)


@given(st.binary(max_size=3 * PIECE + 7))
def test_pieces_are_all_there_and_small(data: bytes) -> None:
    cuts = list(pieces(data))
    assert b"".join(cuts) == data
    assert all(0 < len(piece) <= PIECE for piece in cuts)


@given(st.lists(st.one_of(TO_GUEST, st.none()), max_size=40))
def test_unanswered_bytes_stay_below_what_a_terminal_holds(steps: list[tuple[bytes, bytes] | None]) -> None:
    outbox = Outbox()
    decoder = guest_init.Decoder()
    put: list[bytes] = []
    got: list[bytes] = []
    unanswered: list[tuple[bytes, int]] = []
    for step in [*steps, *[None] * 50]:
        if step is None and unanswered:
            outbox.answered(unanswered.pop(0)[0])
        elif step is not None:
            outbox.put(*step)
            put.append(step[0])
        wire = outbox.take()
        for kind, payload in decoder.feed(wire):
            got.append(kind)
            unanswered.append((kind, 5 + len(payload)))
        assert sum(size for _, size in unanswered if _ in b"JGDC") <= PIECE + 5
        assert len(unanswered) <= 2
    assert sorted(got) == sorted(put)
    assert [kind for kind in got if kind in b"JGDC"] == [kind for kind in put if kind in b"JGDC"]


def test_a_signal_overtakes_input_that_nobody_reads() -> None:
    outbox = Outbox()
    outbox.put(b"D", b"x" * PIECE)
    assert outbox.take()[:1] == b"D"
    outbox.put(b"D", b"more")
    outbox.put(b"K", b"\x02")
    assert outbox.take() == encode(b"K", b"\x02")
    assert outbox.take() == b""
    outbox.answered(b"K")
    assert outbox.take() == b""
    outbox.answered(b"D")
    assert outbox.take() == encode(b"D", b"more")


def test_bad_frames_and_answers_are_refused() -> None:
    outbox = Outbox()
    with pytest.raises(SpecError, match="at most 2048"):
        outbox.put(b"D", b"x" * (PIECE + 1))
    with pytest.raises(SpecError, match="not a frame"):
        outbox.put(b"O", b"x")
    with pytest.raises(AbiError, match="not asked"):
        outbox.answered(b"D")
    with pytest.raises(AbiError, match="not asked"):
        outbox.answered(b"")


def test_marks_follow_the_running_test() -> None:
    marks = Marks()
    assert marks.remaining(5.0) == math.inf
    marks.feed(b"start a/test_x.py::test[a b] 2", 10.0)
    assert marks.test == ""
    marks.feed(b".5\n", 11.0)
    assert (marks.test, marks.seconds, marks.remaining(12.0)) == ("a/test_x.py::test[a b]", 2.5, 1.5)
    marks.feed(b"end a/test_x.py::test[a b]\nstart t 0\n", 13.0)
    assert (marks.test, marks.remaining(1e9)) == ("t", math.inf)
    marks.feed(b"note 12 states, 3 failing\nend t\n", 14.0)
    assert (marks.test, marks.notes, marks.starts) == ("", ["12 states, 3 failing"], 2)


@pytest.mark.parametrize("line", [b"start x\n", b"start x -1\n", b"start x nan\n", b"begin x 1\n", b"\n"])
def test_what_is_no_mark_is_refused(line: bytes) -> None:
    with pytest.raises(AbiError, match="not a test mark"):
        Marks().feed(line, 0.0)


def test_outcomes() -> None:
    assert Outcome.decode(b'{"code": 3}').status == 3
    assert Outcome.decode(b'{"signal": 9}', "t") == Outcome(signal=9, test="t")
    assert Outcome(signal=9).status == 137
    assert Outcome(lost="panic").status == 125
    assert Outcome.decode(b'{"code": 127, "error": "no such file"}').error == "no such file"


def test_a_job_survives_the_line() -> None:
    job = Job(("prog", "\u00e9\udcff"), {"A": "1"}, "/tmp", 0o077, (24, 80))
    fields = json.loads(job.encode())
    assert fields["argv"] == ["prog", "\u00e9\udcff"]
    assert (fields["env"], fields["cwd"], fields["umask"], fields["terminal"]) == (
        {"A": "1"},
        "/tmp",
        0o077,
        [24, 80],
    )


def test_only_paths_below_the_guests_own_folders_are_shown(tmp_path) -> None:
    exchange = tmp_path / "exchange"
    inner = tmp_path / "project" / "src"
    inner.mkdir(parents=True)
    exchange.mkdir()
    wanted = [
        inner,
        tmp_path / "project",
        "/usr/lib",
        "/tmp-not",
        "relative",
        exchange / "x",
        "/tmp/no-such",
        "/run",
    ]
    import os

    if not str(tmp_path).startswith("/tmp"):
        pytest.skip("the temporary folder is not below /tmp")
    assert os.path.commonpath([inner, tmp_path]) == str(tmp_path)
    assert visible_paths(wanted, exchange) == [str(tmp_path / "project")]
