"""Multipath on kernels: paths that fail and come back."""

from __future__ import annotations

import contextlib
import errno
import threading
import time
from collections.abc import Iterator

import pytest

from dmcore import targets
from dmcore.abi.dm import MPATH_PROBE_PATHS
from dmcore.errors import IoctlError, TableRejected
from dmcore.kernel.block import BlockFile
from dmcore.kernel.control import probe_paths
from dmcore.kernel.device import Device
from dmcore.ref import Ref
from dmcore.table import Table
from dmcore.targets.multipath import (
    DisableGroup,
    EnableGroup,
    FailIfNoPath,
    FailPath,
    Group,
    GroupState,
    Multipath,
    MultipathStatus,
    Path,
    QueueIfNoPath,
    QueueMode,
    ReinstatePath,
    Selector,
    SwitchGroup,
)


def _state(device: Device) -> MultipathStatus:
    (status,) = device.status()
    assert isinstance(status, MultipathStatus)
    return status


def _used(device: Device) -> str:
    return "".join("A" if path.active else "F" for path in _state(device).paths)


def _groups(device: Device) -> str:
    return "".join(group.state.value for group in _state(device).groups)


class Legs:
    """Two devices below that fail on command, each a linear part of a disk of its own."""

    def __init__(self, stack: contextlib.ExitStack, lab) -> None:
        self.disks = lab.refs
        self.devices = [
            stack.enter_context(lab.device(targets.Linear(dev=dev, offset=0), 1024)) for dev in lab.refs
        ]
        self.refs = [device.ref for device in self.devices]

    def fail(self, index: int) -> None:
        self.devices[index].reload(Table.of(targets.Error(), 1024))

    def heal(self, index: int) -> None:
        self.devices[index].reload(Table.of(targets.Linear(dev=self.disks[index], offset=0), 1024))


@pytest.fixture
def legs(lab) -> Iterator[Legs]:
    with contextlib.ExitStack() as stack:
        yield Legs(stack, lab)


def _of(legs: Legs, *, groups: int = 1, **words) -> Multipath:
    paths = [Path(ref) for ref in legs.refs]
    split = (Group(tuple(paths)),) if groups == 1 else tuple(Group((path,)) for path in paths)
    return Multipath(groups=split, queue_mode=QueueMode.BIO, **words)


@pytest.mark.dm
@pytest.mark.parametrize("mode", QueueMode)
@pytest.mark.parametrize(
    "selector", [Selector.ROUND_ROBIN, Selector.QUEUE_LENGTH, Selector.SERVICE_TIME], ids=str
)
def test_requests_go_over_the_paths(lab, mode, selector):
    value = Multipath(groups=(Group(tuple(map(Path, lab.refs)), selector),), queue_mode=mode)
    with lab.open(value) as (device, file):
        assert _state(device).queueing
        file.write(0, b"m" * 4096)
        file.flush()
        status = _state(device)
        assert not status.queueing
        assert status.groups[0].state is GroupState.ACTIVE
        assert status.current == 1
        for number in range(1, 9):
            file.write(4096 * number, b"m" * 4096)
    with lab.disk(0) as first, lab.disk(1) as second:
        written = [first.read(0, 9 * 4096), second.read(0, 9 * 4096)]
    places = range(0, 9 * 4096, 4096)
    assert all(b"m" * 4096 in (written[0][i : i + 4096], written[1][i : i + 4096]) for i in places)
    if selector is Selector.ROUND_ROBIN and mode is QueueMode.BIO:
        assert all(any(content) for content in written), "both paths are used"


@pytest.mark.dm
def test_a_path_that_fails_is_taken_out_and_its_request_goes_over_another(lab, legs):
    with lab.open(_of(legs)) as (device, file):
        events = device.info().event_nr
        legs.fail(0)
        for number in range(4):
            file.write(4096 * number, b"x" * 4096)
        device.wait(events)
        assert _used(device) == "FA"
        assert _state(device).paths[0].failures == 1
        with lab.disk(1) as disk:
            assert disk.read(0, 4 * 4096) == b"x" * 4 * 4096
        legs.heal(0)
        file.read(0, 4096)
        assert _used(device) == "FA", "it does not come back by itself"
        device.send(ReinstatePath(legs.refs[0]))
        device.send(ReinstatePath(legs.refs[0]))
        assert _used(device) == "AA"
        assert _state(device).paths[0].failures == 1


@pytest.mark.dm
def test_the_last_path_fails_with_eio(lab, legs):
    with lab.open(_of(legs)) as (device, file):
        legs.fail(0)
        legs.fail(1)
        with pytest.raises(OSError) as caught:
            file.read(0, 4096)
        assert caught.value.errno == errno.EIO
        assert _used(device) == "FF"
        assert _state(device).current == 1


@pytest.mark.dm
@pytest.mark.parametrize("end", ["reinstate", "fail"])
def test_io_waits_for_a_path_until_it_is_told_otherwise(lab, legs, end):
    with lab.device(_of(legs)) as device:
        device.send(QueueIfNoPath())
        assert device.table().lines[0].target.queue_if_no_path
        for ref in legs.refs:
            device.send(FailPath(ref))
            device.send(FailPath(ref))
        assert [path.failures for path in _state(device).paths] == [1, 1]
        ended: list[object] = []

        def write() -> None:
            with BlockFile(device.path) as file:
                try:
                    file.write(0, b"q" * 4096)
                    ended.append("written")
                except OSError as error:
                    ended.append(error.errno)

        thread = threading.Thread(target=write)
        thread.start()
        try:
            thread.join(0.3)
            assert thread.is_alive()
        finally:
            device.send(ReinstatePath(legs.refs[1]) if end == "reinstate" else FailIfNoPath())
            thread.join(20)
        assert ended == ["written" if end == "reinstate" else errno.EIO]
        assert device.table().lines[0].target.queue_if_no_path is (end == "reinstate")
        device.send(FailIfNoPath())


