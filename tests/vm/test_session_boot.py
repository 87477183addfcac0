"""How the guests of a session boot: side by side, and what is left when that is interrupted."""

from __future__ import annotations

import os
import signal
import time

import pytest
from vm_session_tools import Session

GUESTS = ("--dm-vm=uml", "--dm-kernel=uml-7.2", "-n", "2")

WHEN = """
import os, pathlib, time, pytest

@pytest.mark.parametrize("number", range(8))
def test_when(number):
    now, up = time.time(), float(pathlib.Path("/proc/uptime").read_text().split()[0])
    started = int(pathlib.Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19]) / 100
    print(f"\\nWHEN {os.environ['PYTEST_XDIST_WORKER']} {now - up} {now - up + started}")
    time.sleep(0.5)
"""


def test_guests_boot_side_by_side(session: Session) -> None:
    """The second guest boots before the first one's worker runs, for whose answer execnet waits."""
    if len(os.sched_getaffinity(0)) < 2:
        pytest.skip("one core boots one guest at a time")
    session.write("test_when.py", WHEN)
    out = session.run(*GUESTS, "-rP", "test_when.py")
    assert session.counts == {"passed": 8}, out
    told = [line.split()[1:] for line in out.splitlines() if line.startswith("WHEN ")]
    guests = {worker: (float(boot), float(run)) for worker, boot, run in told}
    assert set(guests) == {"gw0", "gw1"}
    boots, runs = zip(*guests.values(), strict=True)
    assert max(boots) < min(runs), f"(boot, first process): {guests}"
    session.assert_nothing_left()


@pytest.mark.parametrize("moment", [0, 0.7, 1.5])
def test_ctrl_c_while_guests_boot(session: Session, moment: float) -> None:
    session.write("test_when.py", WHEN)
    process = session.start(*GUESTS, "-s", "test_when.py")
    deadline = time.monotonic() + 60
    while not list((session.folder / "tmp").glob("*/*/console.log")):
        assert time.monotonic() < deadline, "no guest began to boot"
        time.sleep(0.01)
    time.sleep(moment)
    os.killpg(process.pid, signal.SIGINT)
    out = session.finish(timeout=60)
    assert session.status == 2, out
    assert "Traceback" not in out, out
    session.assert_nothing_left()
