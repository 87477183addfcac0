"""Device on a real kernel: one step in, one step out, and nothing left between."""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
import subprocess
import threading
import time
from pathlib import Path

import pytest
from dmsetup_oracle import assert_agrees, dmsetup
from watching import interrupted_everywhere

from dmcore.abi.devt import DevT
from dmcore.abi.dm import TableLine
from dmcore.errors import DeviceBusy, DeviceMissing, IoctlError, SpecError, TableRejected
from dmcore.kernel import below, control_node, device, nodes, udev
from dmcore.kernel import control as control_module
from dmcore.kernel.control import Uuid
from dmcore.kernel.device import Device
from dmcore.kernel.loop import LoopDevice
from dmcore.table import Table
from dmcore.targets import Dust
from dmcore.targets._raw import Raw

pytestmark = pytest.mark.dm

ZERO = Table.parse("0 2048 zero")
ERROR = Table.parse("0 2048 error")


def linear(ref, length, offset=0):
    return Table.parse(f"0 {length} linear {ref} {offset}")


def everything():
    """What must be the same after a failure: devices, loop devices, nodes."""
    loops = subprocess.run(["losetup", "-a"], check=True, capture_output=True, text=True, timeout=30).stdout
    return dmsetup("ls"), loops, sorted(Path("/dev/mapper").iterdir())


def read_direct(path, length=4096):
    fd = os.open(path, os.O_RDONLY | os.O_DIRECT)
    try:
        with mmap.mmap(-1, length) as buffer:
            return os.preadv(fd, [buffer], 0)
    finally:
        os.close(fd)


def test_a_device_from_beginning_to_end(control, name, disk):
    before = everything()
    with Device.create(control, name, linear(disk.ref, 2048, 8), uuid=f"U-{name}") as made:
        assert (made.name, made.uuid, made.size) == (name, f"U-{name}", 1 << 20)
        assert made.path == Path("/dev/mapper") / name
        assert udev.running() or made.path.stat().st_mode == 0o60600
        assert made.path.stat().st_rdev == made.dev.rdev
        assert str(made.ref) == str(made.dev)
        assert made.table_text() == f"0 2048 linear {disk.ref} 8"
        assert made.table() == linear(disk.ref, 2048, 8)
        assert made.deps() == (DevT.parse(str(disk.ref)),)
        with made.path.open("r+b", buffering=0) as file:
            file.write(b"x" * 512)
            os.fsync(file.fileno())
        assert disk.backing.read_bytes()[8 * 512 : 9 * 512] == b"x" * 512
        assert_agrees(control, made.selector)
        found = Device.find(control, made.dev)
        assert (found.name, found.uuid, found.path) == (made.name, made.uuid, made.path)
    assert made.removed
    made.remove()
    assert everything() == before


@contextlib.contextmanager
def taken(control, name, uuid=""):
    control.create(name, uuid)
    try:
        yield
    finally:
        control.remove(name)


FAILURES = {
    "unknown target": ("0 8 nonsense", TableRejected),
    "bad table": (Table.of(Raw("striped", "2 x"), 8), TableRejected),
    "missing lower device": ("0 8 linear /dev/nowhere 0", TableRejected),
    "lower device unregistered": ("0 8 linear 240:7 0", TableRejected),
    "lower path no device": ("0 8 linear /dev/null 0", TableRejected),
    "device too small": ("0 20000 linear {disk} 0", TableRejected),
    "device misaligned": ("0 2048 linear {disk} 9000000", TableRejected),
    "reference without a device": ("0 8 linear below 0", SpecError),
    "on itself": ("0 8 linear {self} 0", SpecError),
}


@pytest.mark.parametrize("case", FAILURES)
def test_a_create_that_fails_leaves_nothing(control, name, disk, case):
    given, error = FAILURES[case]
    probe = control.create(f"{name}-probe")
    control.remove(f"{name}-probe")
    before = everything()
    table = given if isinstance(given, Table) else Table.parse(given.format(disk=disk.ref, self=probe.dev))
    for uuid in ("", f"U-{name}"):
        with pytest.raises(error) as caught:
            Device.create(control, name, table, uuid=uuid)
        assert not getattr(caught.value, "__notes__", [])
        assert everything() == before


