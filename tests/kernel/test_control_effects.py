"""What commands of the control node do to the world around a device: its lists, its file system, its modules."""

from __future__ import annotations

import ctypes
import errno
import os
import subprocess
import threading
import time
from pathlib import Path

import pytest
from watching import gone

from dmcore.abi.devt import DevT
from dmcore.abi.dm import TableLine
from dmcore.errors import DeviceMissing
from dmcore.kernel.block import BlockFile
from dmcore.kernel.control import Control, Uuid
from dmcore.kernel.device import Device
from dmcore.kernel.mount import mount, unmount
from dmcore.table import Table

pytestmark = pytest.mark.dm

ZERO = [TableLine(0, 2048, "zero")]


def make(control, name, lines=ZERO, uuid=""):
    control.create(name, uuid)
    control.load(name, lines)
    return control.resume(name)


def test_lists_tell_uuids_and_event_numbers(control, name):
    make(control, f"{name}-a", uuid=f"U-{name}")
    make(control, f"{name}-b")
    for turn in range(3):
        control.rename(f"{name}-b" if turn == 0 else f"{name}-b{turn}", f"{name}-b{turn + 1}")
    told = {entry.name: (entry.uuid, entry.event_nr) for entry in control.list_devices(name)}
    assert told == {f"{name}-a": (f"U-{name}", 0), f"{name}-b3": ("", 3)}
    assert control.info(f"{name}-b3").event_nr == 3
    assert [entry.name for entry in control.list_devices(uuid_prefix=f"U-{name}")] == [f"{name}-a"]
    control.set_uuid(f"{name}-b3", f"V-{name}")
    (entry,) = control.list_devices(uuid_prefix=f"V-{name}")
    assert (entry.name, entry.event_nr) == (f"{name}-b3", 4)
    assert entry.dev == control.info(Uuid(f"V-{name}")).dev


def test_a_uuid_of_128_bytes_finds_its_device(control, name):
    for number, uuid in enumerate(("u" * 128, "u" * 127, "\udcff" * 128)):
        made = control.create(f"{name}-{number}", uuid)
        assert control.info(Uuid(uuid)).dev == made.dev
    control.create(f"{name}-later")
    control.set_uuid(f"{name}-later", "v" * 128)
    assert control.info(Uuid("v" * 128)).name == f"{name}-later"
    with pytest.raises(DeviceMissing):
        control.info(Uuid("u" * 126))


def test_a_deferred_removal_is_taken_back(control, name):
    with Device.create(control, name, Table.parse("0 2048 zero")) as made:
        with made.path.open("rb"):
            assert control.remove(name, deferred=True).deferred_remove
            control.cancel_deferred_remove(name)
            assert not control.info(name).deferred_remove
            control.cancel_deferred_remove(Uuid(made.uuid) if made.uuid else name)
        time.sleep(0.1)
        assert control.exists(name)
        with made.path.open("rb"):
            control.remove(name, deferred=True)
        gone(lambda: control.exists(name), name)


def test_taking_back_needs_no_table(control, name):
    control.create(name)
    control.cancel_deferred_remove(name)
    assert not control.info(name).deferred_remove
    with pytest.raises(DeviceMissing):
        control.cancel_deferred_remove(f"{name}-none")


def test_remove_all_takes_what_is_closed_and_marks_the_rest(control, name):
    others = [entry.name for entry in control.list_devices()]
    if others:
        pytest.skip(f"devices that are not of this test: {', '.join(others)}")
    for number in range(3):
        make(control, f"{name}-{number}")
    opened = Device.find(control, f"{name}-1")
    above = make(control, f"{name}-above", [TableLine(0, 8, "linear", f"{control.info(f'{name}-2').dev} 0")])
    with opened.path.open("rb"):
        control.remove_all(i_know=True)
        assert [entry.name for entry in control.list_devices()] == [f"{name}-1"]
        assert not control.info(f"{name}-1").deferred_remove
        control.remove_all(deferred=True, i_know=True)
        assert control.info(f"{name}-1").deferred_remove
    gone(lambda: control.exists(f"{name}-1"), f"{name}-1")
    assert above.dev not in [entry.dev for entry in control.list_devices()]


def test_deps_of_the_staged_table(control, name, disk):
    make(control, name)
    control.load(name, [TableLine(0, 8, "linear", f"{disk.ref} 0")])
    assert control.deps(name) == ()
    assert control.deps(name, inactive=True) == (DevT.parse(str(disk.ref)),)
    control.clear(name)
    assert control.deps(name, inactive=True) == ()


