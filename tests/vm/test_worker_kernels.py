"""Every guest kernel does what a test needs of it."""

from __future__ import annotations

import hashlib
import json
import os
import signal
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from dmvm import machine

if TYPE_CHECKING:
    pass
from worker_tools import PYTHON, Worker

EVERY_KERNEL = ("uml-6.1", "uml-6.12", "uml-7.2", "debian-6.1", "debian-6.12")

EVERYTHING = r"""
import ctypes, hashlib, json, os, pathlib, subprocess, sys
libc = ctypes.CDLL(None, use_errno=True)
exchange = pathlib.Path(os.environ["PYTEST_DM_EXCHANGE"])
data = sys.stdin.buffer.read()
(exchange / "digest").write_text(hashlib.sha256(data).hexdigest())
(exchange / "large").write_bytes(data)
if sys.argv[2] != "landlock":  # which cannot tell files apart for chmod, and so allows it nowhere
    os.chmod(exchange / "large", 0o640)
os.rename(exchange / "large", exchange / "renamed")

def loads(module):
    return subprocess.run(["/run/pytest-dm/modprobe", module], capture_output=True).returncode == 0

def refused(action, *args):
    try:
        action(*args)
    except OSError:
        return True
    return False

def mount(source, target, kind, flags, options):
    if libc.mount(source.encode(), target.encode(), kind.encode(), ctypes.c_ulong(flags), options.encode()) < 0:
        raise OSError(ctypes.get_errno(), "mount")

victim = sys.argv[1]
os.mkdir("/mnt/raw")
modules = pathlib.Path("/lib/modules", os.uname().release)
outcome = {"remounted": not refused(mount, "none", str(modules), "", 32, "")}
outcome["leak"] = refused((modules / "leak").write_text, "guest")
roots = [""]
if os.environ["PYTEST_DM_GUEST"].startswith("uml"):
    outcome["mounted"] = not refused(mount, "none", "/mnt/raw", "hostfs", 0, "/")
    roots.insert(0, "/mnt/raw")  # 9p: the kernel itself lets nobody mount a tag that is mounted
for root in roots:
    file = pathlib.Path(root + victim)
    outcome[f"write{root}"] = refused(file.write_text, "guest")
    outcome[f"chmod{root}"] = refused(file.chmod, 0o777)
    outcome[f"unlink{root}"] = refused(file.unlink)
outcome["modules"] = {name: loads(name) for name in (
    "dm-dust", "dm-flakey", "dm-delay", "dm-log-writes", "dm-zero", "dm-crypt", "dm-thin-pool", "dm-raid", "dm-verity",
    "ext4", "xfs", "btrfs")}
outcome["targets"] = os.path.exists("/dev/mapper/control")
outcome["up"] = pathlib.Path("/sys/class/net/lo/flags").read_text().strip()
outcome["free"] = os.statvfs("/tmp").f_bavail * 4096 >> 20
print(json.dumps(outcome))
print("done", file=sys.stderr)
sys.exit(42)
"""


@pytest.mark.parametrize("kernel", EVERY_KERNEL)
def test_every_kernel_does_it_all(worker: Worker, kernel: str) -> None:
    victim = Path("/var/tmp") / f"pytest-dm-victim-{os.getpid()}"
    victim.write_text("the host's")
    victim.chmod(0o600)
    before = victim.stat()
    data = os.urandom(100_000)
    try:
        status, out, err = worker.run(
            PYTHON,
            "-c",
            EVERYTHING,
            str(victim),
            machine.probe_guard().split()[0],
            stdin=data,
            timeout=120,
            options=("--kernel", kernel),
        )
        assert (status, err) == (42, b"done\n")
        outcome = json.loads(out)
        assert outcome["remounted"], "the attack is no attack any more"
        assert outcome["leak"]
        if kernel.startswith("uml"):
            assert outcome["mounted"], "the attack is no attack any more"
            assert all(outcome[f"{verb}/mnt/raw"] for verb in ("write", "chmod", "unlink")), outcome
        assert not any(outcome[verb] for verb in ("write", "chmod", "unlink")), "the overlay is not writable"
        assert victim.read_text() == "the host's"
        after = victim.stat()
        assert (after.st_mode, after.st_mtime_ns) == (before.st_mode, before.st_mtime_ns)
    finally:
        victim.unlink()
    assert [name for name, there in outcome["modules"].items() if not there] == []
    assert outcome["targets"]
    assert int(outcome["up"], 16) & 1
    assert outcome["free"] > 300
    assert (worker.exchange / "digest").read_text() == hashlib.sha256(data).hexdigest()
    assert (worker.exchange / "renamed").read_bytes() == data
    assert (worker.exchange / "renamed").stat().st_mode & 0o777 == 0o640
    worker.assert_nothing_left("digest", "renamed")


@pytest.mark.parametrize("kernel", EVERY_KERNEL[1:])
def test_every_kernel_tells_its_panic(worker: Worker, kernel: str) -> None:
    script = "echo before; sleep 0.5; echo c > /proc/sysrq-trigger; sleep 100"
    status, out, _ = worker.run("sh", "-c", script, timeout=120, options=("--kernel", kernel))
    assert (status, out) == (125, b"before\n")
    assert worker.lost["reason"].startswith("Kernel panic - not syncing: ")
    assert "Call Trace" in worker.lost["console_tail"]
    worker.assert_nothing_left()


def test_a_killed_qemu_is_told(worker: Worker) -> None:
    process = worker.start(
        "sh", "-c", "touch $PYTEST_DM_EXCHANGE/up; sleep 100", options=("--kernel", "debian-6.1")
    )
    worker.wait_for("up")
    qemu = next(pid for pid, command in worker.processes().items() if command.startswith("/usr/bin/qemu"))
    os.kill(qemu, signal.SIGKILL)
    assert process.wait(20) == 125
    assert "killed by signal 9" in worker.lost["reason"]
    worker.assert_nothing_left("up")
