"""SQLite on ext4 on a disk that fails: the program sees the error, the database survives."""

import contextlib
import sqlite3

import pytest

pytestmark = pytest.mark.dm(size="64M", filesystem="ext4")


def connect(disk):
    database = sqlite3.connect(disk.mountpoint / "shop.db", isolation_level=None, timeout=0)
    # EXTRA syncs the folder after the commit, too. With FULL, a power cut right after a commit brings the deleted
    # rollback journal back, and takes the commit away: the last test here fails.
    database.execute("PRAGMA synchronous = EXTRA")
    return contextlib.closing(database)


def sell(database, item):
    database.execute("BEGIN IMMEDIATE")
    database.execute("INSERT INTO sales (item) VALUES (?)", (item,))
    database.execute("COMMIT")


def items(database):
    return [item for (item,) in database.execute("SELECT item FROM sales ORDER BY id")]


@pytest.fixture
def shop(dm_flakey):
    with connect(dm_flakey) as database:
        database.execute("CREATE TABLE sales (id INTEGER PRIMARY KEY, item TEXT)")
        sell(database, "apple")
        sell(database, "bread")
    return dm_flakey


def test_write_errors_reach_the_program(shop):
    with connect(shop) as database:
        shop.fail(writes=True)
        with pytest.raises(sqlite3.OperationalError):
            sell(database, "cheese")

    shop.heal()
    shop.remount()

    with connect(shop) as database:
        assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        assert items(database) == ["apple", "bread"]
        sell(database, "dates")
        assert items(database) == ["apple", "bread", "dates"]


def test_what_was_committed_survives_a_power_cut(shop):
    with connect(shop) as database:
        sell(database, "cheese")
        cut = shop.power_cut()
        database.execute("BEGIN IMMEDIATE")
        database.execute("INSERT INTO sales (item) VALUES ('in flight')")
    cut.restore()

    with connect(shop) as database:
        assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        assert items(database) == ["apple", "bread", "cheese"]
