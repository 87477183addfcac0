"""The ready-made oracles alone, on folders: what must be there, what may be, and which promise is broken if not."""

from __future__ import annotations

import sqlite3
import threading
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from dmcore.errors import SpecError
from pytest_dm.oracles import AppendOnlyLog, Corrupt, Files, History, KeyValue, Lost, SQLite


@dataclass
class State:
    acknowledged: tuple[str, ...] = ()
    started: tuple[str, ...] = ()
    mountpoint: Path | None = None


class Disk:
    """Keeps the marks that a recorded disk would get."""

    def __init__(self):
        self.marks = []

    @contextmanager
    def operation(self, name):
        self.marks.append(f"start:{name}")
        yield
        self.marks.append(f"done:{name}")


def history_of(*steps):
    """Return the history of operations one after the other, each a key and a value."""
    history = History()
    for key, value in steps:
        with history.put(Disk(), key, value):
            pass
    return history


def test_operations_have_names_of_one_word_in_order():
    history, disk = History(), Disk()
    with history.put(disk, "a key with\nblanks" + "x" * 100, 1) as name:
        pass
    with history.delete(disk, ("k", 2)):
        pass
    assert name == "1:a-key-with-blanks" + "x" * 23
    assert disk.marks == [f"start:{name}", f"done:{name}", "start:2:-k-2-", "done:2:-k-2-"]
    assert history.keys() == ["a key with\nblanks" + "x" * 100, ("k", 2)]


def test_an_operation_that_fails_is_never_done():
    history, disk = History(), Disk()
    with pytest.raises(ZeroDivisionError), history.put(disk, "k", 1):
        _ = 1 / 0
    assert disk.marks == ["start:1:k"]
    assert history.operations[0].done == float("inf")


A, B, C = "1:k", "2:k", "3:k"
LATEST = [
    # acknowledged, started, values that are no failure of three puts of 1, 2, 3 one after the other
    ((), (), {None}),
    ((), (A,), {None, 1}),
    ((A,), (), {1}),
    ((A,), (B,), {1, 2}),
    ((A, B), (C,), {2, 3}),
    ((A, B, C), (), {3}),
]


@pytest.mark.parametrize(("acknowledged", "started", "fine"), LATEST)
@pytest.mark.parametrize("value", [None, 1, 2, 3, 4])
def test_a_value_is_that_of_the_last_acknowledged_operation_or_of_one_under_way(
    acknowledged, started, fine, value
):
    history = history_of(("k", 1), ("k", 2), ("k", 3))
    state = State(acknowledged, started)
    found = {} if value is None else {"k": value}
    if value in fine:
        history.judge(found, state)
        return
    old = value in (None, *range(1, len(acknowledged)))
    with pytest.raises(Lost if acknowledged and old else Corrupt):
        history.judge(found, state)


def test_operations_that_overlap_may_have_come_in_either_order():
    history, disk = History(), Disk()
    with history.put(disk, "k", 1), history.put(disk, "k", 2):
        pass
    for value in (1, 2):
        history.judge({"k": value}, State((A, B)))
    with pytest.raises(Lost):
        history.judge({}, State((A, B)))
    with history.put(disk, "k", 3):
        pass
    with pytest.raises(Lost, match="operation 3:k was acknowledged"):
        history.judge({"k": 1}, State((A, B, C)))


def test_threads_write_one_history():
    history, disk = History(), Disk()

    def work(thread):
        for number in range(50):
            with history.put(disk, thread, number):
                pass

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    names = tuple(operation.name for operation in history.operations)
    assert len(set(names)) == 200
    history.judge(dict.fromkeys(range(4), 49), State(names))


def test_what_was_removed_stays_so():
    history = history_of(("k", 1), ("k", None))
    history.judge({}, State((A, B)))
    history.judge({"k": 1}, State((A,), (B,)))
    with pytest.raises(
        Lost, match="'k' is 1, though operation 2:k was acknowledged, which made it not there"
    ):
        history.judge({"k": 1}, State((A, B)))


def test_what_nobody_wrote_is_corrupt():
    with pytest.raises(Corrupt, match="'other' is there, which nobody wrote: 7"):
        history_of(("k", 1)).judge({"k": 1, "other": 7}, State((A,)))


def test_corruption_is_told_before_loss():
    history = history_of(("a", 1), ("b", 2))
    with pytest.raises(Corrupt, match="'b' is 3, which it never was"):
        history.judge({"b": 3}, State(("1:a", "2:b")))


def test_the_first_byte_that_differs_is_named():
    history = history_of(("k", b"a" * 5000))
    with pytest.raises(Corrupt, match=r"from byte 4096 on, where it has b'\\x00"):
        history.judge({"k": b"a" * 4096 + bytes(904)}, State((), (A,)))


def test_key_value_reads_by_the_callers_function():
    history = history_of(("k", 1))
    KeyValue(history, lambda _state: {"k": 1})(State((A,)))
    with pytest.raises(Corrupt, match="cannot be read: ValueError: bad page"):
        KeyValue(history, lambda _state: _raise(ValueError("bad page")))(State((A,)))
    with pytest.raises(AssertionError, match="mine"):
        KeyValue(history, lambda _state: _raise(AssertionError("mine")))(State((A,)))


