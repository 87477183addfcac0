"""Record the logs of tests/data/crash: run as root on a dm kernel, with the folder to write to as argument.

Each is a small program on a fresh ext4 of 64 MiB, from mkfs to unmount, through dm-log-writes, with a mark after each update that
it acknowledges. Which are correct and which are not: `tests/crash/test_programs.py`.
"""

from __future__ import annotations

import hashlib
import lzma
import os
import random
import sqlite3
import struct
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from dmcore import targets
from dmcore.formats.log_index import LogIndex
from dmcore.kernel.control import Control
from dmcore.kernel.device import Device
from dmcore.kernel.loop import LoopDevice
from dmcore.owner import Owner
from dmcore.table import Table
from dmcore.targets.log_writes import Mark

UPDATES = 12
Say = Callable[[str], None]


def save(path: Path, data: bytes, mode: str = "wb") -> None:
    with path.open(mode) as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def sync_folder(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    os.fsync(fd)
    os.close(fd)


def rename(folder: Path, say: Say, *, sync: bool = True) -> None:
    """New files by rename; the bad one does not sync them, and another file's fsync commits the journal."""
    for number in range(UPDATES):
        draft = folder / f"t{number}"
        with draft.open("wb") as file:
            file.write(f"value-{number}".encode() * 300)
            file.flush()
            if sync:
                os.fsync(file.fileno())
        draft.rename(folder / f"f{number}")
        if sync:
            sync_folder(folder)
        else:
            save(folder / f"other{number}", b"x")
        say(f"put-{number}")


def rename_without_folder(folder: Path, say: Say) -> None:
    """One file replaced again and again; the folder is not synced."""
    save(folder / "cur", b"v-none")
    sync_folder(folder)
    for number in range(UPDATES):
        save(folder / "tmp", f"v-{number}".encode())
        (folder / "tmp").rename(folder / "cur")
        say(f"put-{number}")


def append(folder: Path, say: Say, *, sync: bool = True) -> None:
    """A log of checksummed records; the bad one does not sync it."""
    fd = os.open(folder / "wal", os.O_RDWR | os.O_CREAT | os.O_APPEND)
    os.fsync(fd)
    sync_folder(folder)
    for number in range(UPDATES):
        record = f"rec-{number}".encode().ljust(900, b".")
        os.write(fd, struct.pack("<I", len(record)) + hashlib.sha256(record).digest() + record)
        if sync:
            os.fdatasync(fd)
        say(f"put-{number}")
        if not sync and number % 4 == 3:
            save(folder / f"o{number}", b"x")
    os.close(fd)


def database(folder: Path, say: Say, *, synchronous: str) -> None:
    """SQLite with a rollback journal."""
    connection = sqlite3.connect(folder / "db", isolation_level=None)
    connection.execute("pragma journal_mode=delete")
    connection.execute(f"pragma synchronous={synchronous}")
    connection.execute("create table t(k integer primary key, v)")
    os.sync()
    say("begin")
    for number in range(10):
        connection.execute("insert into t values(?, ?)", (number, f"v{number}" * 50))
        say(f"put-{number}")
    connection.close()


class Load:
    """Creates, writes, renames, links, truncates, deletes (also of open files) and syncs at random places."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.rng = random.Random(5)
        self.files: list[Path] = []
        self.held: list[object] = []

    def data(self, most: int) -> bytes:
        return bytes([self.rng.randrange(256)]) * self.rng.randrange(most)

    def change(self, kind: str, path: Path) -> None:
        if kind == "w":
            with path.open("r+b") as file:
                file.seek(self.rng.randrange(8000))
                file.write(self.data(9000))
        elif kind == "t":
            os.truncate(path, self.rng.randrange(6000))
        elif kind == "s":
            save(path, b"sync", "ab")

    def step(self, number: int) -> None:
        kind = self.rng.choice("cccwwrudtsml")
        if kind == "d":
            (self.folder / f"d{number}").mkdir()
        elif kind == "c" or not self.files:
            self.files.append(self.folder / f"s{number}")
            self.files[-1].write_bytes(self.data(20000))
        elif kind == "l":
            (self.folder / f"l{number}").hardlink_to(self.rng.choice(self.files))
        elif kind in "wts":
            self.change(kind, self.rng.choice(self.files))
        else:
            self.leave(kind, number)

    def leave(self, kind: str, number: int) -> None:
        path = self.files.pop(self.rng.randrange(len(self.files)))
        if kind == "r":
            self.files.append(path.rename(self.folder / f"r{number}"))
            return
        if kind == "m":
            self.held.append(path.open("rb"))
        path.unlink()


def stress(folder: Path, say: Say) -> None:
    load = Load(folder)
    for number in range(300):
        load.step(number)
        if number % 40 == 0:
            os.sync()
            say(f"sync-{number}")
    load.held.clear()


PROGRAMS: dict[str, Callable[[Path, Say], None]] = {
    "rename": rename,
    "renamebad": lambda folder, say: rename(folder, say, sync=False),
    "renamenodir": rename_without_folder,
    "wal": append,
    "walbad": lambda folder, say: append(folder, say, sync=False),
    "sqlite-delete-full": lambda folder, say: database(folder, say, synchronous="full"),
    "sqlite-delete-extra": lambda folder, say: database(folder, say, synchronous="extra"),
    "sqlite-delete-off": lambda folder, say: database(folder, say, synchronous="off"),
    "stress": stress,
}


def record(name: str, work: Path, out: Path) -> None:
    for file, size in (("data", 64), ("log", 400)):
        with (work / f"{name}-{file}").open("wb") as made:
            made.truncate(size << 20)
    mountpoint = work / f"{name}-mnt"
    mountpoint.mkdir()
    with (
        Control() as control,
        LoopDevice.attach(work / f"{name}-data", block_size=512) as data,
        LoopDevice.attach(work / f"{name}-log", block_size=512) as log,
    ):
        label, uuid = Owner.current().name("capture")
        table = Table.of(targets.LogWrites(dev=data.ref, log=log.ref), data.size // 512)
        with Device.create(control, label, table, uuid=uuid) as device:
            subprocess.run(["mkfs.ext4", "-q", device.path], check=True)
            subprocess.run(["mount", device.path, mountpoint], check=True)
            PROGRAMS[name](mountpoint, lambda text: device.send(Mark(text)))
            subprocess.run(["umount", mountpoint], check=True)
    with LogIndex(work / f"{name}-log") as index:
        last = index[-1]
        raw = index.read(0, last.data_offset)
    out.write_bytes(lzma.compress(raw, preset=9))


def main() -> None:
    out = Path(sys.argv[1])
    with tempfile.TemporaryDirectory(dir="/dev/shm") as work:
        for name in PROGRAMS:
            record(name, Path(work), out / f"ext4-{name}.log.xz")


if __name__ == "__main__":
    main()
