"""udev cookies without a udevd: the semaphores alone."""

from __future__ import annotations

import os
import socket
import subprocess
import threading
from pathlib import Path

import pytest

from dmcore.errors import IoctlError, SpecError
from dmcore.kernel import udev
from dmcore.kernel.device import Device
from dmcore.kernel.sysv import Semaphore
from dmcore.table import Table

pytestmark = pytest.mark.dm

ZERO = Table.parse("0 2048 zero")
LIMITS = Path("/proc/sys/kernel/sem")


@pytest.fixture(autouse=True)
def no_semaphore_stays():
    def keys():
        rows = Path("/proc/sysvipc/sem").read_text().splitlines()[1:]
        return {int(row.split()[0]) & 0xFFFFFFFF for row in rows}

    before = keys()
    yield
    assert keys() == before


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


def test_a_cookie_that_nobody_signed_is_left_alone_at_first(monkeypatch):
    """Between making and signing it a process of ours has a moment in which it cannot be told."""
    made = Semaphore()
    made.create(0x0D4D0002, [0] * udev._NOTES)
    try:
        assert list(udev.abandoned()) == []
        monkeypatch.setattr(udev, "_UNSIGNED_FOR", -1.0)
        assert [semaphore.key for semaphore in udev.abandoned()] == [0x0D4D0002]
    finally:
        made.remove()
