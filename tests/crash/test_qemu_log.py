"""A log that QEMU's blklogwrites writes: entries in order of completion, no marks. Written through its NBD export."""

from __future__ import annotations

import shutil
import socket
import struct
import subprocess
import time

import pytest

from dmcore.cli import main as dmcore
from dmcore.crash.epochs import timeline
from dmcore.crash.explore import explore
from dmcore.crash.log import CrashLog
from dmcore.crash.oracles import CallableOracle
from dmcore.formats.log_writes import LogFlag

SIZE = 1 << 20
WRITE, FLUSH, TRIM = 1, 3, 4
FUA = 1


class Nbd:
    """As much of an NBD client as it takes to write (doc/proto.md of the nbd project)."""

    def __init__(self, path):
        self.line = socket.socket(socket.AF_UNIX)
        self.line.settimeout(30)
        deadline = time.monotonic() + 30
        while True:
            try:
                self.line.connect(str(path))
                break
            except (FileNotFoundError, ConnectionRefusedError):
                assert time.monotonic() < deadline
                time.sleep(0.05)
        self.take(18)
        self.line.sendall(struct.pack(">IQII", 3, 0x49484156454F5054, 1, 1) + b"x")
        self.size, self.flags = struct.unpack(">QH", self.take(10))

    def take(self, count):
        data = b""
        while len(data) < count:
            more = self.line.recv(count - len(data))
            assert more
            data += more
        return data

    def do(self, command, offset=0, length=0, data=b"", flags=0):
        self.line.sendall(
            struct.pack(">IHHQQI", 0x25609513, flags, command, 7, offset, length or len(data)) + data
        )
        assert struct.unpack(">IIQ", self.take(16)) == (0x67446698, 0, 7)


@pytest.fixture
def recorded(tmp_path):
    daemon = shutil.which("qemu-storage-daemon")
    if daemon is None:
        pytest.skip("needs qemu-storage-daemon (apt-get install qemu-system-x86)")
    for name in ("data", "log"):
        with (tmp_path / name).open("wb") as file:
            file.truncate(SIZE if name == "data" else 8 << 20)
    process = subprocess.Popen(
        [
            daemon,
            "--blockdev", f"driver=file,node-name=data,filename={tmp_path}/data,discard=unmap",
            "--blockdev", f"driver=file,node-name=log,filename={tmp_path}/log",
            "--blockdev", "driver=blklogwrites,node-name=logged,file=data,log=log",
            "--nbd-server", f"addr.type=unix,addr.path={tmp_path}/nbd",
            "--export", "type=nbd,id=x,name=x,node-name=logged,writable=on",
        ]
    )  # fmt: skip
    try:
        client = Nbd(tmp_path / "nbd")
        assert client.size == SIZE
        for number in range(1, 6):
            client.do(WRITE, 4096 * number, data=bytes([number]) * 4096)
            if number != 3:  # the bug: no flush between the value and the pointer to it
                client.do(FLUSH)
            client.do(WRITE, 0, data=bytes([number]) * 512)
            client.do(FLUSH)
        client.do(WRITE, 0, data=bytes([5]) * 512, flags=FUA)
        client.do(TRIM, 8192, 4096)
        client.do(FLUSH)
        client.line.close()
    finally:
        process.terminate()
        process.wait(30)
    return tmp_path


def test_it_replays_to_the_very_device(recorded):
    assert dmcore(["log", "replay", str(recorded / "log"), str(recorded / "again")]) == 0
    with (recorded / "again").open("r+b") as file:
        file.truncate(SIZE)
    assert (recorded / "again").read_bytes() == (recorded / "data").read_bytes()


def test_it_is_explored_in_its_order(recorded):
    def judge(state):
        data = state.image.read_bytes()
        pointer = data[0]
        value = data[4096 * pointer]
        return (
            f"integrity: {pointer} points to {value}" if pointer not in (0, value) and pointer != 2 else None
        )

    with CrashLog(recorded / "log", size=SIZE) as log:
        assert not any(log.index.flags(entry) & LogFlag.MARK for entry in range(len(log.index)))
        assert timeline(log).ambiguous == ()
        found = explore(log, oracle=CallableOracle(judge), torn=0, workers=0)
        (finding,) = found.findings
        assert finding.problem.reason == "integrity: 3 points to 0"
        assert "lost: write of 4096 bytes at 12288" in "\n".join(found.proofs[0].words)
        assert found.exhaustive
