"""Somebody's tests: every fixture and every verb, with one that fails, one that panics and one that hangs."""

import contextlib
import errno
import os
import time
from pathlib import Path

import pytest

from dmcore.kernel.control import Control
from dmcore.targets import Linear, Zero

KIB = 1024


def found() -> list[str]:
    with Control() as control:
        devices = [entry.name for entry in control.list_devices()]
    loops = [str(path) for path in Path("/sys/block").glob("loop*/loop/backing_file")]
    mounts = [line for line in Path("/proc/self/mounts").read_text().splitlines() if "pytest-dm" in line]
    return [*devices, *loops, *mounts]


@pytest.fixture(autouse=True)
def nothing_stays():
    before = found()
    yield
    assert found() == before


@contextlib.contextmanager
def fails(number=errno.EIO):
    with pytest.raises(OSError) as caught:
        yield
    assert caught.value.errno == number


def test_backend(dm_backend):
    assert dm_backend.kind == "kernel"
    assert dm_backend.release == os.uname().release
    assert dm_backend.version[0] == 4


@pytest.mark.dm(size="8M", block_size=4096)
def test_loop(dm_loop):
    assert dm_loop.size == 8 << 20
    assert dm_loop.block_size == 4096
    dm_loop.write(0, b"x" * 4096)
    dm_loop.flush()
    assert dm_loop.read(0, 4096) == b"x" * 4096


def test_linear(dm, dm_linear):
    dm_linear.write(4096, b"y" * 4096)
    dm_linear.write_zeroes(4096, 512)
    assert dm_linear.read(4096, 1024) == bytes(512) + b"y" * 512
    dm_linear.discard(0, 64 * KIB)
    assert dm_linear.read(4096, 4096) == bytes(4096)
    piece = dm.linear(dm_linear, start=8, length=8)
    piece.write(0, b"z" * 512)
    assert dm_linear.read(4096, 512) == b"z" * 512
    with piece.suspended():
        assert dm_linear.read(4096, 512) == b"z" * 512
    piece.swap(Zero())
    assert piece.read(0, 512) == bytes(512)


def test_zero_and_error(dm_zero, dm_error):
    dm_zero.write(0, b"gone" * 128)
    assert dm_zero.read(0, 512) == bytes(512)
    with fails():
        dm_error.read(0, 512)
    with fails():
        dm_error.write(0, bytes(512))


def test_error_range(dm):
    disk = dm.error_range(dm.loop("4M"), start=2048, length=8)
    disk.write(2047 * 512, bytes(512))
    with fails():
        disk.read(2048 * 512, 512)
    disk.heal()
    assert disk.read(2048 * 512, 512) == bytes(512)
    with disk.fail(0, 8), fails():
        disk.write(0, bytes(512))
    disk.write(0, bytes(512))


def test_flakey(dm_flakey):
    dm_flakey.write(0, b"a" * 4096)
    with dm_flakey.fail(reads=True), fails():
        dm_flakey.read(0, 512)
    with dm_flakey.fail(writes=True):
        assert dm_flakey.read(0, 4096) == b"a" * 4096
        with fails():
            dm_flakey.write(0, bytes(512))
    with dm_flakey.fail():
        with fails():
            dm_flakey.read(0, 512)
        with fails():
            dm_flakey.write(0, bytes(512))
    with dm_flakey.drop_writes():
        dm_flakey.write(0, b"b" * 4096)
    assert dm_flakey.read(0, 4096) == b"a" * 4096
    with dm_flakey.corrupt(byte=3, value=0x21):
        dm_flakey.write(0, b"c" * 4096)
    assert dm_flakey.read(0, 4096) == b"cc!" + b"c" * 4093
    dm_flakey.heal()


def test_dust(dm_dust):
    dm_dust.write(0, b"d" * 64 * KIB)
    dm_dust.add_bad(3)
    dm_dust.add_bad(10, 2)
    assert dm_dust.bad_blocks() == (3, 10, 11)
    assert dm_dust.read(3 * 512, 512) == b"d" * 512
    dm_dust.enable()
    with fails():
        dm_dust.read(3 * 512, 512)
    dm_dust.remove_bad(3)
    assert dm_dust.read(3 * 512, 512) == b"d" * 512
    dm_dust.write(10 * 512, b"e" * 512)
    assert dm_dust.read(10 * 512, 512) == b"e" * 512
    dm_dust.disable()
    assert dm_dust.read(11 * 512, 512) == b"d" * 512
    dm_dust.clear()


def test_delay(dm_delay):
    dm_delay.set(read_ms=150, write_ms=0)
    began = time.monotonic()
    dm_delay.read(0, 512)
    assert time.monotonic() - began >= 0.12
    dm_delay.set(read_ms=0, write_ms=0, flush_ms=150)
    began = time.monotonic()
    dm_delay.flush()
    assert time.monotonic() - began >= 0.12


def test_log_writes(dm_log_writes):
    dm_log_writes.write(0, b"f" * 512)
    dm_log_writes.flush()
    dm_log_writes.mark("first write is durable")
    dm_log_writes.write(512, b"g" * 512)
    dm_log_writes.flush()
    assert dm_log_writes.marks() == ["first write is durable"]
    writes = [entry for entry in dm_log_writes.entries() if entry.mark is None and entry.nr_sectors]
    assert [entry.sector for entry in writes] == [0, 1]
    assert dm_log_writes.data(writes[1]) == b"g" * 512


@pytest.mark.dm(size="64M", filesystem="ext4", needs="mkfs.ext4")
def test_power_cut(dm_linear):
    path = dm_linear.mountpoint / "file"
    with path.open("wb") as file:
        file.write(b"durable")
        file.flush()
        os.fsync(file.fileno())
    with dm_linear.power_cut():
        (dm_linear.mountpoint / "lost").write_bytes(b"never")
    assert path.read_bytes() == b"durable"
    assert not (dm_linear.mountpoint / "lost").exists()


def test_mkfs_and_mount(dm):
    disk = dm.loop("64M")
    dm.mkfs(disk, "ext4")
    with dm.mount(disk, fs="ext4") as mounted:
        (mounted.mountpoint / "a").write_text("b")


def test_create(dm):
    legs = [dm.loop("4M") for _ in range(2)]
    a, b = (leg.ref for leg in legs)
    device = dm.create(f"0 8192 striped 2 16 {a} 0 {b} 0")
    device.write(8192, b"s" * 512)
    assert legs[1].read(0, 512) == b"s" * 512
    named = dm.create(Linear(dev=device.ref), size="8K")
    assert named.read(8192 - 512, 512) == bytes(512)


def test_that_fails(dm_flakey):
    dm_flakey.fail(writes=True)
    dm_flakey.write(0, bytes(512))


def test_that_panics(dm_flakey):
    Path("/proc/sysrq-trigger").write_text("c")
    time.sleep(60)


@pytest.mark.dm(timeout=4)
def test_that_hangs(dm_linear):
    with dm_linear.suspended():
        dm_linear.read(0, 512)
