"""Every command of the control node on a real kernel."""

from __future__ import annotations

import errno
import fcntl
import os
import select
import signal
import struct
import subprocess
import threading
import time
from pathlib import Path

import pytest

from dmcore.abi.devt import DevT
from dmcore.abi.dm import Command, DmFlag, DmIoctl, TableLine
from dmcore.abi.dm_records import pack_lines
from dmcore.errors import DeviceBusy, DeviceMissing, IoctlError, SpecError, TableRejected, Unsupported
from dmcore.kernel.control import Control, Uuid, probe_paths
from dmcore.kernel.kmsg import KernelLog

pytestmark = pytest.mark.dm

ZERO = [TableLine(0, 2048, "zero")]
HDIO_GETGEO = 0x0301


def dmsetup(*words):
    return subprocess.run(["dmsetup", *words], check=True, capture_output=True, text=True, timeout=30).stdout


def make(control, name, lines, uuid=""):
    control.create(name, uuid)
    control.load(name, lines)
    return control.resume(name)


def open_node(info, tmp_path, flags=os.O_RDONLY):
    node = tmp_path / f"node-{info.dev.minor}"
    if not node.exists():
        os.mknod(node, 0o60600, info.dev.rdev)
    return os.open(node, flags)


def test_version(control):
    shown = dmsetup("version").split("Driver version:")[1].strip()
    assert ".".join(map(str, control.version())) == shown
    assert control.version()[0] == 4


def test_life_of_a_device(control, name):
    created = control.create(name, f"U-{name}")
    assert (created.name, created.uuid) == (name, f"U-{name}")
    assert not any((created.live, created.inactive, created.suspended, created.uevent_generated))
    selectors = [name, Uuid(f"U-{name}"), created.dev]
    for selector in selectors:
        loaded = control.load(selector, ZERO)
        assert (loaded.inactive, loaded.live, loaded.target_count) == (True, False, 0)
        assert control.info(selector, inactive=True).target_count == 1
        assert control.table(selector, inactive=True) == ZERO
        assert control.table(selector) == []
        assert not control.clear(selector).inactive
    control.load(name, ZERO)
    for selector in selectors:
        resumed = control.resume(selector)
        assert (resumed.live, resumed.inactive, resumed.suspended) == (True, False, False)
        assert control.suspend(selector).suspended
        assert control.suspend(selector, noflush=True, lockfs=False).suspended
        assert control.table(selector) == ZERO == control.status(selector)
        assert control.deps(selector) == ()
    assert control.resume(name).uevent_generated
    assert not control.resume(name).uevent_generated
    assert control.remove(created.dev).name == name
    assert not control.exists(name)


def test_names_and_uuids_that_are_taken(control, name):
    first = control.create(name, f"U-{name}")
    for again in (lambda: control.create(name), lambda: control.create(f"{name}x", f"U-{name}")):
        with pytest.raises(DeviceBusy) as caught:
            again()
        assert (caught.value.errno, caught.value.command) == (errno.EBUSY, "DM_DEV_CREATE")
    with pytest.raises(IoctlError) as caught:
        control.create(f"{name}x", minor=first.dev.minor)
    assert (type(caught.value), caught.value.errno) == (IoctlError, errno.ENXIO)
    assert f"minor {first.dev.minor}" in str(caught.value)
    assert [entry.name for entry in control.list_devices(name)] == [name]


def test_a_minor_of_ones_own(control, name):
    assert control.create(name, minor=(1 << 20) - 1).dev.minor == (1 << 20) - 1
    with pytest.raises(SpecError):
        control.create(f"{name}x", minor=1 << 20)


@pytest.mark.parametrize(
    "bad", ["", "a/b", "control", ".", "..", "n" * 128, "\u00e4" * 64, "a\0b", "\ud800"], ids=ascii
)
def test_names_refused_before_anything_happens(control, name, bad):
    before = control.list_devices()
    control.create(name)
    for command in (
        lambda: control.create(bad),
        lambda: control.rename(name, bad),
        lambda: control.set_uuid(name, bad if bad in {"", "a\0b", "\ud800"} else "u" * 129),
    ):
        with pytest.raises(SpecError):
            command()
    control.remove(name)
    assert control.list_devices() == before


@pytest.mark.parametrize(
    "odd", [" blank", "\n\t", "\u00e4\u20ac", "\udcff\udc80", "\\x20", "'\"$"], ids=ascii
)
def test_odd_names(control, name, odd):
    full = name + odd
    made = control.create(full, full)
    assert made.name == made.uuid == full
    assert control.info(Uuid(full)).dev == made.dev
    assert [entry.name for entry in control.list_devices(full, full)] == [full]
    assert Path(f"/sys/dev/block/{made.dev}").exists() is False
    control.remove(full)


