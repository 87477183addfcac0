from __future__ import annotations

import errno
import time

import pytest
from ground import blank as ground
from ground import fail_next_writes

from dmcore import targets
from dmcore.errors import ParseError, SpecError, TableRejected
from dmcore.ref import Ref
from dmcore.table import Line, Table
from dmcore.target import NO_FEATURES
from dmcore.targets.clone import (
    CloneMode,
    CloneStatus,
    DisableHydration,
    EnableHydration,
    Failed,
    SetHydrationBatchSize,
    SetHydrationThreshold,
    Unreadable,
    Usage,
)

__all__ = ["ground"]

META, DEST, SOURCE = Ref("7:0"), Ref("7:1"), Ref("7:2")
REFS = {"metadata": META, "dest": DEST, "source": SOURCE}
CLONE = targets.Clone(**REFS, region_sectors=8)


@pytest.mark.parametrize(
    ("words", "values"),
    [
        ("8", {}),
        ("08 0", {}),
        ("4294967304 0 0", {}),
        ("8 0 0 and more", {}),
        ("8 1 NO_hydration", {"no_hydration": True}),
        ("8 2 no_discard_passdown no_hydration", {"no_hydration": True, "no_discard_passdown": True}),
        ("8 0 2 hydration_threshold +9", {"hydration_threshold": 9}),
        (
            "8 0 4 hydration_batch_size 3 Hydration_Threshold 0",
            {"hydration_threshold": 0, "hydration_batch_size": 3},
        ),
        ("8 0 4 hydration_threshold 1 hydration_threshold 2", {"hydration_threshold": 2}),
    ],
)
def test_reads_what_the_kernel_reads(words, values):
    assert Table.parse(f"0 64 clone 7:0 7:1 7:2 {words}") == Table.of(targets.Clone(**REFS, **values), 64)


@pytest.mark.parametrize(
    ("words", "index"),
    [
        ("", 6),
        ("4", 6),
        ("+8", 6),
        ("8 3", 7),
        ("8 1", 8),
        ("8 1 hydration", 8),
        ("8 0 1 hydration_threshold", 8),
        ("8 0 2 hydration_threshold", 10),
        ("8 0 2 hydration_threshold 4294967296", 10),
        ("8 0 2 threshold 1", 9),
        ("8 0 6", 8),
    ],
)
def test_refuses_what_the_kernel_refuses_and_names_the_word(words, index):
    with pytest.raises(ParseError) as caught:
        Table.parse(f"0 64 clone 7:0 7:1 7:2 {words}")
    assert caught.value.index == index


@pytest.mark.parametrize(
    ("field", "values"),
    [
        ("metadata", {"metadata": "7:0"}),
        ("dest", {"dest": 7}),
        ("source", {"source": None}),
        ("region_sectors", {"region_sectors": 4}),
        ("region_sectors", {"region_sectors": 24}),
        ("region_sectors", {"region_sectors": 4194304}),
        ("no_hydration", {"no_hydration": 1}),
        ("hydration_threshold", {"hydration_threshold": 2**32}),
        ("hydration_batch_size", {"hydration_batch_size": -1}),
    ],
)
def test_refuses_bad_values_and_names_the_field(field, values):
    with pytest.raises(SpecError) as caught:
        targets.Clone(**{**REFS, **values})
    assert caught.value.field == field


def test_refuses_too_many_regions():
    with pytest.raises(SpecError) as caught:
        Line(0, 2**34 + 1, CLONE)
    assert caught.value.field == "region_sectors"
    assert Line(0, 2**34, CLONE).end == 2**34


def test_value():
    assert CLONE.refs() == (META, DEST, SOURCE)
    assert CLONE.encode(str) == "7:0 7:1 7:2 8"
    assert CLONE.readback(NO_FEATURES) == CLONE
    value = targets.Clone(**REFS, no_hydration=True, hydration_threshold=2, hydration_batch_size=0)
    assert value.encode(str) == "7:0 7:1 7:2 8 1 no_hydration 4 hydration_threshold 2 hydration_batch_size 0"
    assert (
        targets.Clone(**REFS, hydration_batch_size=1).encode(str)
        == "7:0 7:1 7:2 8 0 2 hydration_batch_size 1"
    )