def test_a_name_or_uuid_that_is_taken_stays_with_its_owner(control, name):
    with taken(control, name, f"U-{name}"), taken(control, f"{name}-2"):
        before = everything()
        for args in (
            {"name": name},
            {"name": name, "uuid": "V"},
            {"name": f"{name}x", "uuid": f"U-{name}"},
            {"name": f"{name}-2"},
        ):
            with pytest.raises(DeviceBusy):
                Device.create(control, table=ZERO, **args)
            assert everything() == before


MODULES = (device, control_module, control_node, below, nodes)


@pytest.mark.parametrize("uuid", ["", "U"])
def test_an_interrupt_at_any_line_of_create_leaves_nothing(control, name, uuid):
    before = everything()
    made = []
    for _ in interrupted_everywhere(
        lambda: made.append(Device.create(control, name, ZERO, uuid=uuid and f"U-{name}")), *MODULES
    ):
        for each in made:
            each.remove()
        assert control.list_devices(name) == []
        assert sorted(Path("/dev/mapper").iterdir()) == before[2]
    assert len(made) == 1
    assert everything() == before


def test_an_interrupt_at_any_line_of_reload_leaves_one_table_running(control, name):
    with Device.create(control, name, ZERO) as made:
        for _ in interrupted_everywhere(lambda: made.reload(ERROR), *MODULES):
            state = made.info()
            assert (state.suspended, state.inactive, state.live) == (False, False, True)
            if made.table() != ZERO:
                assert made.table() == ERROR
                made.reload(ZERO)


@pytest.mark.skipif(udev.running(), reason="a udevd makes the nodes here")
def test_stale_nodes_are_replaced_and_other_files_are_not(control, name):
    node = nodes.node_path(name)
    os.mknod(node, 0o60600, os.makedev(250, 250))
    with Device.create(control, name, ZERO) as made:
        assert node.stat().st_rdev == made.dev.rdev
    assert not node.exists()
    node.write_text("mine")
    with pytest.raises(IoctlError) as caught:
        Device.create(control, name, ZERO)
    assert caught.value.errno == errno.EEXIST
    assert control.list_devices(name) == []
    assert node.read_text() == "mine"
    node.unlink()


@pytest.mark.skipif(udev.running(), reason="a udevd makes the nodes here")
def test_odd_names_get_mangled_nodes(control, name):
    with Device.create(control, f"{name} \u00e4", ZERO) as made:
        assert made.path.name == f"{name}\\x20\\xc3\\xa4"
        assert read_direct(made.path) == 4096
    assert not made.path.exists()


def test_reload(control, name, disk):
    with Device.create(control, name, ZERO) as made:
        made.reload(linear(disk.ref, 4096))
        assert (made.size, made.table()) == (2 << 20, linear(disk.ref, 4096))
        made.reload(Table.parse("0 8 linear below 0"), devices={"below": str(disk.path)}, readonly=True)
        assert made.info().readonly
        made.reload(ZERO, noflush=True, lockfs=False)
        state = made.info()
        assert (state.readonly, state.suspended, state.inactive) == (False, False, False)
        assert made.deps() == ()


@pytest.mark.parametrize("staged", [False, True])
def test_a_table_rejected_at_load_changes_nothing(control, name, disk, staged):
    with Device.create(control, name, ZERO) as made:
        if staged:
            control.load(name, [TableLine(0, 8, "error")])
        before = made.info()
        with pytest.raises(TableRejected):
            made.reload(Table.parse("0 8 nonsense"))
        with pytest.raises(SpecError):
            made.reload(Table.parse("0 8 linear below 0"))
        assert made.info() == before
        assert made.table() == ZERO