def test_longest_names(control, name):
    long = name.ljust(127, "n")
    control.create(long, long + "u")
    control.rename(long, name.ljust(126, "m"))
    assert control.info(Uuid(long + "u")).name == name.ljust(126, "m")


def test_rename_and_set_uuid(control, name):
    control.create(name)
    control.create(f"{name}-other", f"U-{name}")
    assert control.rename(name, f"{name}-new").name == name
    assert control.info(f"{name}-new").name == f"{name}-new"
    for taken in (f"{name}-new", f"{name}-other"):
        with pytest.raises(DeviceBusy):
            control.rename(f"{name}-new", taken)
    with pytest.raises(DeviceBusy):
        control.set_uuid(f"{name}-new", f"U-{name}")
    assert control.set_uuid(f"{name}-new", f"V-{name}").uuid == ""
    assert control.info(f"{name}-new").uuid == f"V-{name}"
    with pytest.raises(IoctlError) as caught:
        control.set_uuid(f"{name}-new", "W")
    assert caught.value.errno == errno.EINVAL


def test_missing_devices(control, name):
    commands = {
        "DM_DEV_REMOVE": lambda: control.remove(name),
        "DM_DEV_RENAME": lambda: control.rename(name, "x"),
        "DM_DEV_SUSPEND": lambda: control.suspend(name),
        "DM_DEV_STATUS": lambda: control.info(name),
        "DM_DEV_WAIT": lambda: control.wait(name, 0),
        "DM_TABLE_LOAD": lambda: control.load(name, ZERO),
        "DM_TABLE_CLEAR": lambda: control.clear(name),
        "DM_TABLE_DEPS": lambda: control.deps(name),
        "DM_TABLE_STATUS": lambda: control.table(name),
        "DM_TARGET_MSG": lambda: control.message(name, "hi"),
        "DM_DEV_SET_GEOMETRY": lambda: control.set_geometry(name, cylinders=1, heads=1, sectors=1),
    }
    for command, call in commands.items():
        with pytest.raises(DeviceMissing) as caught:
            call()
        assert (caught.value.command, caught.value.device) == (command, name)
        assert caught.value.errno == errno.ENXIO
    for selector in (Uuid("no such uuid"), DevT(254, 4711)):
        with pytest.raises(DeviceMissing):
            control.resume(selector)
    for selector in ("", Uuid("")):
        with pytest.raises(SpecError):
            control.info(selector)


@pytest.mark.parametrize(
    ("lines", "reason"),
    [
        ([TableLine(0, 8, "nonsense")], "unknown target type"),
        ([TableLine(0, 8, "linear", "/dev/none 0")], "Device lookup failed"),
        ([TableLine(0, 8, "linear", "240:7 0")], "Device lookup failed"),
        ([TableLine(0, 8, "zero", "1")], "No arguments required"),
        ([TableLine(8, 8, "zero")], "Gap in table"),
        ([TableLine(0, 0, "zero")], "zero-length target"),
    ],
)
def test_rejected_tables_say_why(control, name, lines, reason):
    control.create(name)
    with pytest.raises(TableRejected) as caught:
        control.load(name, lines)
    assert any(reason in line for line in caught.value.kernel_log), caught.value.kernel_log
    assert caught.value.device == name
    assert str(lines[0]) in str(caught.value)
    assert not control.info(name).inactive
    with pytest.raises(SpecError):
        control.load(name, [])


def test_the_log_of_something_else_is_not_shown(control, name):
    control.create(name)
    with pytest.raises(TableRejected):
        control.load(name, [TableLine(0, 8, "first")])
    Path("/dev/kmsg").write_bytes(b"<5>dmcore: before the load\n")
    with pytest.raises(TableRejected) as caught:
        control.load(name, [TableLine(0, 8, "second")])
    assert len(caught.value.kernel_log) == 2
    assert "second" in caught.value.kernel_log[0]


def test_the_log_of_another_failure_is_not_shown(control, name):
    control.create(name)
    for kind in ("nonsense", "rubbish"):
        with pytest.raises(TableRejected) as caught:
            control.load(name, [TableLine(0, 8, kind)])
        said = "\n".join(caught.value.kernel_log)
        assert kind in said
    assert "nonsense" not in said


def test_keys_stay_out_of_errors_and_buffers(control, name):
    control.create(name)
    secret = "0123456789abcdef"
    line = TableLine(0, 8, "zero", secret)
    with pytest.raises(TableRejected) as caught:
        control.load(name, [line], secure=True)
    assert secret not in repr(caught.value) + str(caught.value)
    make(control, f"{name}-z", ZERO)
    with pytest.raises(IoctlError) as caught:
        control.message(f"{name}-z", secret, secure=True)
    assert secret not in repr(caught.value) + str(caught.value)
    payload, count = pack_lines(ZERO)
    header = DmIoctl(DmFlag.SECURE_DATA, name, target_count=count)
    _, buffer = control.request(Command.DM_TABLE_LOAD, header, payload=payload, room=1024)
    assert not any(buffer[312:])


