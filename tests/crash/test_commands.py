"""The commands: pytest-dm explore and replay, dmcore log; on good, cut and damaged logs, by their exit status."""

from __future__ import annotations

import json
import os
import shlex
import struct
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from log_maker import DISCARD, LogMaker, two_slots

from dmcore.cli import main as dmcore
from dmcore.crash.explore import explore
from dmcore.crash.log import CrashLog
from dmcore.errors import FormatError, SpecError
from dmcore.formats.log_index import LogIndex
from dmcore.formats.log_writes import LogFlag
from dmcore.kernel.log_replay import replay
from pytest_dm.cli import main as pytest_dm

HERE = Path(__file__).parent
CAPTURED = Path(__file__).parents[1] / "data/log_writes"
PYTEST_DM = "import sys; from pytest_dm.cli import main; sys.exit(main(sys.argv[1:]))"
ORACLE = f"{sys.executable} {HERE / 'slots_oracle.py'} {{image}} {{acknowledged}}"


@pytest.fixture(autouse=True)
def _oracle_finds_its_module(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(HERE))


def run(tmp_path, log, *words):
    out = tmp_path / "out.json"
    status = pytest_dm(["explore", str(log), "--size", "128K", "--quiet", "--json", str(out), *words])
    return status, json.loads(out.read_text())


def test_a_sound_log(tmp_path, capsys):
    status, found = run(tmp_path, two_slots(3).save(tmp_path / "log"), "--oracle", ORACLE)
    assert status == 0
    assert found["violations"] == found["warnings"] == found["errors"] == []
    assert found["error"] is None
    assert found["checked"] == found["distinct"] == found["generated"] > 10
    assert found["exhaustive"]
    assert "0 fail" in capsys.readouterr().err


def test_a_log_that_fails_and_its_states_by_their_ids(tmp_path, capsys):
    log = two_slots(3, "no-flush").save(tmp_path / "log")
    status, found = run(
        tmp_path, log, "--oracle", ORACLE, "--torn", "no", "--seed", "5", "--max-states", "500"
    )
    assert status == 1
    assert found["violating"] == 3
    first = found["violations"][0]
    assert first["kind"] == "integrity"
    assert first["reason"].startswith("integrity: slot says 1")
    assert first["torn"] is False
    assert first["acknowledged"] == ["put-1"]
    assert first["missing"] == [{"entry": 2, "offset": 12288, "length": 4096, "flags": [], "torn": False}]
    assert found["minimal"][0]["words"]
    capsys.readouterr()
    again = ["replay", first["id"], "--run", str(tmp_path / "out.json"), "--image", str(tmp_path / "image")]
    assert pytest_dm(again) == 1
    assert "lost: write of 4096 bytes at 12288 (entry 2)" in capsys.readouterr().err
    assert (tmp_path / "image").stat().st_size == 128 << 10
    assert pytest_dm(["replay", "e0:0", "--run", str(tmp_path / "out.json")]) == 0
    assert pytest_dm(["replay", first["id"], str(log), "--size", "128K", "--oracle", ORACLE]) == 1
    assert pytest_dm(["replay", first["id"], str(log), "--size", "128K"]) == 0
    assert "nothing judges it" in capsys.readouterr().err
    assert pytest_dm(again) == 2  # the image is there
    assert pytest_dm(["replay", "e99:0", "--run", str(tmp_path / "out.json")]) == 2
    assert pytest_dm(["replay", "e0:0"]) == 2
    (tmp_path / "other.json").write_text("[]")
    assert pytest_dm(["replay", "e0:0", "--run", str(tmp_path / "other.json")]) == 2


def test_torn_findings_are_a_class_of_their_own(tmp_path):
    log = two_slots(3, "torn").save(tmp_path / "log")
    status, found = run(tmp_path, log, "--oracle", f"{ORACLE} torn")
    assert status == 1
    assert (found["violating"], found["violating_torn"]) == (0, 3)
    assert all(one["torn"] for one in found["violations"])
    assert found["violations"][0]["missing"][0]["present"] == [[1024, 512]]


