"""`pytest --dm-vm` as a user runs it: everything plain pytest does, and guests that die."""

from __future__ import annotations

import os
import re
import signal
import time
from pathlib import Path

import pytest
from vm_session_tools import Session, junit

VM = ("--dm-vm=uml", "--dm-kernel=uml-6.1")

PLAIN = """
import os, pathlib, sys, warnings
import pytest

def test_kernel():
    assert os.uname().release.startswith("6.1.")
    assert os.getuid() == 0

def test_diff():
    print("printed by the test")
    print("on stderr", file=sys.stderr)
    assert {"a": 1, "b": [1, 2, 3]} == {"a": 1, "b": [1, 2, 4]}

def test_warns():
    warnings.warn("look at this", UserWarning)

@pytest.mark.skip(reason="not today")
def test_skipped(): ...

@pytest.mark.xfail(reason="known")
def test_xfail():
    assert 0

@pytest.mark.parametrize("value", ["a b", "c\\nd", "\\u00e9"])
def test_odd_ids(value): ...

def test_big_output():
    print("x" * 2_000_000)
    sys.stderr.write("y" * 300_000)

def test_environment():
    assert os.environ["FROM_THE_HOST"] == "yes"
    assert pathlib.Path.cwd() == pathlib.Path(os.environ["HOST_CWD"])
    assert pathlib.Path(__file__).exists()

def test_tmp_path(tmp_path):
    (tmp_path / "file").write_text("in the guest only")
"""


def test_reports_are_those_of_plain_pytest(session: Session) -> None:
    session.write("test_plain.py", PLAIN)
    out = session.run(
        *VM, "-ra", "--durations=2", "--color=yes", "--junitxml=out.xml", "test_plain.py",
        env={"FROM_THE_HOST": "yes", "HOST_CWD": str(session.folder)},
    )  # fmt: skip
    assert session.status == 1, out
    assert session.counts == {"failed": 1, "passed": 8, "skipped": 1, "xfailed": 1, "warning": 1}, out
    assert "uml-6.1 (uml)" in out
    assert "printed by the test" in out
    assert "on stderr" in out
    assert "look at this" in out
    assert "SKIPPED" in out
    assert "not today" in out
    assert "\x1b[31m" in out
    assert "Differing items" in out
    assert "slowest 2 durations" in out
    cases = junit(session.folder / "out.xml")
    assert len(cases) == 11
    assert cases["test_diff"].find("failure") is not None
    session.assert_nothing_left()


def test_selection_stop_and_last_failed(session: Session) -> None:
    session.write(
        "test_many.py",
        "import pytest\n\n@pytest.mark.parametrize('n', range(6))\ndef test_n(n):\n    assert n != 2\n",
    )
    out = session.run(*VM, "-k", "1 or 3", "test_many.py")
    assert session.counts == {"passed": 2}, out
    out = session.run(*VM, "-x", "-p", "cacheprovider", "test_many.py", "--lf")
    assert session.counts["failed"] == 1
    assert "stopping after 1 failures" in out
    out = session.run(*VM, "-p", "cacheprovider", "--lf", "test_many.py")
    assert session.counts == {"failed": 1}, out
    session.assert_nothing_left()


DYING = """
import os, pathlib, time

def test_before(): ...

def test_panic():
    os.sync()
    pathlib.Path("/proc/sysrq-trigger").write_text("c")
    time.sleep(60)

def test_between(): ...

def test_hang():
    time.sleep(1000)

def test_after(): ...
"""


def test_a_panic_and_a_hang_cost_their_tests_only(session: Session) -> None:
    session.write("test_dying.py", DYING)
    out = session.run(*VM, "--dm-timeout=6", "--junitxml=out.xml", "test_dying.py")
    assert session.counts == {"failed": 2, "passed": 3}, out
    assert "panic" in out.lower()
    assert "sysrq" in out.lower()
    assert "console of the lost guest" in out
    assert "test_hang" in out
    assert "6 s" in out
    cases = junit(session.folder / "out.xml")
    for name in ("test_panic", "test_hang"):
        failure = cases[name].find("failure")
        assert failure is not None
        assert "The guest (uml-6.1) was lost" in (failure.get("message") or "") + (failure.text or "")
    assert cases["test_after"].find("failure") is None
    session.assert_nothing_left()