def test_a_table_rejected_at_resume(control, name, disk, tmp_path):
    whole = disk.size // 512
    make(control, name, [TableLine(0, whole, "linear", f"{disk.ref} 0")])
    control.load(name, [TableLine(0, whole, "linear", f"{disk.ref} 8")])
    with pytest.raises(TableRejected) as caught:
        control.resume(name)
    assert caught.value.errno == errno.EINVAL
    assert any("too small" in line for line in caught.value.kernel_log)
    state = control.info(name)
    assert (state.suspended, state.live, state.inactive) == (True, True, False)
    assert not control.resume(name).suspended
    assert control.table(name)[0].params == f"{disk.ref} 0"


def test_readonly(control, name, disk, tmp_path):
    control.create(name)
    control.load(name, [TableLine(0, 64, "linear", f"{disk.ref} 0")], readonly=True)
    assert control.info(name, inactive=True).readonly
    info = control.resume(name)
    assert info.readonly
    fd = open_node(info, tmp_path, os.O_RDWR)
    with pytest.raises(PermissionError):
        os.write(fd, bytes(512))
    os.close(fd)


def test_tables_larger_than_the_first_buffer(control, name, disk):
    lines = [TableLine(number, 1, "linear", f"{disk.ref} {number}") for number in range(700)]
    make(control, name, lines)
    assert control.table(name) == lines
    assert len(control.status(name)) == 700
    assert control.deps(name) == (DevT.parse(str(disk.ref)),)
    info, found = control.wait(name, 99)
    assert (info.event_nr, len(found)) == (0, 700)


def test_lists_larger_than_the_first_buffer(control, name):
    names = [f"{name}-{number:03}".ljust(127, "x") for number in range(70)]
    for each in reversed(names):
        control.create(each, each + "u")
    entries = control.list_devices(name)
    assert [entry.name for entry in entries] == names
    assert [entry.uuid for entry in entries] == [each + "u" for each in names]
    assert [entry.name for entry in control.list_devices(name, names[3])] == [names[3]]
    for each in names:
        control.remove(each)


def test_messages(control, name, disk):
    make(control, name, [TableLine(0, 64, "zero"), TableLine(64, 640, "dust", f"{disk.ref} 0 512")])
    assert control.message(name, "addbadblock 7", sector=64) == ""
    assert control.message(name, "listbadblocks", sector=703) == "7\n"
    with pytest.raises(IoctlError) as caught:
        control.message(name, "addbadblock 7")
    assert "does not support messages" in "\n".join(caught.value.kernel_log)
    assert "message 0 addbadblock 7" in str(caught.value)
    for bad in ({"text": " "}, {"text": "a\0"}, {"text": "a", "sector": -1}):
        with pytest.raises(SpecError):
            control.message(name, **bad)


def test_a_message_without_a_table_is_an_error(control, name):
    """Kernels up to 6.1 answer 2 and no errno."""
    control.create(name)
    with pytest.raises(IoctlError) as caught:
        control.message(name, "hello")
    assert caught.value.errno == errno.EINVAL


def test_a_reply_that_does_not_fit_says_that_the_message_was_done(control, name, disk):
    make(control, name, [TableLine(0, 8192, "dust", f"{disk.ref} 0 512")])
    for block in range(3500):
        control.message(name, f"addbadblock {block + 4000}")
    with pytest.raises(IoctlError, match="carried out") as caught:
        control.message(name, "listbadblocks")
    assert caught.value.errno == errno.ENOBUFS


def test_busy_and_deferred(control, name, tmp_path):
    fd = open_node(make(control, name, ZERO), tmp_path)
    with pytest.raises(DeviceBusy):
        control.remove(name)
    marked = control.remove(name, deferred=True)
    assert marked.deferred_remove
    assert control.info(name).open_count == 1
    os.close(fd)
    deadline = time.monotonic() + 5
    while control.exists(name):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_wait_for_an_event(control, name):
    make(control, name, ZERO)
    seen = []
    waiter = threading.Thread(target=lambda: seen.append(control.wait(name, 0)))
    waiter.start()
    time.sleep(0.05)
    assert not seen
    control.rename(name, f"{name}-new")
    waiter.join(5)
    ((info, status),) = seen
    assert (info.event_nr, info.live, status) == (1, True, ZERO)


