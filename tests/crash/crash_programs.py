"""Programs whose behaviour at a power cut is known: planted bugs and their correct twins.

Each is a function of a recorded disk that writes down what it did in a History; `PROGRAMS` says which oracle judges it, and
which kinds of failure it may and must have. What is not listed must never be found.
"""

from __future__ import annotations

import os
import sqlite3
import struct
import subprocess
import zlib
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from pytest_dm import oracles

if TYPE_CHECKING:
    from collections.abc import Callable

D, I = "durability", "integrity"  # noqa: E741
SIZES = {"ext2": "16M", "ext3": "16M", "ext4": "16M", "xfs": "320M", "btrfs": "128M", "f2fs": "64M"}


SEEDS = int(os.environ.get("PYTEST_DM_CRASH_SEEDS", "1"))


def newest_only(dm_backend):
    """Leave a slow test to the newest guest kernel, but in a campaign."""
    if SEEDS == 1 and dm_backend.guest in ("uml-6.1", "uml-6.12"):
        pytest.skip("left to the newest kernel, and to make crash-campaign")


def fsync(path):
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def save(path, data, *, sync):
    with Path(path).open("wb") as file:
        file.write(data)
        file.flush()
        if sync:
            os.fsync(file.fileno())


def replace(disk, history, *, sync_file, sync_folder, existing=False, count=4):
    """The writer of temporary files: new names each time, or one name again and again."""
    folder = disk.mountpoint
    save(folder / "unrelated.tmp", b"x", sync=True)
    if existing:
        with history.put(disk, "config", b"first" * 900):
            save(folder / "config", b"first" * 900, sync=True)
            fsync(folder)
    for number in range(count):
        name = "config" if existing else f"f{number}"
        data = b"%d" % number * 6000
        with history.put(disk, name, data):
            save(folder / "new.tmp", data, sync=sync_file)
            (folder / "new.tmp").rename(folder / name)
            if sync_folder:
                fsync(folder)
        save(folder / "unrelated.tmp", b"x", sync=True)


def sqlite(disk, history, *, journal, synchronous, count=6):
    """Commits, each of a row that is acknowledged."""
    path = disk.mountpoint / "shop.db"
    with closing(sqlite3.connect(path, isolation_level=None)) as database:
        database.execute(f"PRAGMA journal_mode = {journal}")
        database.execute(f"PRAGMA synchronous = {synchronous}")
        database.execute("CREATE TABLE items (key INTEGER PRIMARY KEY, value BLOB)")
        if synchronous == "OFF":
            save(disk.mountpoint / "unrelated.tmp", b"x", sync=True)
        for number in range(count):
            value = bytes([number]) * 3000
            with history.put(disk, number, value):
                database.execute("BEGIN IMMEDIATE")
                database.execute("INSERT INTO items VALUES (?, ?)", (number, value))
                database.execute("COMMIT")
            if synchronous == "OFF":
                save(disk.mountpoint / "unrelated.tmp", b"x", sync=True)


def lmdb_store(disk, history, *, count=6, **options):
    import lmdb

    with lmdb.open(str(disk.mountpoint / "store"), map_size=1 << 20, **options) as store:
        for number in range(count):
            key, value = b"k%d" % number, bytes([65 + number]) * 2000
            with history.put(disk, key, value), store.begin(write=True) as transaction:
                transaction.put(key, value)
            if options:
                save(disk.mountpoint / "unrelated.tmp", b"x", sync=True)


def read_lmdb(state):
    import lmdb

    folder = state.mountpoint / "store"
    if not (folder / "data.mdb").exists() or not (folder / "data.mdb").stat().st_size:
        return {}
    with lmdb.open(str(folder), map_size=1 << 20) as store, store.begin() as transaction:
        return {bytes(key): bytes(value) for key, value in transaction.cursor()}


RECORD = struct.Struct("<III")


def wal(disk, history, *, checksum, sync, count=6):
    """A write-ahead log by hand, in a file that has its space: records of key, value and, unless planted, a checksum."""
    path = disk.mountpoint / "wal"
    save(path, bytes(64 << 10), sync=True)
    fsync(disk.mountpoint)
    at = 0
    with path.open("r+b", buffering=0) as file:
        for number in range(count):
            value = bytes([65 + number]) * 9000
            with history.put(disk, number, value):
                record = RECORD.pack(number, len(value), zlib.crc32(value) if checksum else 0) + value
                os.pwrite(file.fileno(), record, at)
                at += len(record)
                if sync:
                    os.fdatasync(file.fileno())
            if not sync:
                save(disk.mountpoint / "unrelated.tmp", b"x", sync=True)


def read_wal(state):
    found = {}
    path = state.mountpoint / "wal"
    data = path.read_bytes() if path.exists() else b""
    while len(data) >= RECORD.size:
        key, length, checksum = RECORD.unpack_from(data)
        value = data[RECORD.size : RECORD.size + length]
        if len(value) < length or not length or (checksum and zlib.crc32(value) != checksum):
            break
        found[key] = value
        data = data[RECORD.size + length :]
    return found


