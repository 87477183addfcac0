"""Oracles of the programs of tests/tools/capture_crash.py: PROGRAM IMAGE ACKNOWLEDGED. Reads the image by debugfs, no mount."""

import hashlib
import os
import re
import sqlite3
import struct
import subprocess
import sys
import tempfile
from pathlib import Path

PROGRAM, IMAGE, NAMES = sys.argv[1:]
ACKNOWLEDGED = [name for name in NAMES.split(",") if name]
LAST = max((int(name.partition("-")[2]) for name in ACKNOWLEDGED if name.startswith("put-")), default=-1)


def rename(read):
    for number in range(12):
        data = read(f"f{number}")
        if data is None and number <= LAST:
            return f"durability: f{number} is gone"
        if data is not None and data != f"value-{number}".encode() * 300:
            return f"integrity: f{number} has {len(data)} bytes"
    return ""


def replaced(read):
    data = read("cur")
    if LAST < 0:
        return ""
    if data is None or not re.fullmatch(rb"v-(none|[0-9]+)", data):
        return f"integrity: cur is {data!r}"
    if data == b"v-none" or int(data[2:]) < LAST:
        return f"durability: cur is {data!r}, {LAST} was acknowledged"
    return ""


def records(read):
    data, count = read("wal") or b"", 0
    while len(data) >= 36:
        (length,) = struct.unpack_from("<I", data)
        record = data[36 : 36 + length]
        if hashlib.sha256(record).digest() != data[4:36] or not record.startswith(f"rec-{count}".encode()):
            break
        count, data = count + 1, data[36 + length :]
    return f"durability: {count} records, {LAST + 1} acknowledged" if count <= LAST else ""


def database(_read):
    if "begin" not in ACKNOWLEDGED:
        return ""
    try:
        connection = sqlite3.connect(FOLDER / "db")
        ((said,), *_) = connection.execute("pragma integrity_check")
        if said != "ok":
            return f"integrity: {said}"
        rows = dict(connection.execute("select k, v from t"))
    except sqlite3.DatabaseError as error:
        return f"integrity: {error}"
    lost = [number for number in range(LAST + 1) if rows.get(number) != f"v{number}" * 50]
    return f"durability: row {lost[0]} is gone" if lost else ""


with tempfile.TemporaryDirectory(dir=Path(IMAGE).parent) as folder:
    FOLDER = Path(folder)
    subprocess.run(
        ["debugfs", "-R", f"rdump / {folder}", IMAGE], capture_output=True, check=True,
        env={**os.environ, "PATH": os.environ["PATH"] + ":/usr/sbin:/sbin"},
    )  # fmt: skip
    judge = {"rename": rename, "replaced": replaced, "records": records, "database": database}[PROGRAM]
    said = judge(lambda name: (FOLDER / name).read_bytes() if (FOLDER / name).is_file() else None)
if said:
    print(said)
    sys.exit(1)