def test_signals_during_a_wait(control, name):
    """A handler that returns does not end the wait; one that raises does."""
    make(control, name, ZERO)
    rings = []

    def ring(number, frame):
        rings.append(number)
        if len(rings) == 3:
            raise TimeoutError

    before = signal.signal(signal.SIGALRM, ring)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.05, 0.05)
        with pytest.raises(TimeoutError):
            control.wait(name, 0)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert len(rings) == 3


def test_poll(control, name):
    poller = select.poll()
    poller.register(control, select.POLLIN)
    control.arm_poll()
    assert poller.poll(0) == []
    control.create(name)
    assert poller.poll(1000)
    control.arm_poll()
    control.load(name, ZERO)
    assert poller.poll(0) == []
    control.resume(name)
    assert poller.poll(1000)


def test_targets(control):
    versions = control.list_versions()
    assert {"linear", "striped", "error"} <= set(versions)
    assert control.target_version("linear") == versions["linear"]
    assert control.target_version("flakey") == control.list_versions()["flakey"]
    with pytest.raises(Unsupported, match="nonsense"):
        control.target_version("nonsense")


def test_geometry(control, name, tmp_path):
    info = make(control, name, ZERO)
    control.set_geometry(name, cylinders=4, heads=16, sectors=32, start=7)
    fd = open_node(info, tmp_path)
    raw = bytearray(16)
    fcntl.ioctl(fd, HDIO_GETGEO, raw)
    os.close(fd)
    assert struct.unpack("BBHxxxxQ", raw) == (16, 32, 4, 7)
    for bad in ({"cylinders": 65536}, {"heads": 256}, {"sectors": -1}, {"start": 9}):
        with pytest.raises(SpecError):
            control.set_geometry(name, **{"cylinders": 2, "heads": 2, "sectors": 2, **bad})


def test_ima(control, name, disk):
    make(control, name, [TableLine(0, 8, "linear", f"{disk.ref} 0"), TableLine(8, 8, "zero")])
    linear, zero = control.ima(name)
    assert linear.params.startswith("target_name=linear,")
    assert zero.params == ""


def test_probing_paths_of_what_has_none(control, name, tmp_path):
    fd = open_node(make(control, name, ZERO), tmp_path)
    with pytest.raises(IoctlError) as caught:
        probe_paths(fd)
    os.close(fd)
    assert caught.value.errno in {errno.ENOTTY, errno.EINVAL}


def test_remove_all_wants_to_be_asked_for(control, name):
    control.create(name)
    with pytest.raises(SpecError):
        control.remove_all()
    assert control.exists(name)
    if [entry.name for entry in control.list_devices()] == [name]:
        control.remove_all(i_know=True)
        assert control.list_devices() == []


def test_threads_share_a_control(control, name):
    def work(number):
        for turn in range(8):
            mine = f"{name}-{number}"
            info = make(control, mine, [TableLine(0, 8 * (number + turn + 1), "zero")], mine)
            assert control.table(info.dev)[0].length == 8 * (number + turn + 1)
            with pytest.raises(TableRejected) as caught:
                control.load(mine, [TableLine(0, 8, f"bad-{number}-{turn}")])
            assert f"bad-{number}-{turn}" in "\n".join(caught.value.kernel_log)
            control.remove(Uuid(mine))
        done.append(number)

    done = []
    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert sorted(done) == [0, 1, 2, 3]
    assert control.list_devices(name) == []


def test_without_privileges(control):
    os.seteuid(65534)
    try:
        with pytest.raises(Unsupported, match="CAP_SYS_ADMIN"):
            control.version()
        with pytest.raises(Unsupported, match="root"):
            Control()
    finally:
        os.seteuid(0)


def test_the_node_is_made_where_it_is_missing():
    path = Path(f"/dev/dmcore-test-{os.getpid()}/control")
    try:
        with Control(path) as control:
            assert control.version()[0] == 4
            assert path.stat().st_mode == 0o20600
    finally:
        path.unlink()
        path.parent.rmdir()


def test_what_is_no_control_node(tmp_path):
    with pytest.raises(Unsupported, match="device-mapper"):
        Control(tmp_path)


def test_closed(control, name):
    other = Control()
    other.close()
    other.close()
    with pytest.raises(IoctlError) as caught:
        other.info(name)
    assert caught.value.errno == errno.EBADF


def test_kernel_log():
    with KernelLog() as log, Path("/dev/kmsg").open("wb", buffering=0) as writer:
        first = log.mark()
        writer.write(b"<5>dmcore: one\n")
        second = log.mark()
        writer.write(b"<5>dmcore: two\n")
        assert "dmcore: one" in log.since(first)
        assert "dmcore: one" not in log.since(second)
        assert "dmcore: two" in log.since(first)
        assert "dmcore: two" in log.since(second)
        assert not log.unavailable