def git(disk, history, *, fsync_objects, count=3):
    folder = disk.mountpoint / "repo"
    environment = {
        "PATH": os.environ["PATH"], "HOME": "/nonexistent", "GIT_CONFIG_NOSYSTEM": "1",
        "GIT_AUTHOR_NAME": "a", "GIT_AUTHOR_EMAIL": "a@b", "GIT_COMMITTER_NAME": "a", "GIT_COMMITTER_EMAIL": "a@b",
    }  # fmt: skip

    def run(*words):
        settings = ["-c", f"core.fsync={'all' if fsync_objects else 'none'}", "-c", "gc.auto=0"]
        subprocess.run(
            ["git", *settings, *words], cwd=folder, check=True, env=environment, capture_output=True
        )

    folder.mkdir()
    run("init", "-q")
    disk.sync()
    for number in range(count):
        (folder / "file").write_text(f"content {number}\n" * 50)
        with history.put(disk, "HEAD", f"commit {number}"):
            run("add", "file")
            run("commit", "-q", "-m", f"commit {number}")
        if not fsync_objects:
            save(disk.mountpoint / "unrelated.tmp", b"x", sync=True)


def read_git(state):
    folder = state.mountpoint / "repo"
    environment = {"PATH": os.environ["PATH"], "HOME": "/nonexistent", "GIT_CONFIG_NOSYSTEM": "1"}

    def run(*words):
        words = ["git", "-c", "safe.directory=*", *words]
        return subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True, check=False)

    check = run("fsck", "--full", "--strict")
    if check.returncode:
        raise oracles.Corrupt(f"git fsck: {(check.stderr or check.stdout).strip().splitlines()[0]}")
    log = run("log", "-1", "--format=%s")
    return {"HEAD": log.stdout.strip()} if not log.returncode else {}


@dataclass(frozen=True)
class Program:
    """What is known of a program.

    Attributes:
        run: Does it.
        oracle: Makes what judges it, of its history.
        must: Kinds of failure that have to be found.
        may: Kinds that are no surprise.
        filesystem: What it runs on.
        mount: Mount options.
        options: For `check`.
    """

    run: Callable
    oracle: Callable = oracles.Files
    must: frozenset = frozenset()
    may: frozenset = frozenset()
    filesystem: str = "ext4"
    mount: str = ""
    options: dict = field(default_factory=dict)

    def record(self, dm_crash):
        """Record it; return the oracle."""
        history = oracles.History()
        with dm_crash.record(
            size=SIZES[self.filesystem], filesystem=self.filesystem, mount_options=self.mount
        ) as disk:
            self.run(disk, history)
        return self.oracle(history)


def _sqlite(journal, synchronous, must=(), may=()):
    return Program(
        lambda disk, history: sqlite(disk, history, journal=journal, synchronous=synchronous),
        lambda history: oracles.SQLite("shop.db", "SELECT key, value FROM items", history),
        frozenset(must),
        frozenset(may),
    )


def _replace(filesystem="ext4", mount="", must=(), may=(), **how):
    return Program(
        lambda disk, history: replace(disk, history, **how),
        must=frozenset(must), may=frozenset(may), filesystem=filesystem, mount=mount,
    )  # fmt: skip


def _lmdb(must=(), may=(), **options):
    return Program(
        lambda disk, history: lmdb_store(disk, history, **options),
        lambda history: oracles.KeyValue(history, read_lmdb),
        frozenset(must),
        frozenset(may),
    )


def _wal(must=(), may=(), **how):
    return Program(
        lambda disk, history: wal(disk, history, **how),
        lambda history: oracles.KeyValue(history, read_wal),
        frozenset(must),
        frozenset(may),
    )


def _git(must=(), may=(), **how):
    return Program(
        lambda disk, history: git(disk, history, **how),
        lambda history: oracles.KeyValue(history, read_git),
        frozenset(must),
        frozenset(may),
    )


PROGRAMS = {
    "replace": _replace(sync_file=True, sync_folder=True),
    "replace-xfs": _replace("xfs", sync_file=True, sync_folder=True),
    "replace-btrfs": _replace("btrfs", sync_file=True, sync_folder=True),
    "replace-no-fsync": _replace(sync_file=False, sync_folder=False, must=(D, I)),
    "replace-no-folder": _replace(sync_file=True, sync_folder=False, existing=True, must=(D,)),
    "replace-existing": _replace(sync_file=True, sync_folder=True, existing=True),
    "replace-no-barrier": _replace(
        mount="barrier=0", sync_file=True, sync_folder=True, must=(D,), may=(I, "fs")
    ),
    "replace-no-alloc": _replace(
        mount="noauto_da_alloc", sync_file=False, sync_folder=False, existing=True, must=(I,), may=(D,)
    ),
    "replace-ext2": _replace("ext2", sync_file=True, sync_folder=False, must=(D,), may=(I,)),
    "sqlite-delete-off": _sqlite("DELETE", "OFF", must=(D,), may=(I,)),
    "sqlite-delete-full": _sqlite("DELETE", "FULL", may=(D,)),
    "sqlite-delete-extra": _sqlite("DELETE", "EXTRA"),
    "sqlite-truncate-full": _sqlite("TRUNCATE", "FULL"),
    "sqlite-persist-full": _sqlite("PERSIST", "FULL"),
    "sqlite-memory-full": _sqlite("MEMORY", "FULL", must=(I,), may=(D,)),
    "sqlite-wal-normal": _sqlite("WAL", "NORMAL", must=(D,)),
    "sqlite-wal-full": _sqlite("WAL", "FULL"),
    "lmdb": _lmdb(),
    "lmdb-nometasync": _lmdb(metasync=False, must=(D,)),
    "lmdb-nosync-writemap": _lmdb(sync=False, writemap=True, must=(D,), may=(I,)),
    "wal": _wal(checksum=True, sync=True),
    "wal-no-sync": _wal(checksum=True, sync=False, must=(D,)),
    "wal-no-checksum": _wal(checksum=False, sync=True, must=(I,)),
    "git": _git(fsync_objects=True, may=(D,)),
    "git-no-fsync": _git(fsync_objects=False, must=(D,), may=(I,)),
}
