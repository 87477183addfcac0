from __future__ import annotations

import contextlib
import errno
import threading
import time
from collections.abc import Iterator

import ground as grounds
import pytest

from dmcore import targets
from dmcore.abi.dm import MPATH_PROBE_PATHS
from dmcore.errors import IoctlError, ParseError, SpecError, TableRejected
from dmcore.kernel.block import BlockFile
from dmcore.kernel.control import probe_paths
from dmcore.kernel.device import Device
from dmcore.ref import Ref
from dmcore.table import Table
from dmcore.target import NO_FEATURES
from dmcore.targets.multipath import (
    DisableGroup,
    EnableGroup,
    FailIfNoPath,
    FailPath,
    Group,
    GroupState,
    GroupStatus,
    Handler,
    Multipath,
    MultipathStatus,
    Path,
    PathStatus,
    QueueIfNoPath,
    QueueMode,
    ReinstatePath,
    Selector,
    SwitchGroup,
)

A, B = Ref("7:0"), Ref("7:1")
RETAINS = frozenset({"multipath.retain_attached_hw_handler"})
ONE = Group((Path(A),))


@pytest.mark.parametrize(
    ("words", "value"),
    [
        ("0 0 0 0", Multipath(groups=())),
        ("0 0 1 1 round-robin 0 1 0 7:0", Multipath(groups=(ONE,))),
        ("0 0 1 1 round-robin 2 a b 1 0 7:0", Multipath(groups=(ONE,))),
        (
            (
                "8 QUEUE_if_no_path retain_attached_hw_handler pg_init_retries 50 pg_init_delay_msecs 0 queue_mode bio"
                " 2 alua 1 2 2 queue-length 0 2 1 7:0 7 7:1 4294967297 service-time 0 1 2 7:1 1 100"
            ),
            Multipath(
                groups=(
                    Group((Path(A, 7), Path(B, 1)), Selector.QUEUE_LENGTH),
                    Group((Path(B, 1, 100),), Selector.SERVICE_TIME),
                ),
                initial=2,
                queue_if_no_path=True,
                retain_attached_hw_handler=True,
                pg_init_retries=50,
                pg_init_delay_msecs=0,
                queue_mode=QueueMode.BIO,
            ),
        ),
        ("2 queue_mode mq 3 emc 1 0 0 0", Multipath(groups=(), handler=Handler("emc", ("1", "0")))),
        (
            "0 0 1 9 historical-service-time 2 1023 5 1 1 7:0 3",
            Multipath(groups=(Group((Path(A, 3),), Selector.HISTORICAL_SERVICE_TIME, 1023, 5),), initial=9),
        ),
        (
            "0 0 1 1 io-affinity 0 2 1 7:0 f 7:1 1,00000000",
            Multipath(groups=(Group((Path(A, cpus=15), Path(B, cpus=1 << 32)), Selector.IO_AFFINITY),)),
        ),
    ],
)
def test_reads_what_the_kernel_reads(words, value):
    assert Table.parse(f"0 8 multipath {words}") == Table.of(value, 8)
    assert Table.parse(str(Table.of(value, 8))) == Table.of(value, 8)


@pytest.mark.parametrize(
    ("words", "index"),
    [
        ("", 3),
        ("9 0 0 0", 3),
        ("2 queue_if_no_path", 4),
        ("1 pg_init_retries 5 0 0 0", 4),
        ("2 pg_init_retries 0 0 0 0", 5),
        ("2 pg_init_retries 51 0 0 0", 5),
        ("2 pg_init_delay_msecs 60001 0 0 0", 5),
        ("2 queue_mode fast 0 0 0", 5),
        ("1 no_partitions 0 0 0", 4),
        ("0 4 alua 0 0", 5),
        ("0 0 1 0 round-robin 0 1 0 7:0", 6),
        ("0 0 0 1", 6),
        ("0 0 2 1 round-robin 0 1 0 7:0", 12),
        ("0 0 0 0 round-robin 0 1 0 7:0", 7),
        ("0 0 1 1 Round-robin 0 1 0 7:0", 7),
        ("0 0 1 1 round-robin 2 x", 9),
        ("0 0 1 1 round-robin 0 0 0", 9),
        ("0 0 1 1 round-robin 0 2 0 7:0", 11),
        ("0 0 1 1 round-robin 0 1 2 7:0 1 1", 11),
        ("0 0 1 1 round-robin 0 1 1 7:0 +1", 12),
        ("0 0 1 1 service-time 0 1 2 7:0 1 101", 13),
        ("0 0 1 1 historical-service-time 1 1024 1 0 7:0", 9),
        ("0 0 1 1 historical-service-time 3 1 1 1 1 0 7:0", 8),
        ("0 0 1 1 io-affinity 0 1 0 7:0", 11),
        ("0 0 1 1 io-affinity 0 1 1 7:0 xy", 12),
    ],
)
def test_refuses_what_the_kernel_refuses_and_names_the_word(words, index):
    with pytest.raises(ParseError) as caught:
        Table.parse(f"0 8 multipath {words}")
    assert caught.value.index == index