def test_status_of_the_staged_table(control, name, disk):
    make(control, name)
    control.load(name, [TableLine(0, 8, "dust", f"{disk.ref} 0 512")])
    assert control.status(name)[0].type == "zero"
    assert control.status(name, inactive=True)[0].params.split()[1:] == ["bypass", "verbose"]
    assert control.ima(name, inactive=True)[0].type == "dust"
    assert control.info(name, inactive=True).target_count == 1


@pytest.mark.parametrize("lockfs", [True, False])
def test_a_suspend_freezes_the_file_system_first_unless_told_not_to(control, name, disk, tmp_path, lockfs):
    """Freezing writes back what the page cache holds; without it a suspended device lacks it."""
    marker = os.urandom(32).hex().encode()
    table = Table.parse(f"0 {disk.size // 512} linear {disk.ref} 0")
    folder = tmp_path / "mnt"
    folder.mkdir()
    with Device.create(control, name, table) as made:
        subprocess.run(["mkfs.ext4", "-q", str(made.path)], check=True, timeout=60)
        mount(made.path, folder, "ext4")
        try:
            (folder / "file").write_bytes(marker * 64)
            with made.suspended(lockfs=lockfs), BlockFile(disk.path) as below:
                assert (marker in below.read(0, disk.size)) is lockfs
        finally:
            unmount(folder)


def test_target_version_loads_the_module(control):
    """A module that nobody uses is unloaded first."""
    delete = ctypes.CDLL(None, use_errno=True).syscall
    if delete(176, b"dm_switch", os.O_NONBLOCK) and ctypes.get_errno() != errno.ENOENT:
        pytest.skip(f"dm_switch stays: {os.strerror(ctypes.get_errno())}")
    if "switch" in control.list_versions():
        pytest.skip("switch is built in")
    assert control.target_version("switch") == control.list_versions()["switch"]
    assert Path("/sys/module/dm_switch").exists()


def test_a_poll_ends_at_an_event_of_somebody_else(control, name):
    """Each open node remembers for itself what it has seen."""
    import select

    make(control, name)
    with Control() as other:
        poller = select.poll()
        poller.register(other, select.POLLIN)
        assert poller.poll(0) == []
        timer = threading.Timer(0.1, lambda: control.rename(name, f"{name}-new"))
        timer.start()
        assert poller.poll(20000)
        timer.join()
        assert poller.poll(0), "until it is armed again"
        other.arm_poll()
        assert poller.poll(0) == []


@pytest.mark.parametrize(
    ("line", "keys"),
    [
        ("0 64 linear {disk} 8", {"device_name", "start"}),
        ("0 64 striped 1 64 {disk} 0", {"stripes", "chunk_size", "stripe_0_device_name", "stripe_0_status"}),
        ("0 64 mirror core 2 64 nosync 2 {disk} 0 {disk} 64", {"nr_mirrors", "mirror_device_0", "log_type_status"}),
        ("0 64 snapshot {disk} {other} N 8", {"snap_origin_name", "snap_cow_name", "snap_valid", "snap_merge_failed"}),
        ("0 64 crypt aes-xts-plain64 {key} 0 {disk} 0", {"cipher_string", "key_size", "key_parts", "allow_discards"}),
        ("0 64 integrity {disk} 0 - D 1 internal_hash:crc32c", {"dev_name", "mode", "tag_size", "journal_sectors"}),
    ],
    ids=lambda value: value.split()[2] if isinstance(value, str) else "",
)  # fmt: skip
def test_what_ima_is_told_of_a_target(control, name, disk, line, keys):
    """Words that the kernel gives for measurement; a key is none of them."""
    key = "5a" * 32
    other = make(control, f"{name}-other")
    table = Table.parse(line.format(disk=disk.ref, other=other.dev, key=key))
    control.create(name)
    control.load(name, table.encode(str), secure=table.secret)
    (told,) = control.ima(name, inactive=True)
    assert told.params.startswith(f"target_name={told.type},target_version=")
    assert told.params.endswith(";")
    words = dict(word.partition("=")[::2] for word in told.params[:-1].split(","))
    assert keys <= set(words)
    assert words["target_version"] == ".".join(map(str, control.target_version(told.type)))
    assert key not in told.params