@pytest.mark.dm
def test_groups(lab, legs):
    with lab.open(_of(legs, groups=2)) as (device, file):
        assert _groups(device) == "EE"
        file.read(0, 4096)
        assert _groups(device) == "AE"
        events = device.info().event_nr
        device.send(SwitchGroup(2))
        device.wait(events)
        assert _state(device).current == 2
        file.write(0, b"g" * 4096)
        assert _groups(device) == "EA"
        with lab.disk(1) as disk:
            assert disk.read(0, 4096) == b"g" * 4096
        device.send(DisableGroup(2))
        file.read(0, 4096)
        assert _groups(device) == "AD"
        device.send(FailPath(legs.refs[0]))
        assert file.read(0, 4096) == b"g" * 4096, "a disabled group is better than none"
        assert _used(device) == "FA"
        device.send(ReinstatePath(legs.refs[0]))
        device.send(EnableGroup(2))
        device.send(DisableGroup(1))
        file.read(0, 4096)
        assert _groups(device) == "DA"
        device.send(SwitchGroup(1))
        file.read(0, 4096)
        assert _groups(device) == "AE", "switching enables them all"


@pytest.mark.dm
def test_the_initial_group_is_the_first_one_used(lab, legs):
    with lab.open(_of(legs, groups=2, initial=2)) as (device, file):
        assert _state(device).current == 2
        file.read(0, 4096)
        assert _groups(device) == "EA"


@pytest.mark.dm
def test_messages_that_are_refused(lab, legs):
    other = Ref("/dev/no-such-device")
    with lab.device(_of(legs)) as device:
        for text in (
            "fail_path",
            "switch_group 2",
            "disable_group 0",
            "enable_group x",
            "nonsense",
            "queue_if_no_path 1",
        ):
            with pytest.raises(IoctlError) as caught:
                device.message(text)
            assert caught.value.errno == errno.EINVAL
        with pytest.raises(IoctlError) as caught:
            device.send(FailPath(lab.refs[0]))
        assert caught.value.errno in {errno.EINVAL, errno.EBUSY}, "a device that is no path"
        with pytest.raises(IoctlError) as caught:
            device.send(FailPath(other))
        assert caught.value.errno in {errno.ENODEV, errno.ENOENT}
        with device.suspended(), pytest.raises(IoctlError) as caught:
            device.send(QueueIfNoPath())
        assert caught.value.errno == errno.EBUSY


@pytest.mark.dm
def test_without_paths(lab):
    with lab.open(Multipath(groups=())) as (device, file):
        assert _state(device).groups == ()
        with pytest.raises(OSError) as caught:
            file.read(0, 4096)
        assert caught.value.errno == errno.EIO


@pytest.mark.dm
def test_the_queue_mode_stays(lab, legs):
    with lab.device(_of(legs)) as device:
        with pytest.raises(TableRejected) as caught:
            device.reload(Table.of(Multipath(groups=(Group((Path(lab.refs[0]),)),)), 1024))
        assert caught.value.errno == errno.EINVAL
        device.reload(Table.of(_of(legs, groups=2), 1024))
        assert len(_state(device).groups) == 2


@pytest.mark.dm
def test_requests_want_whole_disks(lab, legs):
    value = Multipath(groups=(Group(tuple(map(Path, legs.refs))),))
    with pytest.raises(TableRejected), lab.device(value):
        pass


@pytest.mark.dm
def test_probing_finds_paths_that_fail(lab, legs):
    with lab.open(_of(legs)) as (device, file):
        file.read(0, 4096)
        try:
            probe_paths(file.fileno())
        except IoctlError as error:
            if error.errno in {errno.ENOTTY, errno.EINVAL}:
                pytest.skip(f"kernel {lab.control.version()} does not know request {MPATH_PROBE_PATHS:#x}")
            raise
        assert _used(device) == "AA"
        legs.fail(0)
        probe_paths(file.fileno())
        assert _used(device) == "FA"
        legs.fail(1)
        with pytest.raises(IoctlError) as caught:
            probe_paths(file.fileno())
        assert caught.value.errno == errno.ENOTCONN
        assert _used(device) == "FF"


@pytest.mark.dm
def test_a_suspend_without_flush_lets_io_wait_for_the_next_table(lab, legs):
    """Requests that no path takes go back to the device's core, and are done by the table that follows."""
    value = Multipath(groups=(Group((Path(lab.refs[0]),)),), queue_if_no_path=True)
    with lab.device(value) as device:
        device.send(FailPath(lab.refs[0]))
        ended: list[object] = []

        def write() -> None:
            with BlockFile(device.path) as file:
                file.write(0, b"n" * 4096)
            ended.append("written")

        thread = threading.Thread(target=write)
        thread.start()
        time.sleep(0.2)
        try:
            assert not ended
            healed = Multipath(groups=(Group((Path(lab.refs[1]),)),))
            device.reload(Table.of(healed, 1024), noflush=True)
        finally:
            thread.join(20)
        assert ended == ["written"]
        with lab.disk(1) as disk:
            assert disk.read(0, 4096) == b"n" * 4096
