"""Epochs, states, image ids and images, against a second, plain reading of the rule."""

from __future__ import annotations

import random
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from log_maker import DISCARD, FUA, LogMaker, apply, reference_images

from dmcore.crash.epochs import Level, Times, read_times, timeline
from dmcore.crash.families import Families, states
from dmcore.crash.images import ImageIds
from dmcore.crash.log import CrashLog
from dmcore.crash.materialise import Image, Scratch, read_runs, write_image
from dmcore.crash.states import State, Tear, parse_state, units
from dmcore.errors import FormatError, SpecError

UNIT = 512
BLOCKS = 12


def content(number, blocks=1):
    return bytes([number % 251 + 1]) * UNIT * blocks


@st.composite
def logs(draw, *, fua_anywhere=True):
    """Draw logs: ordinary writes may overlap; FUA writes are aligned so that they overwrite others whole or not at all."""
    log = LogMaker(UNIT)
    for number in range(draw(st.integers(1, 14))):
        kind = draw(st.sampled_from(["write", "write", "write", "fua", "flush", "discard", "mark"]))
        at = draw(st.integers(0, BLOCKS // 4 - 1)) * 4
        if kind == "write":
            start = draw(st.integers(0, 3))
            log.write((at + start) * UNIT, content(number, draw(st.integers(1, 4 - start))))
        elif kind == "fua" and fua_anywhere:
            log.fua(at * UNIT, content(number, 4))
        elif kind == "discard":
            log.discard(at * UNIT, 4 * UNIT)
        elif kind == "mark":
            log.mark(f"m{number}")
        else:
            log.flush()
    if draw(st.booleans()):
        log.end()
    return log


def opened(maker, folder, base=None):
    path = maker.save(Path(folder) / "log")
    if base is not None:
        (Path(folder) / "base").write_bytes(base)
        return CrashLog(path, base=Path(folder) / "base")
    return CrashLog(path, size=BLOCKS * UNIT)


def naive(log, line, state, torn_size):
    """Return the image of a state, from the log's data and nothing but `Epoch`."""
    image = bytearray(log.read_base(0, log.size))

    def put(piece):
        data = bytes(piece.length) if piece.source < 0 else log.index.read(piece.source, piece.length)
        image[piece.offset : piece.offset + piece.length] = data

    for epoch in line.epochs[: state.epoch + 1]:
        for write in epoch.durable:
            for piece in write.pieces:
                put(piece)
    torn = {tear.write: tear for tear in state.torn}
    for number, write in enumerate(line.epochs[state.epoch].pending):
        if state.present >> number & 1:
            cut = units(write, torn_size)
            for at, piece in enumerate(cut):
                if number not in torn or torn[number].holds(at, len(cut)):
                    put(piece)
    return bytes(image)


@given(logs(), st.booleans())
@settings(max_examples=60, deadline=None)
def test_states_are_those_of_the_rule(maker, based):
    base = bytes(range(1, BLOCKS + 1)) * UNIT if based else bytes(BLOCKS * UNIT)
    expected = reference_images(maker.entries, base)
    with TemporaryDirectory() as folder, opened(maker, folder, base if based else None) as log:
        line = timeline(log)
        got = {}
        for state in states(line, max_states=1 << 16):  # without a limit, large epochs are sampled
            image = naive(log, line, state, UNIT)
            marks = line.epochs[state.epoch].marks
            got[image] = max(got.get(image, -1), marks)
        assert got == expected


@given(logs(), st.booleans(), st.randoms(use_true_random=False))
@settings(max_examples=40, deadline=None)
def test_images_and_their_ids(maker, based, rng):
    base = bytes(range(1, BLOCKS + 1)) * UNIT if based else None
    with TemporaryDirectory() as folder, opened(maker, folder, base) as log:
        line = timeline(log)
        chosen = list(states(line, torn_size=UNIT))
        rng.shuffle(chosen)
        ids = ImageIds(log, line, UNIT)
        by_id = {}
        with Image(log, line, Path(folder) / "image", UNIT) as image:
            scratch = Scratch(image, Path(folder) / "scratch")
            for state in chosen[:60]:
                want = naive(log, line, state, UNIT)
                image.show(state)
                assert image.path.read_bytes() == scratch.path.read_bytes() == want, str(state)
                ids.goto(state.epoch)
                assert by_id.setdefault(ids.of(state), want) == want
                if rng.random() < 0.3:
                    spoil(scratch, rng)
                    scratch.restore()
            assert len(set(by_id.values())) == len(by_id)


def spoil(scratch, rng):
    """Do to a scratch what a checker may."""
    match rng.randrange(4):
        case 0:
            with scratch.path.open("r+b") as file:
                file.seek(rng.randrange(BLOCKS) * UNIT)
                file.write(b"\xee" * 700)
        case 1:
            scratch.path.unlink()
        case 2:
            with scratch.path.open("r+b") as file:
                file.truncate(rng.randrange(BLOCKS * UNIT))
        case 3:
            scratch.path.unlink()
            scratch.path.write_bytes(b"other")


@given(logs())
@settings(max_examples=40, deadline=None)
def test_ids_of_states_are_read_back(maker):
    with TemporaryDirectory() as folder, opened(maker, folder) as log:
        line = timeline(log)
        every = list(states(line, torn_size=UNIT))
        assert len(set(map(str, every))) == len(every)
        assert [parse_state(str(state), line) for state in every] == every


@pytest.mark.parametrize(
    "text", ["", "e0", "e0:", "e1:0", "e0:8", "e0:1:t0", "e0:1:t1.f1", "e0:0:t0.f1", "x0:0", "e0:1:t0.q1"]
)
def test_no_such_state(tmp_path, text):
    maker = LogMaker()
    maker.write(0, content(1, 4))
    maker.write(2048, content(2))
    with opened(maker, tmp_path) as log, pytest.raises(SpecError, match="state="):
        parse_state(text, timeline(log))


def test_the_kernel_rule(tmp_path):
    """FUA writes in order, the next in flight; then all of them with any subset of the ordinary ones."""
    maker = LogMaker()
    for number in range(3):
        maker.fua(number * UNIT, content(number + 1))
        maker.mark(f"m{number}")
    maker.write(3 * UNIT, content(7))
    maker.write(4 * UNIT, content(8))
    maker.flush(FUA)  # as the kernel logs the flush before a FUA write
    maker.fua(5 * UNIT, content(9))
    maker.end()
    with opened(maker, tmp_path) as log:
        line = timeline(log)
        assert [
            (e.ends, e.marks, [w.entry for w in e.durable], [w.entry for w in e.pending]) for e in line.epochs
        ] == [
            ("fua", 0, [], [0]),
            ("fua", 1, [0], [2]),
            ("fua", 2, [2], [4]),
            ("flush", 3, [4], [6, 7]),
            ("fua", 3, [6, 7], [9]),
            ("end", 3, [9], []),
        ]
        assert [mark.text for mark in log.marks] == ["m0", "m1", "m2"]


def test_the_durable_prefix_alone(tmp_path):
    maker = LogMaker()
    maker.fua(0, content(1))
    maker.write(UNIT, content(2))
    maker.flush()
    maker.write(2 * UNIT, content(3))
    with opened(maker, tmp_path) as log:
        assert [str(state) for state in states(timeline(log, "L0"), torn_size=UNIT)] == [
            "e0:0",
            "e1:0",
            "e2:0",
        ]


def test_an_older_write_does_not_come_back_over_a_fua_write(tmp_path):
    """Entries in order of completion: the ordinary write is older, and the FUA write is durable."""
    maker = LogMaker()
    maker.write(0, content(1, 3))
    maker.fua(UNIT, content(2))
    maker.flush()
    with opened(maker, tmp_path) as log:
        line = timeline(log)
        assert line.ambiguous == ()
        image = naive(log, line, State(1, 1), UNIT)
        assert image[: 3 * UNIT] == content(1) + content(2) + content(1)


def test_writes_whose_order_the_log_leaves_open_are_named(tmp_path):
    maker = LogMaker()
    maker.fua(0, content(1))
    maker.write(0, content(2, 2))
    maker.flush()
    with opened(maker, tmp_path) as log:
        assert timeline(log).ambiguous == ((0, 1),)
        other = timeline(log, fua_last=True)
        assert naive(log, other, State(1, 1), UNIT)[: 2 * UNIT] == content(1) + content(2)


def test_a_lying_disk(tmp_path):
    maker = LogMaker()
    for number in range(4):
        maker.write(number * UNIT, content(number + 1))
        maker.flush()
    with opened(maker, tmp_path) as log:
        assert max(len(epoch.pending) for epoch in timeline(log, Level.L3, window=2).epochs) == 2
        images = {
            naive(log, timeline(log, "L3", window=4), state, UNIT)
            for state in states(timeline(log, "L3", window=4))
        }
        assert len(images) == 16
        with pytest.raises(SpecError, match="window"):
            timeline(log, "L3", window=0)


@pytest.mark.parametrize(("level", "field"), [("L4", "level"), ("L2", "times")])
def test_levels_that_are_none(tmp_path, level, field):
    maker = LogMaker()
    maker.flush()
    maker.write(0, content(1))
    with opened(maker, tmp_path) as log, pytest.raises(SpecError, match=field):
        timeline(log, level)


def test_exact_order_sees_what_the_log_alone_does_not(tmp_path):
    """An ordinary write that completed before a FUA write was even issued may be lost though the FUA write is there, and be
    there though the FUA write is not."""
    maker = LogMaker()
    maker.fua(0, content(1))  # entry 0, logged first
    maker.mark("done")
    maker.write(UNIT, content(2))  # entry 2, issued and completed before entry 0
    maker.flush()
    (tmp_path / "times").write_text("# entry issued completed\n0 20 30\n1 35 35\n2 5 10\n3 40 50\n")
    with opened(maker, tmp_path) as log:
        times = read_times(tmp_path / "times", len(log.index))
        line = timeline(log, "L2", times=times)
        exact = {naive(log, line, state, UNIT)[: 2 * UNIT] for state in states(line)}
        loose = {naive(log, timeline(log), state, UNIT)[: 2 * UNIT] for state in states(timeline(log))}
        zero = bytes(UNIT)
        assert exact - loose == {zero + content(2)}
        assert loose < exact
        assert [(epoch.marks, len(epoch.pending)) for epoch in line.epochs] == [(0, 2), (1, 1), (1, 0)]


def test_exact_order_a_write_that_completes_during_a_flush_is_not_durable(tmp_path):
    maker = LogMaker()
    maker.write(0, content(1))
    maker.write(UNIT, content(2))
    maker.flush()
    maker.flush()
    with opened(maker, tmp_path) as log:
        times = [Times(1, 2), Times(3, 12), Times(10, 20), Times(30, 40)]
        line = timeline(log, "L2", times=times)
        assert [[w.entry for w in e.durable] for e in line.epochs] == [[], [0], [1]]
        assert [[w.entry for w in e.pending] for e in line.epochs] == [[0, 1], [1], []]


def test_exact_order_the_write_issued_later_wins(tmp_path):
    maker = LogMaker()
    maker.fua(0, content(2))
    maker.write(0, content(1, 2))
    maker.flush()
    with opened(maker, tmp_path) as log:
        line = timeline(log, "L2", times=[Times(5, 8), Times(1, 3), Times(10, 12)])
        assert naive(log, line, State(len(line.epochs) - 1, 0), UNIT)[: 2 * UNIT] == content(2) + content(1)


@pytest.mark.parametrize(
    "text",
    ["0 1 2\n", "0 1 2\n1 1\n", "0 1 2\n1 3 2\n", "0 1 2\n0 1 2\n", "0 1 2\n2 1 2\n", "0 1 x\n1 1 2\n", ""],
)
def test_times_that_are_none(tmp_path, text):
    (tmp_path / "times").write_text(text)
    with pytest.raises(FormatError):
        read_times(tmp_path / "times", 2)


def many(tmp_path, sizes):
    maker = LogMaker()
    number = 0
    for size in sizes:
        for _ in range(size):
            number += 1
            maker.write(number * 4096, content(number, 8))
        maker.flush()
        maker.mark(f"m{number}")
    maker.end()
    return CrashLog(maker.save(tmp_path / "log"))


@pytest.mark.parametrize("budget", [1, 7, 50, 400, 3000])
def test_no_more_states_than_allowed_and_the_same_for_the_same_seed(tmp_path, budget):
    with many(tmp_path, [1, 12, 3, 30, 2, 7]) as log:
        line = timeline(log)
        runs = [list(states(line, torn_size=UNIT, seed=seed, max_states=budget)) for seed in (1, 1, 2)]
        assert runs[0] == runs[1]
        assert all(len(run) <= budget for run in runs)
        assert all(len(run) >= 0.8 * min(budget, 600) for run in runs)
        assert all(len(set(run)) == len(run) for run in runs)
        if budget in (50, 400):
            assert runs[0] != runs[2]


def test_every_subset_of_small_epochs_and_of_larger_ones_where_the_budget_allows(tmp_path):
    with many(tmp_path, [10, 11]) as log:
        line = timeline(log)
        families = Families(line, 0, max_states=5000)
        every = {(state.epoch, state.present) for _, state in families}
        assert families.exhaustive
        assert not families.truncated
        # all of epoch 0 is nothing of epoch 1, and so on
        assert len(every) == (2**10 - 1) + (2**11 - 1) + 1
        short = Families(line, 0, max_states=1500)
        assert len(list(short)) <= 1500
        assert not short.exhaustive
        free = Families(line, 0)
        assert {(s.epoch, s.present) for _, s in free if s.epoch == 0} == {
            (0, mask) for mask in range(2**10 - 1)
        }
        assert not free.exhaustive


def test_torn_writes_only_at_the_size_asked_for(tmp_path):
    maker = LogMaker()
    maker.write(0, content(1, 16))
    maker.discard(8192, 4096)
    maker.write(512, content(2, 1))
    with CrashLog(maker.save(tmp_path / "log")) as log:
        line = timeline(log)
        for size, torn in ((512, {0}), (4096, {0}), (8192, set())):
            assert {t.write for s in states(line, torn_size=size) for t in s.torn} == torn
        assert not any(s.torn for s in states(line, torn_size=0))
        kept = {4096: {(0, 4096), (4096, 4096)}}[4096]
        assert {(p.offset, p.length) for p in units(line.epochs[0].pending[0], 4096)} == kept


@pytest.mark.parametrize(
    ("tear", "held"),
    [
        (Tear(0, "f", 2), [0, 1]),
        (Tear(0, "l", 2), [4, 5]),
        (Tear(0, "o", 1), [1, 3, 5]),
        (Tear(0, "x", 0b1001), [0, 3]),
    ],
)
def test_what_of_a_torn_write_is_there(tear, held):
    assert [at for at in range(6) if tear.holds(at, 6)] == held


def test_a_state_is_written_out_as_an_image_and_never_over_one(tmp_path):
    with many(tmp_path, [2]) as log:
        line = timeline(log)
        state = State(0, 2, (Tear(1, "l", 1),))
        write_image(log, line, state, tmp_path / "out", UNIT)
        assert (tmp_path / "out").read_bytes() == naive(log, line, state, UNIT)
        with pytest.raises(FileExistsError):
            write_image(log, line, state, tmp_path / "out", UNIT)
        assert (tmp_path / "out").read_bytes() == naive(log, line, state, UNIT)


def test_large_discards_take_no_room(tmp_path):
    maker = LogMaker()
    maker.write(0, content(1, 8))
    maker.flush()
    maker.discard(0, 1 << 30)
    maker.write(1 << 29, content(2, 8))
    maker.flush()
    with (
        CrashLog(maker.save(tmp_path / "log")) as log,
        Image(log, timeline(log), tmp_path / "image", UNIT) as image,
    ):
        for state in (
            State(0, 1),
            State(1, 3),
            State(1, 1),
            State(1, 2),
            State(2, 0),
            State(0, 0),
            State(1, 1),
        ):
            image.show(state)
            assert image.path.stat().st_blocks * 512 <= 1 << 16, str(state)
        assert image.path.stat().st_size == 1 << 30


def test_what_a_checker_wrote_over_is_restored_in_long_runs_and_holes_stay_holes(tmp_path):
    """Runs longer than are read at once, of blocks that are zeros or not; the last block of the device is cut."""
    size = 700 * 4096 + 512
    maker = LogMaker()
    for block in (0, 1, 255, 256, 257, 300, 511, 512, 600, 699):
        maker.write(block * 4096, content(block, 8))
    maker.write(700 * 4096, content(7))
    with CrashLog(maker.save(tmp_path / "log"), size=size) as log:
        line = timeline(log)
        with Image(log, line, tmp_path / "image", UNIT) as image:
            image.show(State(0, (1 << 11) - 1))
            want, room = image.path.read_bytes(), image.path.stat().st_blocks
            scratch = Scratch(image, tmp_path / "scratch")
            for first, count in ((0, 701), (200, 400), (255, 2), (700, 1), (30, 1)):
                with scratch.path.open("r+b") as file:
                    file.seek(first * 4096)
                    file.write((b"\xaa" * 4096 * count)[: size - first * 4096])
                changed = list(range(first, first + count))
                assert scratch.changed() == changed
                read = [(at, data) for at, data in read_runs(scratch.fileno(), changed)]
                assert (
                    b"".join(data for _, data in read)
                    == scratch.path.read_bytes()[first * 4096 :][: count * 4096]
                )
                assert [at for at, _ in read] == list(range(first * 4096, (first + count) * 4096, 256 * 4096))
                scratch.restore()
                assert scratch.path.read_bytes() == want
                assert scratch.path.stat().st_blocks <= room
            scratch.close()


def test_random_subsets_of_one_epoch_step_by_step(tmp_path):
    """Overlapping and lone writes mixed: going from any state to any other gives the same bytes as making it anew."""
    rng = random.Random(3)
    maker = LogMaker()
    for number in range(24):
        maker.write(rng.randrange(10) * UNIT * (1 + number % 2), content(number, 2))
    maker.discard(0, 2 * UNIT)
    with CrashLog(maker.save(tmp_path / "log"), size=1 << 16) as log:
        line = timeline(log)
        ids = ImageIds(log, line, UNIT)
        ids.goto(0)
        with Image(log, line, tmp_path / "image", UNIT) as image:
            seen = {}
            for _ in range(200):
                state = State(0, rng.getrandbits(25))
                image.show(state)
                want = naive(log, line, state, UNIT)
                assert image.path.read_bytes() == want
                assert seen.setdefault(ids.of(state), want) == want


def test_apply_knows_discards():
    image = bytearray(b"x" * 1024)
    apply(image, (512, 512, DISCARD, b"", b""))
    assert image == b"x" * 512 + bytes(512)
