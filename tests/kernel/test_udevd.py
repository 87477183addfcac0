"""Devices where a udevd runs: nodes, links, cookies, and what holds a device open behind our back."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from dmsetup_oracle import assert_agrees, dmsetup
from udevd import udevd  # noqa: F401 - a fixture
from watching import gone, interrupted_everywhere

from dmcore.errors import DeviceBusy, TableRejected
from dmcore.kernel import device, sysv, udev
from dmcore.kernel.control import Control
from dmcore.kernel.device import Device
from dmcore.kernel.sysv import Semaphore
from dmcore.table import Table
from pytest_dm import clean

pytestmark = [pytest.mark.dm, pytest.mark.usefixtures("udevd")]

ZERO = Table.parse("0 2048 zero")


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


def test_odd_names(control, name):
    """udev spells some names its own way; the path then is the kernel's own node."""
    with Device.create(control, f"{name} \u00e4\\", ZERO) as made:
        assert made.path.stat().st_rdev == made.dev.rdev


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


@pytest.mark.newest_kernel
def test_an_interrupt_at_any_line_leaves_no_cookie(control, name):
    """At every third line, another third on each kernel line (6.1, 6.12, 7.2)."""

    def work():
        with Device.create(control, name, ZERO):
            pass

    first = int(os.uname().release.split(".")[1]) % 3 + 3
    for _ in interrupted_everywhere(work, device, udev, sysv, first=first, step=3):
        if control.exists(name):
            control.remove(name)
        assert "0xd4d" not in dmsetup("udevcookies")


def test_a_rename_moves_udevs_link(control, name):
    with Device.create(control, name, ZERO) as made:
        before = made.path
        made.rename(f"{name}-new")
        assert made.path == Path(f"/dev/mapper/{name}-new")
        assert made.path.is_symlink()
        assert not before.is_symlink()
        assert Path(f"/dev/disk/by-id/dm-name-{name}-new").exists() is False, (
            "private devices have no such links"
        )
        assert "0xd4d" not in dmsetup("udevcookies")
    assert not made.path.is_symlink()


def test_a_deferred_removal_ends_with_udevs_link(control, name):
    made = Device.create(control, name, ZERO)
    with made.path.open("rb"):
        with pytest.raises(DeviceBusy, match="at its last close"):
            made.remove(timeout=0.1)
        assert control.info(name).deferred_remove
        control.cancel_deferred_remove(name)
        assert not control.info(name).deferred_remove
        assert control.remove(name, deferred=True).deferred_remove
    gone(lambda: control.exists(name), "the device")
    gone(made.path.is_symlink, "udev's link")
    assert "0xd4d" not in dmsetup("udevcookies")


def settle():
    subprocess.run(["udevadm", "settle", "--timeout=60"], check=True, timeout=90)


def slow_public(name, disk):
    """Let dmsetup make a device that udev probes, and that answers slowly; and let udev begin to probe it again."""
    dmsetup("create", name, "--table", f"0 2048 delay {disk.ref} 0 150")
    settle()
    with Path("/dev/mapper", name).open("r+b"):
        pass


def test_a_device_that_udev_probes_is_removed_when_it_is_done(control, name, disk):
    """Its close after writing makes udev read it once more, which takes a second here."""
    slow_public(name, disk)
    made = Device.find(control, name)
    deadline = time.monotonic() + 10
    while not control.info(name).open_count:
        assert time.monotonic() < deadline, "udev never opened the device"
    began = time.monotonic()
    made.remove(timeout=30, deferred=False)
    assert time.monotonic() - began > 0.05
    assert not control.exists(name)
    gone(Path("/dev/mapper", name).is_symlink, "udev's link")


def test_a_device_that_udev_holds_names_udev(control, name, disk):
    slow_public(name, disk)
    made = Device.find(control, name)
    deadline = time.monotonic() + 10
    while not control.info(name).open_count:
        assert time.monotonic() < deadline, "udev never opened the device"
    with pytest.raises(DeviceBusy, match="udev") as caught:
        made.remove(timeout=0, deferred=False)
    assert "open_count 1" in caught.value.detail
    made.remove(timeout=30, deferred=False)


def test_devices_in_many_threads(control, name):
    """Each waits for its own uevents only."""

    def work(number):
        with Control() as own:
            for turn in range(4):
                with Device.create(own, f"{name}-{number}", Table.parse(f"0 {8 * (turn + 1)} zero")) as made:
                    assert made.path.is_symlink()
                assert not made.path.is_symlink()
        done.append(number)

    done = []
    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert sorted(done) == [0, 1, 2, 3]
    assert "0xd4d" not in dmsetup("udevcookies")


def test_fixtures(dm, dm_backend, monkeypatch):
    """The plugin's devices, with a file system, where udev makes the nodes."""
    monkeypatch.setattr(dm_backend.runtime.control, "udev", True)  # opened before this module's udevd
    disk = dm.flakey(dm.loop("32M"))
    assert disk.path.is_symlink()
    dm.mkfs(disk, "ext4")
    with dm.mount(disk, fs="ext4") as mounted:
        (mounted.mountpoint / "file").write_bytes(b"x")
        assert disk.device.info().open_count == 1


ABANDONS = """
import sys, time
from dmcore.kernel import udev
with udev.transaction() as cookie:
    print(f"{0x0D4D0000 | cookie.begin() & 0xFFFF:#x}", flush=True)
    time.sleep(600)
"""


@pytest.fixture
def holder():
    """A process in a transaction, and the key of its semaphore as text."""
    with subprocess.Popen([sys.executable, "-c", ABANDONS], stdout=subprocess.PIPE, text=True) as process:
        yield process, process.stdout.readline().strip()
        process.kill()
    for semaphore in udev.abandoned():
        semaphore.remove()


def keys():
    return {int(row.split()[0]) for row in Path("/proc/sysvipc/sem").read_text().splitlines()[1:]}


def test_a_killed_process_leaves_a_cookie_that_clean_removes(control, holder):
    process, key = holder
    theirs = Semaphore()
    theirs.create(0x0D4D0001)
    dmsetups = dmsetup("udevcreatecookie").strip()
    try:
        there = keys()
        assert not [left for left in clean.find(control) if left.what == "udev cookie"]
        assert key in dmsetup("udevcookies").lower()
        process.send_signal(signal.SIGKILL)
        process.wait()
        (left,) = (left for left in clean.find(control) if left.what == "udev cookie")
        assert left.name == key
        assert keys() == there
        assert clean.sweep(control) == []
        assert keys() == there - {int(key, 16)}
        assert not [left for left in clean.find(control) if left.what == "udev cookie"]
        left.remove()
    finally:
        theirs.remove()
        dmsetup("udevreleasecookie", dmsetups)


def test_dmsetup_counts_down_a_cookie_with_notes(holder):
    """libdevmapper asks for one semaphore; ours holds more behind it."""
    _, key = holder
    semaphore = Semaphore.find(int(key, 16))
    assert semaphore.value == 1
    dmsetup("udevcomplete", str(udev.PRIVATE << 16 | semaphore.key & 0xFFFF))
    assert semaphore.value == 0