def test_a_store_that_is_not_there_yet_is_empty_unless_that_is_wrong():
    history = history_of(("k", 1))
    missing = FileNotFoundError(2, "no such file", "store")
    KeyValue(history, lambda _state: _raise(missing))(State((), (A,)))
    with pytest.raises(Lost):
        KeyValue(history, lambda _state: _raise(missing))(State((A,)))
    with pytest.raises(Corrupt, match="cannot be read"):
        KeyValue(history, lambda _state: _raise(missing), missing_is_empty=False)(State())


def _raise(error):
    raise error


def test_files_by_their_content(tmp_path):
    history = history_of(("d/f", b"1" * 100), ("g", b""))
    state = State(("1:d/f",), ("2:g",), tmp_path)
    oracle = Files(history)
    with pytest.raises(Lost, match="'d/f' is not there"):
        oracle(state)
    (tmp_path / "d").mkdir()
    (tmp_path / "d/f").write_bytes(b"1" * 100)
    (tmp_path / "left.tmp").write_bytes(b"?")
    (tmp_path / "lost+found").mkdir()
    (tmp_path / "lost+found/x").touch()
    oracle(state)
    (tmp_path / "g").touch()
    oracle(state)
    (tmp_path / "d/f").write_bytes(bytes(100))
    with pytest.raises(Corrupt, match="'d/f' is 100 zero bytes"):
        oracle(state)
    (tmp_path / "d/f").write_bytes(b"")
    with pytest.raises(Corrupt, match="'d/f' is empty"):
        oracle(state)
    (tmp_path / "d/f").write_bytes(b"1" * 100)
    (tmp_path / "odd").touch()
    with pytest.raises(Corrupt, match="'odd' is there, which nobody wrote"):
        oracle(state)
    Files(history, others=("odd", "*.tmp", "lost+found"))(state)


RECORDS = (b"one\n", b"two\n", b"three\n")
WHOLE = b"".join(RECORDS)


@pytest.mark.parametrize(
    ("data", "acknowledged", "failure"),
    [
        (None, 0, None),
        (b"", 0, None),
        (WHOLE, 3, None),
        (WHOLE[:4], 1, None),
        (WHOLE[:6], 1, None),
        (WHOLE[:6], 2, Lost),
        (None, 1, Lost),
        (WHOLE[:4] + bytes(4), 2, Lost),
        (WHOLE[:4] + b"TWO\n" + WHOLE[8:], 1, Corrupt),
        (WHOLE + b"more", 3, Corrupt),
        (WHOLE[:4] + WHOLE[8:], 1, Corrupt),
    ],
)
def test_an_append_only_log(tmp_path, data, acknowledged, failure):
    history = history_of(*enumerate(RECORDS))
    names = tuple(operation.name for operation in history.operations)
    if data is not None:
        (tmp_path / "log").write_bytes(data)
    state = State(names[:acknowledged], names[acknowledged:], tmp_path)
    oracle = AppendOnlyLog("log", history)
    if failure is None:
        oracle(state)
    else:
        with pytest.raises(failure):
            oracle(state)


def test_a_reader_that_does_not_drop_a_torn_record(tmp_path):
    history = history_of(*enumerate(RECORDS))
    (tmp_path / "log").write_bytes(WHOLE[:6])
    with pytest.raises(Corrupt, match="at byte 4"):
        AppendOnlyLog("log", history, torn_tail=False)(State(("1:0",), ("2:1",), tmp_path))


def test_an_sqlite_database(tmp_path):
    history = history_of((1, "a"), (2, "b"))
    names = ("1:1", "2:2")
    oracle = SQLite("db", "SELECT k, v FROM t", history)
    oracle(State((), names, tmp_path))
    with pytest.raises(Lost):
        oracle(State(names, (), tmp_path))
    with closing(sqlite3.connect(tmp_path / "db")) as database, database:
        database.execute("CREATE TABLE other (k)")
    oracle(State((), names, tmp_path))
    with closing(sqlite3.connect(tmp_path / "db")) as database, database:
        database.execute("CREATE TABLE t (k INTEGER PRIMARY KEY, v)")
        database.executemany("INSERT INTO t VALUES (?, ?)", [(1, "a"), (2, "b")])
    oracle(State(names, (), tmp_path))
    data = (tmp_path / "db").read_bytes()
    (tmp_path / "db").write_bytes(data[:4096] + b"\xff" * (len(data) - 4096))
    with pytest.raises(Corrupt, match="db: "):
        oracle(State(names, (), tmp_path))
    SQLite("nowhere")(State(names, (), tmp_path))
    with pytest.raises(SpecError, match="query"):
        SQLite("db", "SELECT 1, 2")


def test_a_bare_disk_has_no_files():
    for oracle in (Files(History()), AppendOnlyLog("log", History()), SQLite("db")):
        with pytest.raises(SpecError, match="needs a state with a file system"):
            oracle(State())
