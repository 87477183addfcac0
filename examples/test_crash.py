"""What does a power cut leave? Record a program, visit the states, check each; a failure is the smallest proof of the bug."""

import os
import sqlite3
from contextlib import closing

import pytest

from pytest_dm import oracles
from pytest_dm.crash.failure import CrashFailure

pytestmark = pytest.mark.dm(size="16M", filesystem="ext4")


def save(folder, name, data, *, careful):
    """Replace a file as everybody does, by a rename; a careful program also syncs, the file and then the folder."""
    temporary = folder / f"{name}.tmp"
    with temporary.open("wb") as file:
        file.write(data)
        file.flush()
        if careful:
            os.fsync(file.fileno())
    temporary.rename(folder / name)
    if careful:
        fd = os.open(folder, os.O_RDONLY)
        os.fsync(fd)
        os.close(fd)


def record(dm_crash, *, careful):
    history = oracles.History()  # what was done: the oracle holds each state against it
    with dm_crash.record() as disk:
        for version in range(3):
            data = f"version {version}\n".encode() * 500
            with history.put(disk, f"config-{version}", data):  # acknowledged where the block ends
                save(disk.mountpoint, f"config-{version}", data, careful=careful)
            os.sync()
    return history


def test_a_careful_program_loses_nothing(dm_crash):
    history = record(dm_crash, careful=True)
    dm_crash.check(oracles.Files(history), max_states=100)


def test_a_rename_without_fsync_loses_what_it_promised(dm_crash):
    history = record(dm_crash, careful=False)
    with pytest.raises(CrashFailure, match="durability"):
        dm_crash.check(oracles.Files(history), max_states=100)


@pytest.mark.parametrize(
    ("journal", "synchronous", "loses"),
    [
        ("DELETE", "EXTRA", set()),
        ("TRUNCATE", "FULL", set()),
        ("PERSIST", "FULL", set()),
        ("WAL", "FULL", set()),
        ("WAL", "NORMAL", {"durability"}),
    ],
)
def test_sqlite_keeps_what_its_manual_says(dm_crash, journal, synchronous, loses):
    history = oracles.History()
    with (
        dm_crash.record() as disk,
        closing(sqlite3.connect(disk.mountpoint / "shop.db", isolation_level=None)) as database,
    ):
        database.execute(f"PRAGMA journal_mode = {journal}")
        database.execute(f"PRAGMA synchronous = {synchronous}")
        database.execute("CREATE TABLE sales (id INTEGER PRIMARY KEY, item TEXT)")
        for number, item in enumerate(["apple", "bread", "cheese"]):
            with history.put(disk, number, item):
                database.execute("INSERT INTO sales VALUES (?, ?)", (number, item))

    oracle = oracles.SQLite("shop.db", "SELECT id, item FROM sales", history)
    found = dm_crash.explore(oracle, max_states=60)

    assert {finding.problem.kind for finding in found.findings} == loses
