"""`python -m dmvm.worker`: one command in one guest, its streams and its end."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    pass
from worker_tools import KERNEL, PYTHON, Worker


def test_the_guest_is_the_host_with_a_kernel_of_its_own(worker: Worker) -> None:
    code = """if 1:
        import json, os, stat, sys
        node = os.stat("/dev/mapper/control")
        print(json.dumps({
            "cwd": os.getcwd(), "uid": os.getuid(), "python": os.path.realpath(sys.executable), "pid": os.getpid(),
            "release": os.uname().release, "host": os.uname().nodename, "env": dict(os.environ), "umask": os.umask(0),
            "control": stat.S_ISCHR(node.st_mode), "loop": os.path.exists("/dev/loop-control"),
            "mounts": [line.split()[1:3] for line in open("/proc/self/mounts")], "self": os.readlink("/dev/fd"),
        }))
    """
    worker.environment |= {"FROM_HOST": "a b\nc", "LD_PRELOAD": "", "DISPLAY": ":0"}
    status, out, err = worker.run(sys.executable, "-c", code, cwd=worker.folder)
    assert (status, err) == (0, b"")
    seen = json.loads(out)
    assert seen["cwd"] == str(worker.folder)
    assert seen["uid"] == 0
    assert seen["python"] == PYTHON
    assert seen["release"].startswith("6.1.")
    assert seen["host"] == "dm-guest"
    assert seen["env"]["FROM_HOST"] == "a b\nc"
    assert seen["env"]["PYTEST_DM_GUEST"] == KERNEL
    assert seen["env"]["PYTEST_DM_EXCHANGE"] == str(worker.exchange)
    assert "DISPLAY" not in seen["env"]
    assert seen["control"]
    assert seen["loop"]
    assert ["/tmp", "tmpfs"] in seen["mounts"]
    assert ["/dev/shm", "tmpfs"] in seen["mounts"]
    assert ["/", "overlay"] in seen["mounts"]
    worker.assert_nothing_left()


def test_status_signal_and_missing_command(worker: Worker) -> None:
    assert worker.run("sh", "-c", "echo out; echo err >&2; exit 7") == (7, b"out\n", b"err\n")
    assert not (worker.exchange / "lost.json").exists()
    status, _, _ = worker.run("sh", "-c", "kill -SEGV $$")
    assert status == 128 + signal.SIGSEGV
    assert "SIGSEGV" in worker.lost["reason"]
    status, _, err = worker.run("no-such-command")
    assert status == 127
    assert b"no-such-command" in err


def test_bytes_pass_unchanged_both_ways_and_end(worker: Worker) -> None:
    data = bytes(range(256)) * 3000
    status, out, err = worker.run("sh", "-c", "tee /dev/stderr", stdin=data)
    assert (status, len(out), len(err)) == (0, len(data), len(data))
    assert out == data
    assert err == data


def test_much_output_is_fast(worker: Worker) -> None:
    began = time.monotonic()
    status, out, _ = worker.run("head", "-c", "20000000", "/dev/zero")
    assert (status, len(out)) == (0, 20_000_000)
    assert time.monotonic() - began < 20


def test_a_job_that_stops_reading_still_gets_its_signal(worker: Worker) -> None:
    code = """if 1:
        import pathlib, os, signal, sys, time
        signal.signal(signal.SIGINT, lambda *_: (sys.stdout.write("interrupted"), sys.exit(3)))
        pathlib.Path(os.environ["PYTEST_DM_EXCHANGE"], "up").touch()
        time.sleep(60)
    """
    process = worker.start(PYTHON, "-c", code)
    assert process.stdin is not None
    os.set_blocking(process.stdin.fileno(), False)
    worker.wait_for("up")
    with contextlib.suppress(BlockingIOError):
        while True:
            os.write(process.stdin.fileno(), b"x" * 65536)
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=20)
    assert (process.returncode, out) == (3, b"interrupted")


def test_a_reader_that_stops_reading_is_not_flooded(worker: Worker) -> None:
    code = """if 1:
        import os, pathlib
        total = 0
        while True:
            total += os.write(1, b"x" * 65536)
            pathlib.Path(os.environ["PYTEST_DM_EXCHANGE"], "total").write_text(str(total))
    """
    process = worker.start(PYTHON, "-c", code)
    worker.wait_for("total")
    time.sleep(3)
    first = int((worker.exchange / "total").read_text() or 0)
    time.sleep(1)
    assert int((worker.exchange / "total").read_text() or 0) == first < 8 << 20
    assert process.stdout is not None
    process.stdout.close()
    assert process.wait(20) == 128 + signal.SIGPIPE
    worker.assert_nothing_left("total")


def test_temporary_exchange_folders_go(worker: Worker) -> None:
    argv = [sys.executable, "-m", "dmvm.worker", "--kernel", KERNEL, "--", "sh", "-c"]
    done = subprocess.run(
        [*argv, "echo $PYTEST_DM_EXCHANGE; touch $PYTEST_DM_EXCHANGE/x"],
        env=worker.environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert Path(done.stdout.strip()).parent == worker.folder
    worker.assert_nothing_left()


def test_two_workers_at_once(worker: Worker) -> None:
    processes = []
    for name in ("a", "b"):
        (worker.exchange / name).mkdir()
        argv = [sys.executable, "-m", "dmvm.worker", "--kernel", KERNEL]
        argv += ["--exchange", str(worker.exchange / name), "--", "sh", "-c", f"echo {name}"]
        processes.append(subprocess.Popen(argv, stdout=subprocess.PIPE, env=worker.environment))
    assert [process.communicate(timeout=60)[0] for process in processes] == [b"a\n", b"b\n"]


def test_modules_load_by_themselves(worker: Worker) -> None:
    script = "mkfs.ext4 -q -F /tmp/i 16M && mkdir /tmp/m && mount -o loop /tmp/i /tmp/m && grep /tmp/m /proc/mounts"
    status, out, err = worker.run("sh", "-c", script)
    assert status == 0, err
    assert b" ext4 " in out


def test_output_arrives_while_the_job_runs(worker: Worker) -> None:
    process = worker.start("sh", "-c", "echo first; read line; echo got $line")
    assert process.stdout is not None
    assert process.stdin is not None
    assert select.select([process.stdout], [], [], 30)[0]
    assert process.stdout.readline() == b"first\n"
    process.stdin.write(b"second\n")
    process.stdin.close()
    assert process.stdout.read() == b"got second\n"
    assert process.wait(20) == 0