def test_the_same_on_qemu(session: Session) -> None:
    session.write("test_dying.py", DYING)
    out = session.run(
        "--dm-vm=qemu", "--dm-kernel=debian-6.12", "--dm-timeout=8", "test_dying.py", timeout=300
    )
    assert session.counts == {"failed": 2, "passed": 3}, out
    assert "Kernel panic - not syncing: sysrq triggered crash" in out
    assert "test_hang ran longer than 8 s" in out
    session.assert_nothing_left()


def test_a_killed_qemu_costs_the_test(session: Session) -> None:
    session.write("test_killed.py", WAITING)
    session.start("--dm-vm=qemu", "--dm-kernel=debian-6.1", "test_killed.py")
    _started(session)
    (machine,) = _guest_pids(session)
    os.kill(machine, signal.SIGKILL)
    out = session.finish(timeout=300)
    assert session.counts == {"failed": 1, "passed": 1}, out
    assert "killed by signal 9" in out
    session.assert_nothing_left()


def test_the_last_test_panics_and_no_guest_is_booted_for_nothing(session: Session) -> None:
    session.write(
        "test_last.py",
        "import pathlib\n\ndef test_panic():\n    pathlib.Path('/proc/sysrq-trigger').write_text('c')\n",
    )
    out = session.run(*VM, "test_last.py")
    assert session.counts == {"failed": 1}, out
    assert out.count("test_last.py") < 12
    session.assert_nothing_left()


OOM = """
def test_eats_all_memory():
    hoard = []
    while True:
        hoard.append(bytearray(b"x" * (16 << 20)))

def test_after(): ...
"""


def test_running_out_of_memory_costs_the_test(session: Session) -> None:
    session.write("test_oom.py", OOM)
    out = session.run(*VM, "test_oom.py")
    assert session.counts == {"failed": 1, "passed": 1}, out
    assert "memory" in out.lower()
    session.assert_nothing_left()


WAITING = """
import os, pathlib, time

def test_waits():
    pathlib.Path(os.environ["PYTEST_DM_EXCHANGE"], "started").touch()
    time.sleep(600)

def test_after(): ...
"""


def _started(session: Session) -> None:
    """Wait until the guest runs the test."""
    deadline = time.monotonic() + 60
    while not list((session.folder / "tmp").glob("pytest-dm-*/*/started")):
        assert time.monotonic() < deadline, "the test never started"
        assert session.process is not None
        assert session.process.poll() is None, session.finish()
        time.sleep(0.05)


def _guest_pids(session: Session) -> list[int]:
    return [
        pid
        for pid, command in session.processes().items()
        if "linux.uml" in command.split(" ")[0] or "qemu-system" in command.split(" ")[0]
    ]


def test_a_killed_machine_costs_the_test(session: Session) -> None:
    session.write("test_killed.py", WAITING)
    session.start(*VM, "test_killed.py")
    _started(session)
    pids = _guest_pids(session)
    assert pids
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    out = session.finish()
    assert session.counts == {"failed": 1, "passed": 1}, out
    session.assert_nothing_left()


@pytest.mark.parametrize("victim", ["pytest", "workers"])
def test_sigkill_leaves_nothing(session: Session, victim: str) -> None:
    session.write("test_killed.py", WAITING)
    process = session.start(*VM, "test_killed.py")
    _started(session)
    if victim == "pytest":
        process.kill()
    else:
        for pid, command in session.processes().items():
            if "dmvm.worker" in command:
                os.kill(pid, signal.SIGKILL)
        process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    session.assert_nothing_left()


def test_ctrl_c(session: Session) -> None:
    session.write("test_killed.py", WAITING)
    process = session.start(*VM, "test_killed.py")
    _started(session)
    began = time.monotonic()
    os.killpg(process.pid, signal.SIGINT)
    out = session.finish(timeout=30)
    assert session.status == 2, out
    assert "KeyboardInterrupt" in out
    assert time.monotonic() - began < 15
    session.assert_nothing_left()