@pytest.mark.parametrize(
    ("text", "status"),
    [
        (
            "8 26/512 8 3/128 1 0 4 hydration_threshold 1 hydration_batch_size 1 rw ",
            CloneStatus(Usage(26, 512), 8, Usage(3, 128), 1, True, True, 1, 1, CloneMode.WRITABLE),
        ),
        (
            "8 26/512 8 3/128 0 2 no_hydration no_discard_passdown 4 hydration_threshold 7 hydration_batch_size 9 ro",
            CloneStatus(Usage(26, 512), 8, Usage(3, 128), 0, False, False, 7, 9, CloneMode.READ_ONLY),
        ),
        ("Fail", Failed()),
        ("Error", Unreadable()),
    ],
)
def test_status(text, status):
    assert CLONE.parse_status(text) == status


@pytest.mark.parametrize(
    "text",
    [
        "",
        "8 26/512 8 3/128 1 0 4 hydration_threshold 1 hydration_batch_size 1",
        "8 26/512 8 3 1 0 4 hydration_threshold 1 hydration_batch_size 1 rw",
        "8 26/512 8 3/128 1 3 4 hydration_threshold 1 hydration_batch_size 1 rw",
        "8 26/512 8 3/128 1 0 2 hydration_threshold 1 rw",
        "8 26/512 8 3/128 1 0 4 hydration_threshold 1 hydration_batch_size 1 rw x",
    ],
)
def test_bad_status(text):
    with pytest.raises(ParseError):
        CLONE.parse_status(text)


@pytest.mark.parametrize(
    ("message", "text"),
    [
        (EnableHydration(), "enable_hydration"),
        (DisableHydration(), "disable_hydration"),
        (SetHydrationThreshold(0), "hydration_threshold 0"),
        (SetHydrationBatchSize(2**32 - 1), "hydration_batch_size 4294967295"),
    ],
)
def test_messages(message, text):
    assert message.encode() == text
    assert message.parse_reply("") is None


@pytest.mark.parametrize("make", [lambda: SetHydrationThreshold(-1), lambda: SetHydrationBatchSize(2**32)])
def test_refuses_bad_messages(make):
    with pytest.raises(SpecError) as caught:
        make()
    assert caught.value.field == "regions"


# On a kernel: disk 0 holds the metadata in its first half and the destination in its second.

HALF = 2048
LENGTH = 1024
REGIONS = LENGTH // 8


@pytest.fixture
def clone(lab):
    """Return what makes a clone of disk 1, whose sectors are numbered."""
    with lab.disk(1) as source:
        source.write(0, b"".join(number.to_bytes(4, "big") * 128 for number in range(LENGTH)))
    with (
        lab.device(targets.Linear(dev=lab.refs[0]), HALF) as metadata,
        lab.device(targets.Linear(dev=lab.refs[0], offset=HALF), HALF) as dest,
    ):

        def make(**values):
            below = {"metadata": metadata.ref, "dest": dest.ref, "source": lab.refs[1]}
            return targets.Clone(**{**below, **values})

        make.metadata, make.dest = metadata, dest
        yield make


def _sectors(first: int, count: int) -> bytes:
    return b"".join(number.to_bytes(4, "big") * 128 for number in range(first, first + count))


def _hydrated(device) -> int:
    (status,) = device.status()
    assert status.regions.total == REGIONS
    return status.regions.used


def _await_hydrated(device) -> None:
    deadline = time.monotonic() + 20
    while _hydrated(device) < REGIONS:
        assert time.monotonic() < deadline, device.status_text()
        time.sleep(0.05)


def _refused(number: int, request) -> None:
    with pytest.raises(OSError) as caught:
        request()
    assert caught.value.errno == number


@pytest.mark.dm
def test_hydrates_to_the_end_and_the_destination_stands_alone(lab, clone):
    value = clone(hydration_batch_size=16, hydration_threshold=4)
    with lab.device(value, LENGTH) as device:
        assert device.table() == Table.of(value, LENGTH)
        _await_hydrated(device)
        (status,) = device.status()
        assert (status.hydration, status.discard_passdown, status.hydrating) == (True, True, 0)
        assert (status.hydration_threshold, status.hydration_batch_size) == (4, 16)
        assert (status.mode, status.region_sectors) == (CloneMode.WRITABLE, 8)
        assert 0 < status.metadata.used < status.metadata.total == HALF // 8
    with lab.disk(0) as disk:
        assert disk.read(HALF * 512, LENGTH * 512) == _sectors(0, LENGTH)
    with lab.device(value, LENGTH) as device:
        assert _hydrated(device) == REGIONS, "kept on the metadata device"


