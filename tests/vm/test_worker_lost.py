"""A guest or a worker that dies: what is told, and what is left."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    pass
from worker_tools import KERNEL, PYTHON, Worker


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