def test_one_suite_on_two_kernels(session: Session) -> None:
    session.write(
        "test_where.py",
        "import os\n\ndef test_where():\n    print(os.uname().release)\n\ndef test_only_new():\n    assert not os.uname().release.startswith('6.1.')\n",
    )
    options = (
        "--dm-vm=uml", "--dm-kernel=uml-6.1", "--dm-kernel=uml-7.2", "-p", "cacheprovider", "--lf",
        "--junitxml=out.xml", "test_where.py",
    )  # fmt: skip
    out = session.run(*options, "-rA")
    assert session.counts == {"failed": 1, "passed": 3}, out
    cases = junit(session.folder / "out.xml")
    assert set(cases) == {
        f"{name}[{kernel}]" for name in ("test_where", "test_only_new") for kernel in ("uml-6.1", "uml-7.2")
    }
    assert cases["test_only_new[uml-6.1]"].find("failure") is not None
    out = session.run(*options)
    assert session.counts == {"failed": 1}, out
    assert set(junit(session.folder / "out.xml")) == {"test_only_new[uml-6.1]"}
    session.assert_nothing_left()


KINDS = """
import os, pathlib, unittest
import pytest

@pytest.fixture(scope="class")
def once():
    assert not pathlib.Path("/tmp/made").exists()
    pathlib.Path("/tmp/made").touch()

class TestTogether:
    @pytest.mark.parametrize("n", range(8))
    def test_n(self, once, n): ...

class TestOld(unittest.TestCase):
    def test_old(self):
        assert not os.uname().release.startswith("6.1.")

def documented():
    '''
    >>> 1 + 1
    2
    '''
"""


def test_every_test_has_its_kernel_in_its_id_and_scopes_stay_together(session: Session) -> None:
    session.write("test_kinds.py", KINDS)
    kernels = ("uml-6.1", "uml-7.2")
    out = session.run(
        *(f"--dm-kernel={kernel}" for kernel in kernels),
        *("-n", "4", "--dist=loadscope", "--doctest-modules", "--junitxml=out.xml", "-v", "test_kinds.py"),
    )
    assert session.counts == {"failed": 1, "passed": 19}, out
    assert "[100%]" in out
    cases = junit(session.folder / "out.xml")
    for kernel in kernels:
        assert {f"test_old[{kernel}]", f"test_kinds.documented[{kernel}]"} <= set(cases)
        ran = re.findall(rf"\[(gw\d)\] .*PASSED test_kinds.py::TestTogether::test_n\[{kernel}-", out)
        assert len(ran) == 8
        assert len(set(ran)) == 1, f"the class was spread over {set(ran)}"
    assert cases["test_old[uml-6.1]"].find("failure") is not None
    session.assert_nothing_left()


def test_artifacts_of_a_test_with_a_device_reach_the_host(session: Session) -> None:
    session.write("test_art.py", "def test_it(dm):\n    dm.zero('1M')\n    assert False\n")
    session.run(*VM, "--dm-artifacts=kept", "test_art.py")
    (kept,) = (session.folder / "kept").glob("test_art.py*-call.txt")
    assert "0 2048 zero" in kept.read_text()


def test_artifacts_reach_the_host_and_nothing_else_does(session: Session) -> None:
    session.write(
        "test_art.py",
        "import os, pathlib\n\n"
        "def test_art():\n"
        "    folder = pathlib.Path(os.environ['PYTEST_DM_EXCHANGE'], 'artifacts')\n"
        "    folder.mkdir(exist_ok=True)\n"
        "    (folder / 'image').write_bytes(b'disk')\n"
        "    os.truncate(folder / 'image', 64 << 20)\n"
        "    pathlib.Path(__file__).with_name('leak').write_text('must stay in the guest')\n"
        "    pathlib.Path('/etc/leak').write_text('must stay in the guest')\n",
    )
    out = session.run(*VM, "--dm-artifacts=kept", "test_art.py")
    assert session.counts == {"passed": 1}, out
    image = session.folder / "kept" / "image"
    assert image.read_bytes() == b"disk".ljust(64 << 20, b"\0")
    assert image.stat().st_blocks < 1000  # holes stay holes
    assert list((session.folder / "kept").glob("console-*.log"))
    assert not (session.folder / "leak").exists()
    assert not Path("/etc/leak").exists()
    session.assert_nothing_left()