@pytest.mark.dm
def test_writes_and_discards_bring_their_regions_and_reads_do_not(lab, clone):
    value = clone(no_hydration=True)
    with lab.open(value, LENGTH) as (device, file):
        assert device.table() == Table.of(value, LENGTH)
        assert file.read(0, LENGTH * 512) == _sectors(0, LENGTH)
        assert _hydrated(device) == 0
        file.write(9 * 512, b"new!" * 128)
        assert _hydrated(device) == 1
        assert file.read(8 * 512, 8 * 512) == _sectors(8, 1) + b"new!" * 128 + _sectors(10, 6)
        file.write(16 * 512, b"all!" * 1024)
        assert _hydrated(device) == 2
        file.discard(64 * 512, 16 * 512)
        file.flush()
        assert _hydrated(device) == 4
        (status,) = device.status()
        assert status.hydration is False
    with lab.open(value, LENGTH) as (device, file):
        assert _hydrated(device) == 4
        assert file.read(8 * 512, 16 * 512) == (
            _sectors(8, 1) + b"new!" * 128 + _sectors(10, 6) + b"all!" * 1024
        )
        with lab.disk(1) as source:
            assert source.read(0, LENGTH * 512) == _sectors(0, LENGTH)


@pytest.mark.dm
def test_every_message_and_what_it_refuses(lab, clone):
    with lab.device(clone(no_hydration=True, no_discard_passdown=True), LENGTH) as device:
        _refused(errno.EINVAL, lambda: device.message("hydrate"))
        _refused(errno.EINVAL, lambda: device.message("hydration_threshold"))
        _refused(errno.EINVAL, lambda: device.message("hydration_threshold x"))
        device.send(SetHydrationThreshold(0))
        device.send(SetHydrationBatchSize(5))
        device.send(EnableHydration())
        (status,) = device.status()
        assert (status.hydration, status.discard_passdown) == (True, False)
        assert (status.hydration_threshold, status.hydration_batch_size) == (0, 5)
        time.sleep(0.1)
        assert _hydrated(device) == 0, "a threshold of 0 stops it"
        device.send(DisableHydration())
        device.send(SetHydrationThreshold(8))
        (status,) = device.status()
        assert (status.hydration, status.regions.used) == (False, 0)
        device.send(EnableHydration())
        _await_hydrated(device)


@pytest.mark.dm
@pytest.mark.parametrize(("values", "length"), [({"region_sectors": 16}, LENGTH), ({}, LENGTH // 2)])
def test_metadata_keep_region_size_and_length(lab, clone, values, length):
    with lab.device(clone(), LENGTH):
        pass
    with pytest.raises(TableRejected) as caught, lab.device(clone(**values), length):
        pytest.fail("does not fit the metadata")
    assert caught.value.errno == errno.EINVAL


@pytest.mark.dm
def test_a_failing_metadata_device_fails_the_clone(lab, clone):
    with lab.open(clone(no_hydration=True), LENGTH) as (device, file):
        file.write(0, b"x" * 4096)
        clone.metadata.reload(Table.of(targets.Error(), HALF))
        file.write(4096, b"y" * 512)
        with pytest.raises(OSError) as caught:
            file.flush()
        assert caught.value.errno == errno.EIO
        (status,) = device.status()
        assert status == Failed() or status.mode is CloneMode.READ_ONLY
        assert device.table() == Table.of(clone(no_hydration=True), LENGTH)


@pytest.mark.dm
def test_one_failed_commit_makes_it_read_only(lab, clone):
    metadata = targets.Dust(dev=clone.metadata.ref, block_size=4096)
    with (
        lab.device(metadata, HALF) as dust,
        lab.open(clone(metadata=dust.ref, no_hydration=True), LENGTH) as (device, file),
    ):
        file.write(0, b"x" * 4096)
        file.flush()
        fail_next_writes(dust, clone.metadata.path, HALF // 8)
        file.write(4096, b"y" * 4096)
        _refused(errno.EIO, file.flush)
        (status,) = device.status()
        assert status.mode is CloneMode.READ_ONLY
        assert file.read(0, 8192)[:4096] == b"x" * 4096
        _refused(errno.EIO, lambda: file.write(3 * 4096, b"z" * 512))
