"""`python -m dmvm.worker`: one command in one guest, its streams, its end, and what is left when something dies."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import select
import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from dmvm import machine

if TYPE_CHECKING:
    from collections.abc import Iterator

KERNEL = "uml-6.1"
PYTHON = os.path.realpath(sys.executable)


class Worker:
    """Starts workers, marked in their environment so that what they leave can be found."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.exchange = folder / "exchange"
        self.exchange.mkdir()
        self.mark = f"worker-{uuid.uuid4().hex}"
        self.started: list[subprocess.Popen[bytes]] = []
        self.environment = {**os.environ, "DMVM_TEST_MARK": self.mark, "TMPDIR": str(folder)}

    def start(self, *command: str, options: tuple[str, ...] = (), **kwargs) -> subprocess.Popen[bytes]:
        exchange = () if "--exchange-root" in options else ("--exchange", str(self.exchange))
        argv = [sys.executable, "-m", "dmvm.worker", "--kernel", KERNEL, *exchange, *options, "--", *command]
        streams = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        process = subprocess.Popen(argv, **{**streams, "env": self.environment, **kwargs})
        self.started.append(process)
        return process

    def run(
        self, *command: str, stdin: bytes = b"", timeout: float = 60, **kwargs
    ) -> tuple[int, bytes, bytes]:
        process = self.start(*command, **kwargs)
        out, err = process.communicate(stdin, timeout)
        return process.returncode, out, err

    def python(self, code: str, **kwargs) -> tuple[int, bytes, bytes]:
        return self.run(PYTHON, "-c", code, **kwargs)

    @property
    def lost(self) -> dict[str, str]:
        return json.loads((self.exchange / "lost.json").read_text())

    def processes(self) -> dict[int, str]:
        found = {}
        for entry in Path("/proc").iterdir():
            with contextlib.suppress(OSError):
                if entry.name.isdigit() and self.mark.encode() in (entry / "environ").read_bytes():
                    found[int(entry.name)] = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()
        return found

    def machine(self) -> int:
        return min(pid for pid, command in self.processes().items() if "linux" in command.split(" ")[0])

    def wait_for(self, name: str, timeout: float = 30) -> None:
        deadline = time.monotonic() + timeout
        while not list(self.folder.glob(f"**/{name}")):
            assert time.monotonic() < deadline, f"{name} never came"
            time.sleep(0.02)

    def assert_nothing_left(self, *kept: str) -> None:
        deadline = time.monotonic() + 10
        while (left := self.processes()) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert left == {}
        names = {"console.log", "lost.json", *kept}
        while (
            files := {path.name for path in self.exchange.iterdir()} - names
        ) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert files == set()
        assert {path.name for path in self.folder.iterdir()} <= {"exchange"}


@pytest.fixture
def worker(tmp_path: Path) -> Iterator[Worker]:
    made = Worker(tmp_path)
    yield made
    for pid in made.processes():
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    for process in made.started:
        process.wait(10)
        for stream in (process.stdin, process.stdout, process.stderr):
            with contextlib.suppress(BrokenPipeError):
                if stream is not None:
                    stream.close()


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


def test_a_panic_is_told_with_its_console(worker: Worker) -> None:
    code = (
        "import os, time; os.write(int(os.environ['PYTEST_DM_CTL']), b'start t::x 60\\n'); time.sleep(.5)\n"
    )
    code += "open('/proc/sysrq-trigger', 'w').write('c')"
    status, _, _ = worker.python(code)
    assert status == 125
    lost = worker.lost
    assert lost["reason"] == "Kernel panic - not syncing: sysrq triggered crash"
    assert lost["test"] == "t::x"
    assert lost["kernel"] == KERNEL
    assert "Call Trace" in lost["console_tail"]
    worker.assert_nothing_left()


def test_a_test_over_its_deadline_ends_the_guest(worker: Worker) -> None:
    code = (
        "import os, time; os.write(int(os.environ['PYTEST_DM_CTL']), b'start t::slow 1.5\\n'); time.sleep(60)"
    )
    began = time.monotonic()
    assert worker.python(code)[0] == 125
    assert time.monotonic() - began < 30
    assert worker.lost["reason"] == "t::slow ran longer than 1.5 s"
    assert worker.lost["test"] == "t::slow"
    worker.assert_nothing_left()


def test_a_test_that_ended_has_no_deadline(worker: Worker) -> None:
    code = "import os, time; m = int(os.environ['PYTEST_DM_CTL']); os.write(m, b'start t 1\\nend t\\n'); time.sleep(2)"
    assert worker.python(code)[0] == 0


def test_a_deadline_holds_when_the_guest_is_frozen(worker: Worker) -> None:
    code = """if 1:
        import os, pathlib, time
        os.write(int(os.environ["PYTEST_DM_CTL"]), b"start t::frozen 3\\n")
        pathlib.Path(os.environ["PYTEST_DM_EXCHANGE"], "up").touch()
        time.sleep(60)
    """
    process = worker.start(PYTHON, "-c", code)
    worker.wait_for("up")
    os.kill(worker.machine(), signal.SIGSTOP)
    assert process.wait(30) == 125
    assert worker.lost["reason"] == "t::frozen ran longer than 3 s"
    worker.assert_nothing_left("up")