@pytest.mark.parametrize(
    ("field", "make"),
    [
        ("dev", lambda: Path("7:0")),
        ("repeat", lambda: Path(A, 2**32)),
        ("throughput", lambda: Path(A, 1, 101)),
        ("throughput", lambda: Path(A, None, 1)),
        ("cpus", lambda: Path(A, cpus=0)),
        ("paths", lambda: Group(())),
        ("paths", lambda: Group([Path(A)])),
        ("paths", lambda: Group((Path(A),) * 1025)),
        ("paths[1]", lambda: Group((Path(A), B))),
        ("paths[1]", lambda: Group((Path(A), Path(B, 1)))),
        ("paths[0]", lambda: Group((Path(A, 1, 1),))),
        ("paths[0]", lambda: Group((Path(A),), Selector.IO_AFFINITY)),
        ("paths[0]", lambda: Group((Path(A, cpus=1),))),
        ("selector", lambda: Group((Path(A),), "round-robin")),
        ("base_weight", lambda: Group((Path(A),), base_weight=1)),
        ("base_weight", lambda: Group((Path(A),), Selector.HISTORICAL_SERVICE_TIME, 1024)),
        ("threshold", lambda: Group((Path(A),), Selector.HISTORICAL_SERVICE_TIME, None, 1)),
        ("name", lambda: Handler("")),
        ("args[0]", lambda: Handler("alua", (1,))),
        ("groups", lambda: Multipath(groups=[ONE])),
        ("groups[0]", lambda: Multipath(groups=(A,))),
        ("initial", lambda: Multipath(groups=(), initial=1)),
        ("initial", lambda: Multipath(groups=(ONE,), initial=0)),
        ("pg_init_retries", lambda: Multipath(groups=(), pg_init_retries=0)),
        ("pg_init_delay_msecs", lambda: Multipath(groups=(), pg_init_delay_msecs=60001)),
        ("queue_mode", lambda: Multipath(groups=(), queue_mode="bio")),
        ("queue_if_no_path", lambda: Multipath(groups=(), queue_if_no_path=1)),
        ("handler", lambda: Multipath(groups=(), handler=Handler("alua"), queue_mode=QueueMode.BIO)),
        ("dev", lambda: FailPath(Ref("sda"))),
        ("group", lambda: SwitchGroup(0)),
    ],
)
def test_refuses_bad_values_and_names_the_field(field, make):
    with pytest.raises(SpecError) as caught:
        make()
    assert caught.value.field == field


def test_readback():
    value = Multipath(
        groups=(
            Group((Path(A, 9), Path(B, 0))),
            Group((Path(A),), Selector.SERVICE_TIME),
            Group((Path(A),), Selector.HISTORICAL_SERVICE_TIME),
        ),
        initial=4,
        queue_mode=QueueMode.BIO,
    )
    printed = (
        "0 0 3 1 round-robin 0 2 1 7:0 1 7:1 0 service-time 0 1 2 7:0 1 1"
        " historical-service-time 2 972 0 1 1 7:0 0"
    )
    assert str(Table.of(value.readback(NO_FEATURES), 8)) == f"0 8 multipath 2 queue_mode bio{printed[1:]}"
    retained = f"0 8 multipath 3 retain_attached_hw_handler queue_mode bio{printed[1:]}"
    assert str(Table.of(value.readback(RETAINS), 8)) == retained
    assert value.needs().features == {"multipath.historical-service-time"}
    assert Multipath(groups=(), handler=Handler("a", ("b",))).readback(NO_FEATURES).handler == Handler("a")


def test_status():
    text = "2 1 3 0 2 2 D 0 2 0 7:0 A 0 7:1 F 4 A 0 1 2 7:0 A 1 4096 100 "
    assert Multipath(groups=()).parse_status(text) == MultipathStatus(
        queueing=True,
        activations=3,
        current=2,
        groups=(
            GroupStatus(GroupState.DISABLED, (), (PathStatus(A, True, 0, ()), PathStatus(B, False, 4, ()))),
            GroupStatus(GroupState.ACTIVE, (), (PathStatus(A, True, 1, (4096, 100)),)),
        ),
    )
    weighted = Multipath(groups=()).parse_status("2 0 0 0 1 1 E 2 972 0 1 3 7:0 A 0 1024 0 0 ")
    assert weighted.groups[0].selector == (972, 0)
    assert weighted.paths == (PathStatus(A, True, 0, (1024, 0, 0)),)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "0 0 0 0",
        "2 2 0 0 0 0",
        "2 1 0 0 1 1",
        "2 1 0 0 1 1 X 0 1 0 7:0 A 0",
        "2 1 0 0 1 1 E 0 1 0 7:0 Q 0",
        "2 1 0 0 1 1 E 0 1 1 7:0 A 0",
        "2 1 0 0 0 0 1",
    ],
)
def test_bad_status(text):
    with pytest.raises(ParseError):
        Multipath(groups=()).parse_status(text)


# On a kernel.


class Whole(grounds.Ground):
    """Disks, each line on a new device: the first table decides between bios and requests."""

    fresh = True

    def fits(self, target, length: int) -> bool:
        return not (target.handler and target.groups)


@contextlib.contextmanager
def ground(lab) -> Iterator[grounds.Ground]:
    yield Whole(lab)


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
