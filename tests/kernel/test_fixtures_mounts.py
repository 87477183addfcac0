"""File systems, suspending, swapping and power cuts on a real kernel."""

from __future__ import annotations

import errno
import os
import subprocess
import threading
import time

import pytest

from dmcore.errors import DmError, IoctlError, SpecError, Unsupported
from dmcore.kernel.mount import MountFlags, mounts, parse_options
from dmcore.targets import Error, Zero

KIB = 1 << 10
MIB = 1 << 20


@pytest.mark.dm(needs="kernel")
class TestMount:
    def test_mkfs_and_mount(self, dm):
        disk = dm.loop("16M")
        dm.mkfs(disk, "ext4", "-L", "mine")
        with dm.mount(disk, fs="ext4", options="noatime,nodev") as mounted:
            (mounted.mountpoint / "f").write_bytes(b"x")
            (line,) = [entry for entry in mounts() if entry.target == mounted.mountpoint]
            assert (line.source, line.fstype) == (str(disk.path), "ext4")
            assert {"noatime", "nodev"} <= set(line.options.split(","))
            assert disk.mountpoint == mounted.mountpoint
        assert not mounted.mounted
        assert b"mine" in disk.read(1 * KIB, 1 * KIB)
        mounted.mount()
        assert (mounted.mountpoint / "f").read_bytes() == b"x"

    @pytest.mark.dm(size="16M", filesystem="ext4")
    def test_the_marker_mounts(self, dm_loop, dm_linear, dm_flakey, dm_dust, dm_delay):
        for device in (dm_loop, dm_linear, dm_flakey, dm_dust, dm_delay):
            (device.mountpoint / "f").write_text(device.name)
            device.remount()
            assert (device.mountpoint / "f").read_text() == device.name

    @pytest.mark.dm(filesystem="xfs", needs="mkfs.xfs")
    def test_xfs(self, dm_flakey):
        (dm_flakey.mountpoint / "f").write_bytes(b"x")
        with dm_flakey.power_cut():
            pass
        assert dm_flakey.mountpoint.is_dir()

    @pytest.mark.dm(filesystem="btrfs", needs="mkfs.btrfs")
    def test_btrfs(self, dm_linear):
        (dm_linear.mountpoint / "f").write_bytes(b"x")
        dm_linear.remount()
        assert (dm_linear.mountpoint / "f").read_bytes() == b"x"

    def test_no_file_system(self, dm_loop, dm, dm_backend):
        before = set(dm_backend.runtime.folder.iterdir())
        with pytest.raises(IoctlError) as refused:
            dm.mount(dm_loop, fs="ext4")
        assert refused.value.errno == errno.EINVAL
        assert set(dm_backend.runtime.folder.iterdir()) == before
        with pytest.raises(DmError, match="no file system"):
            _ = dm_loop.mountpoint

    def test_mkfs_says_why_not(self, dm):
        with pytest.raises(DmError, match=r"(?s)mkfs\.ext4.*exit status"):
            dm.mkfs(dm.loop("4K"), "ext4", "-b", "4096")

    def test_a_program_that_is_not_there(self, dm, dm_loop):
        with pytest.raises(Unsupported, match=r"mkfs\.nofs"):
            dm.mkfs(dm_loop, "nofs")

    @pytest.mark.dm(size="16M", filesystem="ext4")
    def test_a_busy_mount_says_who(self, dm_loop):
        with (dm_loop.mountpoint / "f").open("w"):
            with pytest.raises(IoctlError, match=r"(?s)EBUSY.*/f") as refused:
                dm_loop.mounts[0].unmount(timeout=0.1)
            assert f"{os.getpid()}: " in refused.value.detail
        dm_loop.unmount()

    @pytest.mark.dm(size="16M", block_size=4096, filesystem="ext4")
    def test_drop_caches(self, dm_dust):
        path = dm_dust.mountpoint / "f"
        path.write_bytes(b"x" * MIB)
        os.sync()
        dm_dust.add_bad(0, dm_dust.size // 4096)
        with dm_dust.enable():
            assert path.read_bytes() == b"x" * MIB
            dm_dust.mounts[0].drop_caches()
            with pytest.raises(OSError, match="Input/output error"):
                path.read_bytes()
        dm_dust.clear()

    def test_options(self):
        assert parse_options("ro,noatime,data=journal,defaults") == (
            MountFlags.RDONLY | MountFlags.NOATIME,
            "data=journal",
        )
        assert parse_options("ro,rw,sync,async,barrier=0,errors=panic") == (
            MountFlags(0),
            "barrier=0,errors=panic",
        )
        assert parse_options("") == (MountFlags(0), "")


class TestSuspended:
    def test_io_waits(self, dm_linear):
        done = threading.Event()

        def write():
            dm_linear.write(0, b"x" * 512)
            done.set()

        with dm_linear.suspended():
            writer = threading.Thread(target=write)
            writer.start()
            assert not done.wait(0.2)
            assert dm_linear.device.info().suspended
            assert dm_linear.lower.read(0, 512) == bytes(512)
        assert done.wait(10)
        writer.join()
        assert dm_linear.lower.read(0, 512) == b"x" * 512

    def test_it_goes_on_after_a_failure(self, dm_linear):
        with pytest.raises(ZeroDivisionError), dm_linear.suspended(noflush=True, lockfs=False):
            raise ZeroDivisionError
        dm_linear.write(0, bytes(512))

    @pytest.mark.dm(size="16M", filesystem="ext4")
    def test_the_disk_below_is_clean_meanwhile(self, dm_linear):
        (dm_linear.mountpoint / "f").write_bytes(b"x" * 100)
        with dm_linear.suspended():
            command = ["e2fsck", "-fn", str(dm_linear.lower.path)]
            checked = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        assert checked.returncode == 0, checked.stdout

    def test_left_suspended(self, dm):
        """A test that forgets to resume costs nothing."""
        with dm.scope() as scope:
            scope.linear(size="1M").device.suspend()


class TestSwap:
    @pytest.mark.dm(size="4M", filesystem="ext4")
    def test_under_a_file_system(self, dm_linear, dm):
        other = dm.loop("4M")
        (dm_linear.mountpoint / "f").write_bytes(b"x" * 100)
        with dm_linear.suspended():
            other.write(0, dm_linear.lower.read(0, dm_linear.size))
        dm_linear.swap(f"0 {dm_linear.sectors} linear {other.ref} 0")
        dm_linear.remount()
        assert (dm_linear.mountpoint / "f").read_bytes() == b"x" * 100
        (dm_linear.mountpoint / "g").write_bytes(b"y" * 100)
        os.sync()
        assert other.read(0, dm_linear.size) != dm_linear.lower.read(0, dm_linear.size)

    def test_any_target(self, dm_zero):
        dm_zero.swap(Error())
        with pytest.raises(OSError, match="Input/output error"):
            dm_zero.read(0, 512)
        dm_zero.swap(Zero())
        assert dm_zero.read(0, 512) == bytes(512)


@pytest.fixture(params=["linear", "flakey", "dust", "delay", "error_range", "create"])
def device(request, dm):
    """A device of each kind whose data is on one disk below."""
    disk = dm.loop("16M")
    if request.param == "create":
        return dm.create(f"0 {disk.size // 512} linear disk 0", devices={"disk": disk})
    if request.param == "error_range":
        device = dm.error_range(disk, start=disk.size // 512 - 8, length=8)
        device.heal()
        return device
    return getattr(dm, request.param)(disk)


class TestPowerCut:
    def test_nothing_arrives_any_more(self, device):
        device.write(0, b"old!" * 1024)
        table = device.table()
        with device.power_cut():
            device.write(0, b"new!" * 1024)
            device.flush()
            device.write_zeroes(4 * KIB, 4 * KIB)
            device.discard(0, 4 * KIB)
            assert device.read(0, 4 * KIB) == b"old!" * 1024
            with pytest.raises(DmError, match="power"):
                device.swap(Zero())
        assert device.read(0, 4 * KIB) == b"old!" * 1024
        assert device.table() == table
        device.write(0, b"new!" * 1024)
        assert device.read(0, 4 * KIB) == b"new!" * 1024

    def test_what_was_only_cached_is_gone(self, device):
        fd = os.open(device.path, os.O_RDWR)
        try:
            os.pwrite(fd, b"synced" * 512, 0)
            os.fsync(fd)
            os.pwrite(fd, b"cached" * 512, 4 * KIB)
            with device.power_cut():
                os.pwrite(fd, b"later!" * 512, 8 * KIB)
                os.fsync(fd)
            assert os.pread(fd, 12 * KIB, 0).startswith(b"synced" * 512)
            assert os.pread(fd, 8 * KIB, 4 * KIB) == bytes(8 * KIB)
        finally:
            os.close(fd)

    def test_a_file_system_recovers(self, device, dm):
        dm.mkfs(device, "ext4")
        mounted = dm.mount(device, fs="ext4")
        (mounted.mountpoint / "synced").write_bytes(b"x" * 10_000)
        os.sync()
        (mounted.mountpoint / "cached").write_bytes(b"y" * 10_000)
        with device.power_cut():
            os.sync()
            (mounted.mountpoint / "later").write_bytes(b"z")
        assert sorted(path.name for path in mounted.mountpoint.iterdir()) == ["lost+found", "synced"]
        assert (mounted.mountpoint / "synced").read_bytes() == b"x" * 10_000

    def test_unmounted_inside_it_stays_so(self, device, dm):
        dm.mkfs(device, "ext4")
        mounted = dm.mount(device, fs="ext4")
        (mounted.mountpoint / "f").write_bytes(b"x")
        with device.power_cut():
            mounted.unmount()
        assert not mounted.mounted
        command = ["e2fsck", "-fy", str(device.path)]
        checked = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        assert checked.returncode in {0, 1}, checked.stdout

    def test_as_a_verb(self, device):
        cut = device.power_cut()
        device.write(0, b"x" * 512)
        cut.restore()
        cut.restore()
        assert device.read(0, 512) == bytes(512)
        device.write(0, b"x" * 512)
        assert device.read(0, 512) == b"x" * 512

    def test_with_files_open_it_stays_off(self, device, dm):
        dm.mkfs(device, "ext4")
        mounted = dm.mount(device, fs="ext4")
        cut = device.power_cut()
        with (mounted.mountpoint / "f").open("w"), pytest.raises(IoctlError, match="EBUSY"):
            mounted.unmount(timeout=0.1)
        with pytest.raises(DmError, match="power"):
            device.swap(Zero())
        cut.restore()
        assert not (mounted.mountpoint / "f").exists()

    def test_a_fault_is_back_with_the_power(self, dm_flakey):
        dm_flakey.fail(reads=True)
        with dm_flakey.power_cut():
            assert dm_flakey.read(0, 512) == bytes(512)
            with pytest.raises(DmError, match="power"):
                dm_flakey.heal()
        with pytest.raises(OSError, match="Input/output error"):
            dm_flakey.read(0, 512)
        dm_flakey.heal()
        assert dm_flakey.read(0, 512) == bytes(512)

    def test_where_data_is_not_in_one_place(self, dm):
        disks = {"a": dm.loop("1M"), "b": dm.loop("1M")}
        striped = dm.create("0 4096 striped 2 8 a 0 b 0", devices=disks)
        with pytest.raises(SpecError, match="striped"):
            striped.power_cut()
        striped.write(0, b"x" * 8 * KIB)
        above = dm.linear(striped)
        with above.power_cut():
            above.write(0, b"y" * 8 * KIB)
        assert above.read(0, 8 * KIB) == b"x" * 8 * KIB

    def test_it_is_quick(self, dm_linear):
        began = time.monotonic()
        for _ in range(5):
            with dm_linear.power_cut():
                pass
        assert time.monotonic() - began < 5