def test_a_base_image(tmp_path):
    """The program ran twice; the second run's log begins where the first ended."""
    first = two_slots(2).save(tmp_path / "first")
    assert dmcore(["log", "replay", str(first), str(tmp_path / "base")]) == 0
    with (tmp_path / "base").open("r+b") as file:
        file.truncate(1 << 20)
    maker = LogMaker()
    maker.write(65536, b"x" * 4096)
    log = maker.save(tmp_path / "log")
    out = tmp_path / "out.json"
    words = ["explore", str(log), "--base", str(tmp_path / "base"), "--quiet", "--json", str(out)]
    check = f"{sys.executable} -c 'import sys; d = open(sys.argv[1], \"rb\").read(); assert len(d) == 1 << 20; assert d[1024]'"
    assert pytest_dm([*words, "--oracle", f"{check} {{image}}"]) == 0
    (tmp_path / "base").write_bytes(b"small")
    assert pytest_dm(words) == 2
    assert "base=" in json.loads(out.read_text())["error"]


@pytest.mark.parametrize(
    ("content", "word"),
    [(b"", "ends"), (b"\0" * 4096, "magic"), (b"not a log at all" * 100, "magic")],
)
def test_logs_that_are_none(tmp_path, content, word, capsys):
    (tmp_path / "log").write_bytes(content)
    status, found = run(tmp_path, tmp_path / "log")
    assert status == 2
    assert word in found["error"]
    assert found["violations"] == []
    assert found["generated"] == 0
    assert capsys.readouterr().err.count("\n") == 1


def test_a_log_that_is_not_there(tmp_path):
    status, found = run(tmp_path, tmp_path / "nowhere")
    assert status == 2
    assert "No such file" in found["error"]


def test_an_oracle_that_fails_is_an_error_of_its_own(tmp_path, capsys):
    log = two_slots(2).save(tmp_path / "log")
    status, found = run(tmp_path, log, "--oracle", "sh -c 'echo broken; exit 3'")
    assert status == 2
    assert found["violations"] == []
    assert "exit status 3: broken" in found["error"]
    assert "exit status 3" in capsys.readouterr().err


@pytest.mark.parametrize(
    "words",
    [
        ["--torn", "100"],
        ["--torn", "x"],
        ["--fs", "xfs"],
        ["--level", "L2"],
        ["--oracle", "'"],
        ["--max-states", "0"],
        ["--max-seconds", "0"],
        ["--workers", "-1"],
        ["--oracle", "no-such-program {image}"],
        ["--oracle", "true", "--oracle-timeout", "0"],
    ],
)
def test_options_that_cannot_be(tmp_path, words):
    status, found = run(tmp_path, two_slots(2).save(tmp_path / "log"), *words)
    assert status == 2
    assert found["error"]


@pytest.mark.parametrize("place", ["", "nowhere/out.json"])
def test_a_result_without_a_place_is_known_before_anything_is_done(tmp_path, place, capsys):
    log = two_slots(2, "no-flush").save(tmp_path / "log")
    asked = tmp_path / "asked"
    words = ["explore", str(log), "--json", str(tmp_path / place), "--oracle", f"touch {asked}"]
    assert pytest_dm(words) == 2
    assert "json=" in capsys.readouterr().err
    assert not asked.exists()


@pytest.mark.parametrize("workers", ["0", "1"])
def test_a_device_too_large_for_this_machine_is_no_finding(tmp_path, workers, capsys):
    maker = LogMaker()
    maker.write(1 << 62, b"x" * 4096)
    words = [
        "explore",
        str(maker.save(tmp_path / "log")),
        "--quiet",
        "--workers",
        workers,
        "--oracle",
        "true",
    ]
    assert pytest_dm(words) == 2
    said = capsys.readouterr().err
    assert "Cannot allocate memory" in said or "File too large" in said
    assert said.count("\n") == 1


