"""Oracles of the programs of tests/tools/capture_crash.py, which read the image by debugfs, with no mount.

As a command: PROGRAM IMAGE ACKNOWLEDGED [MOUNTPOINT]; where the image is mounted, it is read there.
"""

import hashlib
import os
import re
import sqlite3
import struct
import subprocess
import sys
import tempfile
from contextlib import closing
from pathlib import Path


def rename(folder, last):
    for number in range(12):
        data = read(folder / f"f{number}")
        if data is None and number <= last:
            return f"durability: f{number} is gone"
        if data is not None and data != f"value-{number}".encode() * 300:
            return f"integrity: f{number} has {len(data)} bytes"
    return ""


def replaced(folder, last):
    data = read(folder / "cur")
    if last < 0:
        return ""
    if data is None or not re.fullmatch(rb"v-(none|[0-9]+)", data):
        return f"integrity: cur is {data!r}"
    if data == b"v-none" or int(data[2:]) < last:
        return f"durability: cur is {data!r}, {last} was acknowledged"
    return ""


def records(folder, last):
    data, count = read(folder / "wal") or b"", 0
    while len(data) >= 36:
        (length,) = struct.unpack_from("<I", data)
        record = data[36 : 36 + length]
        if hashlib.sha256(record).digest() != data[4:36] or not record.startswith(f"rec-{count}".encode()):
            break
        count, data = count + 1, data[36 + length :]
    return f"durability: {count} records, {last + 1} acknowledged" if count <= last else ""


def database(folder, last):
    try:
        with closing(sqlite3.connect(folder / "db")) as connection:
            ((said,), *_) = connection.execute("pragma integrity_check")
            if said != "ok":
                return f"integrity: {said}"
            rows = dict(connection.execute("select k, v from t"))
    except sqlite3.DatabaseError as error:
        return f"integrity: {error}"
    lost = [number for number in range(last + 1) if rows.get(number) != f"v{number}" * 50]
    return f"durability: row {lost[0]} is gone" if lost else ""


def read(path):
    return path.read_bytes() if path.is_file() else None


PROGRAMS = {"rename": rename, "replaced": replaced, "records": records, "database": database}


def judge(program, image, acknowledged, mountpoint=""):
    """Return what is wrong with an image; "" for nothing."""
    if program == "database" and "begin" not in acknowledged:
        return ""
    last = max((int(name.partition("-")[2]) for name in acknowledged if name.startswith("put-")), default=-1)
    if mountpoint:
        return PROGRAMS[program](Path(mountpoint), last)
    with tempfile.TemporaryDirectory(dir=Path(image).parent) as folder:
        subprocess.run(
            ["debugfs", "-R", f"rdump / {folder}", image], capture_output=True, check=True,
            env={**os.environ, "PATH": os.environ["PATH"] + ":/usr/sbin:/sbin"},
        )  # fmt: skip
        return PROGRAMS[program](Path(folder), last)


if __name__ == "__main__":
    said = judge(sys.argv[1], sys.argv[2], [name for name in sys.argv[3].split(",") if name], *sys.argv[4:])
    if said:
        print(said)
        sys.exit(1)