def test_a_silent_guest_is_given_up(worker: Worker) -> None:
    worker.environment["PYTEST_DM_SLOW"] = "0.2"
    process = worker.start("sleep", "100", options=("--boot-seconds", "30"))
    deadline = time.monotonic() + 30
    while "dmvm-init: ready" not in (
        (worker.exchange / "console.log").read_text() if (worker.exchange / "console.log").exists() else ""
    ):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    time.sleep(0.5)
    os.kill(worker.machine(), signal.SIGSTOP)
    assert process.wait(40) == 125
    assert "did not answer for 12 s" in worker.lost["reason"]
    worker.assert_nothing_left()


def test_out_of_memory_is_told(worker: Worker) -> None:
    code = "hoard = []\nwhile True: hoard.append(bytearray(b'x' * (8 << 20)))"
    status, _, err = worker.python(code, options=("--memory", "256"))
    assert status == 128 + signal.SIGKILL, err
    assert "SIGKILL" in worker.lost["reason"]
    assert "Out of memory: Killed process" in worker.lost["reason"]
    worker.assert_nothing_left()


def test_a_killed_machine_is_told(worker: Worker) -> None:
    process = worker.start("sh", "-c", "touch $PYTEST_DM_EXCHANGE/up; sleep 100")
    worker.wait_for("up")
    os.kill(worker.machine(), signal.SIGKILL)
    assert process.wait(20) == 125
    assert "killed by signal 9" in worker.lost["reason"]
    worker.assert_nothing_left("up")


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGHUP])
def test_ending_the_worker_ends_the_guest(worker: Worker, number: signal.Signals) -> None:
    process = worker.start("sh", "-c", "touch $PYTEST_DM_EXCHANGE/up; sleep 100")
    worker.wait_for("up")
    assert len(worker.processes()) >= 3
    process.send_signal(number)
    assert process.wait(20) == (-number if number == signal.SIGKILL else 128 + number)
    worker.assert_nothing_left("up")


@pytest.mark.parametrize("kernel", ["uml-6.1", "uml-7.2"])
def test_a_killed_keeper_leaves_nothing_either(worker: Worker, kernel: str) -> None:
    argv = ("sh", "-c", "touch $PYTEST_DM_EXCHANGE/up; sleep 100")
    process = worker.start(*argv, options=("--kernel", kernel))
    worker.wait_for("up")
    keeper = next(pid for pid, command in worker.processes().items() if "launch.py" in command)
    os.kill(keeper, signal.SIGKILL)
    assert process.wait(20) == 125
    assert "lost its keeper to signal 9" in worker.lost["reason"]
    worker.assert_nothing_left("up")


def test_a_test_that_floods_its_output_still_has_a_deadline(worker: Worker) -> None:
    code = "import os\nos.write(int(os.environ['PYTEST_DM_CTL']), b'start t::flood 1\\n')\nwhile True: os.write(1, b'x' * 9999)"
    process = worker.start(PYTHON, "-c", code, stdout=subprocess.DEVNULL)
    assert process.wait(30) == 125
    assert worker.lost["reason"] == "t::flood ran longer than 1 s"


def test_nonsense_on_the_mark_line_is_told(worker: Worker) -> None:
    code = "import os, time; os.write(int(os.environ['PYTEST_DM_CTL']), b'hello\\n'); time.sleep(60)"
    assert worker.python(code)[0] == 125
    assert "not a test mark: b'hello'" in worker.lost["reason"]


def test_ending_the_worker_while_the_guest_boots_leaves_nothing(worker: Worker) -> None:
    for number in (signal.SIGTERM, signal.SIGKILL):
        process = worker.start("sleep", "100")
        worker.wait_for("console.log")
        process.send_signal(number)
        assert process.wait(20) in {125, -signal.SIGKILL}
        worker.assert_nothing_left()
        (worker.exchange / "console.log").unlink()


def test_the_end_of_input_ends_a_worker_of_xdist(worker: Worker) -> None:
    root = worker.folder / "root"
    process = worker.start(
        "sh", "-c", "touch $PYTEST_DM_EXCHANGE/up; sleep 100", options=("--exchange-root", str(root))
    )
    worker.wait_for("up")
    assert (root / str(process.pid) / "up").exists()
    process.send_signal(signal.SIGINT)
    assert process.stdin is not None
    process.stdin.close()
    assert process.wait(20) == 0
    assert (root / str(process.pid) / "console.log").exists()


@pytest.mark.parametrize("moment", ["up", "console.log"])
def test_the_death_of_the_parent_removes_the_exchange_root(worker: Worker, moment: str) -> None:
    root = worker.folder / "root"
    command = [sys.executable, "-m", "dmvm.worker", "--kernel", KERNEL, "--exchange-root", str(root)]
    command += ["--", "sh", "-c", "touch $PYTEST_DM_EXCHANGE/up; sleep 100"]
    code = f"import subprocess; p = subprocess.Popen({command!r}, stdin=subprocess.PIPE); p.wait()"
    parent = subprocess.Popen([sys.executable, "-c", code], env=worker.environment, start_new_session=True)
    worker.wait_for(moment)
    parent.kill()
    parent.wait()
    deadline = time.monotonic() + 20
    while root.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    worker.assert_nothing_left()


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