def test_an_unknown_kernel_is_one_clear_line(session: Session) -> None:
    session.write("test_x.py", "def test_x(): ...\n")
    out = session.run("--dm-vm", "--dm-kernel=uml-2.4", "test_x.py")
    assert session.status == 4, out
    assert "uml-2.4" in out
    assert "uml-6.12" in out
    assert "Traceback" not in out
    session.assert_nothing_left()


def test_without_qemu_one_line_says_what_to_install(session: Session) -> None:
    session.write("test_one.py", "def test_one():\n    pass\n")
    out = session.run("--dm-vm=qemu", "test_one.py", env={"PATH": str(session.folder)})
    assert session.status == 4, out
    (line,) = [line for line in out.splitlines() if "qemu-system" in line]
    assert "apt-get install" in line
    session.assert_nothing_left()


def test_a_debugger_needs_a_terminal(session: Session) -> None:
    session.write("test_x.py", "def test_x(): ...\n")
    out = session.run("--dm-vm", "--pdb", "test_x.py")
    assert session.status == 4, out
    assert "pytest-dm vm run" in out


MIXED = """
import os, pytest

def test_here():
    assert "PYTEST_DM_GUEST" not in os.environ

def test_there(dm_loop):
    assert "PYTEST_DM_GUEST" in os.environ
    assert dm_loop.read(0, 512) == bytes(512)

@pytest.mark.dm
def test_marked_only():
    assert os.getuid() == 0

def test_fails_here():
    assert 0
"""


def _has_dm() -> bool:
    """Whether the kernel answers; the node is also there where a program made it in vain."""
    try:
        os.close(os.open("/dev/mapper/control", os.O_RDONLY))
    except OSError:
        return False
    return True


no_dm_here = pytest.mark.skipif(_has_dm(), reason="this kernel runs device-mapper tests itself")


@no_dm_here
def test_plain_pytest_sends_device_tests_to_a_guest(session: Session) -> None:
    session.write("test_mixed.py", MIXED)
    out = session.run("-v", "test_mixed.py")
    assert session.counts == {"failed": 1, "passed": 3}, out
    assert "device-mapper tests: in 1 guest" in out
    assert "[100%]" in out
    session.assert_nothing_left()
    out = session.run("-x", "test_mixed.py")
    assert session.counts == {"failed": 1, "passed": 1}, out
    assert "guest" not in out
    session.assert_nothing_left()


@no_dm_here
def test_without_a_fetched_kernel_models_serve_and_the_rest_is_skipped_with_the_command_that_helps(
    session: Session,
) -> None:
    session.write("test_mixed.py", MIXED)
    empty = {"PYTEST_DM_CACHE": str(session.folder / "empty-cache")}
    out = session.run("-rs", "test_mixed.py", env=empty)
    assert session.counts == {"failed": 2, "passed": 1, "skipped": 1}, out
    assert "AssertionError: assert 'PYTEST_DM_GUEST' in environ" in out, "the one with a loop ran here"
    assert "pytest --dm-vm" in out
    out = session.run("--dm-require", "test_mixed.py", env=empty)
    assert session.counts["failed"] + session.counts.get("error", 0) == 3, out


@pytest.mark.parametrize(
    ("options", "counts"),
    [(("--dist=loadscope", "-n", "2"), {"failed": 1, "passed": 3}), (("-x",), {"failed": 1, "passed": 1})],
)
def test_a_panic_counts_once_however_tests_are_spread(
    session: Session, options: tuple[str, ...], counts: dict[str, int]
) -> None:
    session.write(
        "test_once.py",
        "import time\n\n"
        "def test_before(): ...\n\n"
        "def test_panic():\n"
        "    open('/proc/sysrq-trigger', 'w').write('c')\n"
        "    time.sleep(30)\n\n"
        "def test_after(): ...\n\n"
        "def test_last(): ...\n",
    )
    out = session.run(*VM, *options, "test_once.py")
    assert session.counts == counts, out
    session.assert_nothing_left()