def test_a_table_rejected_at_resume_leaves_the_old_one_running(control, name, disk):
    whole = linear(disk.ref, disk.size // 512)
    with Device.create(control, name, whole) as made:
        with pytest.raises(TableRejected) as caught:
            made.reload(linear(disk.ref, disk.size // 512, 8))
        assert "too small" in "\n".join(caught.value.kernel_log)
        state = made.info()
        assert (state.suspended, state.inactive) == (False, False)
        assert made.table() == whole
        assert read_direct(made.path) == 4096


def test_reload_under_io(control, name, disk):
    """No request fails or gets lost while tables are swapped under readers."""
    stop = threading.Event()
    counts = []

    def read():
        count = 0
        while not stop.is_set():
            assert read_direct(made.path) == 4096
            count += 1
        counts.append(count)

    with Device.create(control, name, ZERO) as made:
        readers = [threading.Thread(target=read) for _ in range(2)]
        for reader in readers:
            reader.start()
        for _ in range(15):
            made.reload(linear(disk.ref, 2048))
            made.reload(ZERO, noflush=True)
        stop.set()
        for reader in readers:
            reader.join(10)
    assert len(counts) == 2
    assert min(counts) > 0


def test_suspended_holds_io_back_and_always_ends(control, name):
    with Device.create(control, name, ZERO) as made:
        done = threading.Event()
        reader = threading.Thread(target=lambda: (read_direct(made.path), done.set()))

        def fail_inside():
            with made.suspended() as same:
                assert same is made
                assert made.info().suspended
                reader.start()
                assert not done.wait(0.1)
                raise RuntimeError("inside")

        with pytest.raises(RuntimeError, match="inside"):
            fail_inside()
        assert done.wait(5)
        reader.join(5)
        assert not made.info().suspended


def test_removal_of_a_suspended_device_that_somebody_reads(control, name):
    """The reader's I/O would keep it open for ever; it is let go on."""
    made = Device.create(control, name, ZERO)
    made.suspend()
    reader = threading.Thread(target=lambda: read_direct(made.path))
    reader.start()
    time.sleep(0.1)
    made.remove(timeout=5)
    reader.join(5)
    assert not reader.is_alive()
    assert not control.exists(name)


def test_an_open_device_says_who_holds_it(control, name):
    made = Device.create(control, name, ZERO, uuid=f"U-{name}")
    above = Device.create(control, f"{name}-above", linear(made.ref, 2048))
    fd = os.open(made.path, os.O_RDONLY)
    started = time.monotonic()
    with pytest.raises(DeviceBusy) as caught:
        made.remove(timeout=0.2, deferred=False)
    assert 0.2 <= time.monotonic() - started < 5
    said = str(caught.value)
    assert f"process {os.getpid()}" in said
    assert f"({name}-above)" in said
    assert "last close" not in said
    assert not made.info().deferred_remove
    with pytest.raises(DeviceBusy, match="last close"):
        made.remove(timeout=0)
    assert made.info().deferred_remove
    assert not made.path.exists()
    os.close(fd)
    above.remove()
    deadline = time.monotonic() + 5
    while control.exists(name):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    made.remove()
    assert made.removed


def test_removal_waits_for_a_holder_that_goes(control, name):
    made = Device.create(control, name, ZERO)
    fd = os.open(made.path, os.O_RDONLY)
    closer = threading.Timer(0.2, os.close, (fd,))
    closer.start()
    made.remove()
    closer.join()
    assert not control.exists(name)


def test_a_device_that_somebody_else_removed(control, name):
    made = Device.create(control, name, ZERO)
    control.remove(name)
    for call in (made.info, made.table, made.status, made.suspend, made.deps, made.wait):
        with pytest.raises(DeviceMissing):
            call()
    made.remove()
    assert made.removed
    assert not made.path.exists()
    with pytest.raises(DeviceMissing):
        Device.find(control, name)


def test_rename(control, name):
    with Device.create(control, name, ZERO, uuid=f"U-{name}") as made:
        old = made.path
        made.rename(f"{name}-new")
        assert (made.name, made.path) == (f"{name}-new", Path(f"/dev/mapper/{name}-new"))
        assert not old.exists()
        assert made.path.stat().st_rdev == made.dev.rdev
        with pytest.raises(DeviceBusy):
            made.rename(f"{name}-new")
        assert made.info().name == f"{name}-new"
    assert control.list_devices(name) == []


def test_messages_and_status(control, name, disk):
    table = Table.parse(f"0 64 zero\n64 640 dust {disk.ref} 0 512")
    with Device.create(control, name, table) as made:
        assert made.message("addbadblock 5", sector=64) == ""
        assert made.message("countbadblocks", sector=64) == "countbadblocks: 1 badblock(s) found"
        status = made.status()
        assert len(status) == 2
        assert made.status_text().splitlines()[1] == f"64 640 dust {disk.ref} bypass verbose"
        assert status[1] == Dust.parse_status(table.lines[1].target, f"{disk.ref} bypass verbose")


def test_other_threads_run_while_a_long_request_waits(control, name, disk):
    """A snapshot's load reads its store, and only another thread can let the device below go on."""
    with Device.create(control, f"{name}-store", linear(disk.ref, 8192, 8192)) as store:
        control.create(name)
        line = TableLine(0, 4096, "snapshot", f"{disk.ref} {store.ref} P 8")
        store.suspend(noflush=True)
        loader = threading.Thread(target=control.load, args=(name, [line]), kwargs={"secure": True})
        loader.start()
        time.sleep(0.1)
        assert loader.is_alive()
        store.resume()
        loader.join(10)
        assert not loader.is_alive()
        assert control.info(name).inactive
        control.remove(name)


def test_wait(control, name):
    with Device.create(control, name, ZERO, uuid=f"U-{name}") as made:
        assert made.wait(99) == 0
        started = time.monotonic()
        with pytest.raises(IoctlError) as caught:
            made.wait(timeout=0.2)
        assert caught.value.errno == errno.ETIMEDOUT
        assert 0.2 <= time.monotonic() - started < 3
        other = Device.create(control, f"{name}-other", ZERO)
        threading.Timer(0.1, control.rename, (other.name, f"{name}-renamed")).start()
        worked = time.process_time()
        with pytest.raises(IoctlError):
            made.wait(timeout=0.8)
        assert time.process_time() - worked < 0.4
        other = Device.find(control, f"{name}-renamed")
        threading.Timer(0.1, other.remove).start()
        threading.Timer(0.2, control.rename, (name, f"{name}-new")).start()
        assert made.wait(timeout=10) == 1
        made.name = f"{name}-new"
        threading.Timer(0.1, control.remove, (Uuid(f"U-{name}"),)).start()
        with pytest.raises(DeviceMissing):
            made.wait(timeout=10)
    for bad in (-1, float("inf"), float("nan")):
        with pytest.raises(SpecError):
            made.wait(timeout=bad)


def test_tables_that_stand_on_themselves_are_refused(control, name):
    """Accepted by 6.1, and through others by all; the first block ioctl then overflows the kernel's stack."""
    with (
        Device.create(control, name, ZERO) as low,
        Device.create(control, f"{name}-2", linear(low.ref, 2048)) as high,
    ):
        for ref in (low.ref, high.ref, low.path, high.path):
            with pytest.raises(SpecError, match="stand on itself"):
                low.reload(linear(ref, 2048))
        assert low.table() == ZERO
        high.reload(linear(low.path, 1024))


def test_mounted_devices(control, name, tmp_path):
    """A reload freezes the file system; a removal says where it is mounted."""
    backing = tmp_path / "fs.img"
    backing.touch()
    os.truncate(backing, 32 << 20)
    point = tmp_path / "point"
    point.mkdir()
    with LoopDevice.attach(backing, direct_io=False) as loop:
        table = linear(loop.ref, loop.size // 512)
        made = Device.create(control, name, table)
        subprocess.run(["mkfs.ext4", "-q", made.path], check=True, timeout=60)
        subprocess.run(["mount", made.path, point], check=True, timeout=60)
        try:
            (point / "file").write_text("content")
            made.reload(table)
            with made.suspended(noflush=True, lockfs=False):
                pass
            assert (point / "file").read_text() == "content"
            with pytest.raises(DeviceBusy, match=f"mounted at {point}"):
                made.remove(timeout=0.1, deferred=False)
        finally:
            subprocess.run(["umount", point], check=True, timeout=60)
        made.remove()