def test_a_fault_of_the_program_is_no_finding(tmp_path, monkeypatch, capsys):
    log = two_slots(2).save(tmp_path / "log")
    monkeypatch.setattr("dmcore.crash.explore.timeline", lambda *_, **__: 1 // 0)
    monkeypatch.setattr("dmcore.crash.epochs.timeline", lambda *_, **__: 1 // 0)
    status, found = run(tmp_path, log)
    assert (status, found["error"]) == (2, "ZeroDivisionError: integer division or modulo by zero")
    assert pytest_dm(["replay", "e0:0", str(log)]) == 2
    assert capsys.readouterr().err.count("ZeroDivisionError: ") == 2


def test_a_log_in_which_nothing_is_written(tmp_path, capsys):
    log = LogMaker().save(tmp_path / "log")
    status, found = run(tmp_path, log)
    assert (status, found["violations"]) == (0, [])
    assert found["warnings"] == ["nothing is written in this log"]
    capsys.readouterr()
    assert pytest_dm(["explore", str(log), "--fs", "ext4"]) == 2
    assert "writes nothing, and there is no base" in capsys.readouterr().err


def test_a_cut_log_without_a_file_system_says_that_it_is_cut(tmp_path, capsys):
    whole = two_slots(2).save(tmp_path / "log").read_bytes()
    (tmp_path / "log").write_bytes(whole[:-100])
    assert pytest_dm(["explore", str(tmp_path / "log"), "--fs", "ext4", "--quiet"]) == 2
    said = capsys.readouterr().err
    assert "no sound file system" in said
    assert "the log is cut off" in said


def test_progress_is_told(tmp_path, capsys):
    log = two_slots(2).save(tmp_path / "log")
    assert pytest_dm(["explore", str(log), "--size", "128K"]) == 0
    err = capsys.readouterr().err
    assert "distinct" in err
    assert "left: 99" in err


@pytest.mark.parametrize("size", [512, 4096])
def test_captured_logs(size, capsys):
    path = str(CAPTURED / f"log-{size}.bin")
    assert dmcore(["log", "index", path, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["entries"], found["sector_size"], found["complete"]) == (9, size, True)
    assert found["kinds"] == {"FLUSH": 2, "FUA": 0, "DISCARD": 1, "MARK": 3, "METADATA": 0}
    assert [mark["mark"] for mark in found["marks"]] == ["before flush", "voilà", "dm-log-writes-end"]
    assert dmcore(["log", "show", path]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 9
    assert dmcore(["log", "show", path, "--start-mark", "before flush", "--next-flush", "--json"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["flags"] for row in rows] == ["MARK", "WRITE", "FLUSH"]
    assert dmcore(["log", "index", path]) == 0
    assert "9 entries: 2 FLUSH" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "entries"),
    [
        ([], range(9)),
        (["--limit", "2"], range(2)),
        (["--start", "3", "--limit", "2"], range(3, 5)),
        (["--start", "3", "--end", "8"], range(3, 8)),
        (["--end-mark", "voilà"], range(6)),
        (["--start-mark", "voilà", "--end-mark", "dm-log-writes-end"], range(6, 8)),
        (["--start", "3", "--next-flush"], range(3, 6)),
        (["--limit", "100"], range(9)),
    ],
)
@pytest.mark.parametrize("discards", [True, False])
def test_replay(tmp_path, words, entries, discards):
    path = CAPTURED / "log-512.bin"
    target = tmp_path / "target"
    target.write_bytes(b"\xee" * 16384)
    want = bytearray(b"\xee" * 16384)
    with LogIndex(path) as index:
        for entry in entries:
            offset, length = index.extent_of(entry)
            if index.flags(entry) & LogFlag.DISCARD:
                if discards:
                    want[offset : offset + length] = bytes(length)
            elif length:
                want[offset : offset + length] = index.read(index.data_offset(entry), length)
    options = [] if discards else ["--no-discard"]
    assert dmcore(["log", "replay", str(path), str(target), *words, *options]) == 0
    assert target.read_bytes() == bytes(want)


@pytest.mark.parametrize(
    "words",
    [["--start", "10"], ["--start", "-1"], ["--start-mark", "no"], ["--start", "8", "--next-flush"], ["--start", "5", "--end", "2"],
     ["--next-fua"]],
)  # fmt: skip
def test_entries_that_are_not_there(tmp_path, words, capsys):
    assert dmcore(["log", "replay", str(CAPTURED / "log-512.bin"), str(tmp_path / "t"), *words]) == 1
    assert capsys.readouterr().err.startswith("dmcore: ")


def test_a_log_command_without_its_log(tmp_path, capsys):
    assert dmcore(["log", "show", str(tmp_path / "none")]) == 1
    assert "No such file" in capsys.readouterr().err
    (tmp_path / "bad").write_bytes(b"x" * 600)
    assert dmcore(["log", "show", str(tmp_path / "bad")]) == 1
    assert "(at byte 0)" in capsys.readouterr().err


def numbered(count):
    maker = LogMaker()
    for number in range(count):
        maker.write(4096 * (number % 7), struct.pack("<I", number) * 256)
        if number % 5 == 4:
            maker.flush()
            maker.mark(f"m{number}")
    return maker


@pytest.mark.parametrize("stale", [0, 3, 20])
def test_entries_behind_a_stale_super_block_are_taken_and_it_is_said(tmp_path, stale):
    maker = numbered(20)
    with CrashLog(maker.save(tmp_path / "log", nr_entries=stale)) as log:
        assert len(log.index) == len(maker.entries)
        assert f"the super block counts {stale} entries, {len(maker.entries) - stale} more" in log.warnings[0]
    maker.end()
    maker.write(0, b"old" * 512)  # what an older log left behind the end
    with CrashLog(maker.save(tmp_path / "log", nr_entries=len(maker.entries) - 1)) as log:
        assert log.warnings == []
        assert len(log.index) == len(maker.entries) - 1
    with CrashLog(maker.save(tmp_path / "log", nr_entries=stale)) as log:
        assert len(log.index) == len(maker.entries) - 1


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_a_cut_log_is_used_up_to_the_cut(tmp_path_factory, data):
    whole = numbered(12)
    raw = whole.bytes()
    cut = data.draw(st.integers(512, len(raw) - 1))
    path = tmp_path_factory.mktemp("cut") / "log"
    path.write_bytes(raw[:cut])
    ends, at = [], 512
    for entry in whole.entries:
        at += len(entry[4])
        ends.append(at)
    kept = sum(end <= cut for end in ends)
    with CrashLog(path, size=1 << 16) as log:
        assert len(log.index) == kept
        assert "the log is cut off" in log.warnings[0]
        assert f"should have {len(whole.entries)} entries, the {kept} before it" in log.warnings[0]
        found = explore(log, workers=0, max_states=50)
        assert found.warnings[: len(log.warnings)] == log.warnings


@given(st.lists(st.tuples(st.integers(0, 20_000), st.integers(0, 255)), min_size=1, max_size=4))
@settings(max_examples=200, deadline=None)
def test_a_damaged_log_is_an_error_with_its_place_or_a_log(tmp_path_factory, damage):
    raw = bytearray(numbered(12).bytes())
    for offset, byte in damage:
        raw[offset % len(raw)] = byte
    path = tmp_path_factory.mktemp("damaged") / "log"
    path.write_bytes(raw)
    try:
        log = CrashLog(path)
    except FormatError as error:
        where = error.offset
    else:
        where = -1
        with log:
            assert len(log.index) <= 1 + len(raw) // 512
            if log.size < 1 << 30:
                assert explore(log, workers=0, max_states=20).errors == []
    assert -1 <= where <= len(raw)


def test_an_index_finds_marks_and_flags(tmp_path):
    maker = numbered(23)
    maker.fua(0, b"f" * 512)
    maker.discard(0, 4096)
    with LogIndex(maker.save(tmp_path / "log")) as index:
        marks = [number for number, mark in index.marks.items() if mark == "m9"]
        assert [index.find_mark("m9")] == marks
        assert index.next(LogFlag.FLUSH, 0) == 5
        assert index.next(LogFlag.FLUSH, 6) == 12
        assert index.next(LogFlag.FUA, 0) == len(index) - 2
        assert index.next(LogFlag.FUA, len(index) - 1) is None
        assert list(index.positions(LogFlag.DISCARD)) == [len(index) - 1]
        assert index[-1].flags == DISCARD
        assert [entry.index for entry in index] == list(range(len(index)))
        with pytest.raises(IndexError):
            index[len(index)]
        with pytest.raises(SpecError, match="mark='m9'"):
            index.find_mark("m9", start=marks[0] + 1)
        with pytest.raises(SpecError, match="entries="):
            replay(index, tmp_path / "t", start=3, stop=2)
    with pytest.raises(SpecError, match="nr_entries"):
        LogIndex(tmp_path / "log", nr_entries=-1)


def columns(index):
    return list(index), index.marks, index.extent, index.complete, index.warnings, index.super_block


@pytest.mark.parametrize("stale", [None, 3])
def test_a_saved_index_spares_the_scan_until_the_log_is_another(tmp_path, capsys, stale):
    maker = numbered(23)
    maker.mark("nöt")
    log = maker.save(tmp_path / "log", nr_entries=stale)
    with LogIndex(log) as index:
        scanned = columns(index)
        assert not index.recalled
    assert dmcore(["log", "index", str(log), "--save", "--json"]) == 0
    saved = Path(json.loads(capsys.readouterr().out)["saved"])
    assert saved == tmp_path / "log.index"
    with LogIndex(log) as index:
        assert index.recalled
        assert columns(index) == scanned
        assert index.next(LogFlag.FLUSH, 6) == 12
    for options in ({"salvage": True}, {"nr_entries": 2}):
        with LogIndex(log, **options) as index:
            assert not index.recalled
            with pytest.raises(SpecError, match="save="):
                index.save()
    good = saved.read_bytes()
    for bad in (b"", good[:-1], good + b"x", good[:100] + b"\xff" + good[101:], bytes(len(good))):
        saved.write_bytes(bad)
        with LogIndex(log) as index:
            assert not index.recalled
            assert columns(index) == scanned
    saved.write_bytes(good)
    maker.write(0, b"more" * 128)
    maker.save(log, nr_entries=stale)
    with LogIndex(log) as index:
        assert not index.recalled
        assert len(index) == len(maker.entries)
    os.truncate(log, 2000)
    with LogIndex(log) as index:
        assert not index.recalled


def test_paths_with_blanks(tmp_path):
    folder = tmp_path / "a b"
    folder.mkdir()
    log = two_slots(2, "no-flush").save(folder / "my log")
    assert pytest_dm(["explore", str(log), "--size", "128K", "--quiet", "--oracle", ORACLE]) == 1
    assert shlex.quote(str(log)) != str(log)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_killed_exploration_leaves_a_folder_that_clean_finds_and_no_oracle(tmp_path, workers):
    log = two_slots(3).save(tmp_path / "log")
    command = [sys.executable, "-c", PYTEST_DM, "explore", str(log), "--size", "128K", "--quiet"]
    oracle = f"sh -c 'echo $$ >{tmp_path / 'new'}; mv {tmp_path / 'new'} {tmp_path / 'asked'}; sleep 20; :' {{image}}"
    environment = os.environ | {"TMPDIR": str(tmp_path)}
    exploring = subprocess.Popen(
        [*command, f"--workers={workers}", "--oracle", oracle, "--json", str(tmp_path / "out")],
        env=environment,
    )
    wait_for(lambda: (tmp_path / "asked").exists() or exploring.poll() is not None)
    exploring.kill()
    exploring.wait()
    asked = int((tmp_path / "asked").read_text())
    wait_for(lambda: not is_there(asked))
    (left,) = tmp_path.glob("pytest-dm-*")
    done = subprocess.run(
        [sys.executable, "-c", PYTEST_DM, "clean"],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert f"removed folder {left}" in done.stdout.splitlines()
    assert not left.exists()


def wait_for(condition):
    deadline = time.monotonic() + 15
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def is_there(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except FileNotFoundError:
        return False
