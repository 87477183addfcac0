"""udev cookies: the semaphores alone, with dmsetup's side of them, and with a udevd where one runs."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from dmsetup_oracle import assert_agrees, dmsetup

from dmcore.errors import DeviceBusy, IoctlError, SpecError, TableRejected
from dmcore.kernel import device, sysv, udev
from dmcore.kernel.device import Device
from dmcore.kernel.sysv import Semaphore
from dmcore.table import Table

pytestmark = pytest.mark.dm

ZERO = Table.parse("0 2048 zero")
LIMITS = Path("/proc/sys/kernel/sem")

needs_udevd = pytest.mark.skipif(not udev.running(), reason="no udevd with device-mapper's rules runs here")


@pytest.fixture(autouse=True)
def no_semaphore_stays():
    def keys():
        rows = Path("/proc/sysvipc/sem").read_text().splitlines()[1:]
        return {int(row.split()[0]) & 0xFFFFFFFF for row in rows}

    before = keys()
    yield
    assert keys() == before


@needs_udevd
def test_dmsetup_completes_our_cookies():
    with udev.transaction() as cookie:
        assert cookie.wait(0)
        numbers = [cookie.begin(), cookie.begin()]
        assert numbers[0] == numbers[1]
        assert numbers[0] >> 16 == udev.PRIVATE
        assert f"{0x0D4D0000 | (numbers[0] & 0xFFFF):#x}" in dmsetup("udevcookies").lower()
        assert not cookie.wait(0.05)
        dmsetup("udevcomplete", str(numbers[0]))
        assert not cookie.wait(0.05)
        dmsetup("udevcomplete", str(numbers[0]))
        assert cookie.wait(0)


def test_a_wait_ends_when_the_last_uevent_is_done():
    with udev.transaction(udev.PUBLIC) as cookie:
        cookie.begin()
        cookie.begin()
        cookie.cancel()
        timer = threading.Timer(0.1, cookie.cancel)
        timer.start()
        assert cookie.wait(10)
        timer.join()


def test_flags_that_do_not_fit():
    with pytest.raises(SpecError), udev.transaction(1 << 16):
        pass


def test_a_semaphore_that_somebody_removed():
    with udev.transaction() as cookie:
        number = cookie.begin()
        key = 0x0D4D0000 | (number & 0xFFFF)
        timer = threading.Timer(
            0.1, subprocess.run, (["ipcrm", "-S", str(key)],), {"check": True, "timeout": 30}
        )
        timer.start()
        with pytest.raises(IoctlError):
            cookie.wait(10)
        timer.join()


def test_keys_that_are_taken_and_values_that_go_too_low():
    first = Semaphore()
    first.create(0x0D4D0001)
    try:
        with pytest.raises(IoctlError, match="EEXIST"):
            Semaphore().create(0x0D4D0001)
        with pytest.raises(IoctlError, match="EAGAIN"):
            first.add(-1)
        first.add(3)
        assert first.value == 3
    finally:
        first.remove()
    first.remove()


def test_no_semaphore_left_in_the_system(control, name):
    """Requests then go without a cookie; nothing fails, nothing stays suspended."""
    before = LIMITS.read_text()
    LIMITS.write_text(" ".join([*before.split()[:3], "0"]))
    try:
        with udev.transaction() as cookie:
            assert cookie.begin() == 0
            cookie.cancel()
            assert not cookie.wait(10)
        with Device.create(control, name, ZERO) as made:
            assert made.path.stat().st_rdev == made.dev.rdev
            assert not made.info().suspended
    finally:
        LIMITS.write_text(before)


@pytest.mark.skipif(udev.running(), reason="a udevd runs here")
def test_a_socket_that_nobody_serves_is_no_udevd():
    path = Path("/run/udev/control")
    path.parent.mkdir(exist_ok=True)
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as server:
        server.bind(os.fspath(path))
        try:
            assert not udev.running()
        finally:
            path.unlink()
    assert not udev.running()


@needs_udevd
def test_nodes_are_udevs_and_there_in_time(control, name):
    for turn in range(5):
        with Device.create(control, f"{name}-{turn}", ZERO, uuid=f"U-{name}-{turn}") as made:
            assert made.path == Path(f"/dev/mapper/{name}-{turn}")
            assert made.path.is_symlink()
            assert made.path.stat().st_rdev == made.dev.rdev
            made.reload(Table.parse("0 4096 zero"))
            made.rename(f"{name}-new")
            assert made.path.is_symlink()
            assert not Path(f"/dev/mapper/{name}-{turn}").is_symlink()
            assert_agrees(control, made.selector)
        assert not made.path.is_symlink()


@needs_udevd
def test_udev_leaves_the_content_alone(control, name):
    with Device.create(control, name, ZERO) as made:
        shown = subprocess.run(
            ["udevadm", "info", "--query=property", str(made.path)],
            check=True,
            capture_output=True,
            text=True,
            timeout=30,
        ).stdout.splitlines()
        for flag in (
            "DISABLE_OTHER_RULES",
            "DISABLE_DISK_RULES",
            "DISABLE_SUBSYSTEM_RULES",
            "PRIMARY_SOURCE",
        ):
            assert f"DM_UDEV_{flag}_FLAG=1" in shown
        assert not [line for line in shown if line.startswith(("ID_FS", "DEVLINKS=")) and "by-" in line]


@needs_udevd
def test_odd_names(control, name):
    """udev spells some names its own way; the path then is the kernel's own node."""
    with Device.create(control, f"{name} \u00e4\\", ZERO) as made:
        assert made.path.stat().st_rdev == made.dev.rdev


@needs_udevd
def test_failures_leave_no_cookie(control, name):
    with pytest.raises(TableRejected):
        Device.create(control, name, Table.parse("0 8 nonsense"))
    with Device.create(control, name, ZERO) as made:
        with pytest.raises(TableRejected):
            made.reload(Table.parse("0 8 nonsense"))
        with made.path.open("rb"), pytest.raises(DeviceBusy):
            made.remove(timeout=0.1, deferred=False)
        with pytest.raises(DeviceBusy):
            made.rename(name)
    assert not Path(f"/dev/mapper/{name}").is_symlink()


@needs_udevd
def test_an_interrupt_at_any_line_leaves_no_cookie(control, name):
    files = {device.__file__, udev.__file__, sysv.__file__}
    step, interrupted = 0, True
    while interrupted:
        step += 1
        left = step

        def trace(frame, event, argument):
            nonlocal left
            names = {frame.f_code.co_name, frame.f_back.f_code.co_name}
            if frame.f_code.co_filename not in files or "__del__" in names:
                return None
            if event == "line":
                left -= 1
                if left == 0:
                    sys.settrace(None)
                    raise KeyboardInterrupt
            return trace

        interrupted = False
        sys.settrace(trace)
        try:
            with Device.create(control, name, ZERO):
                pass
        except KeyboardInterrupt:
            interrupted = True
        finally:
            sys.settrace(None)
        if control.exists(name):
            control.remove(name)
        assert "0xd4d" not in dmsetup("udevcookies")
    assert step > 50
