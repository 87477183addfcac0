from __future__ import annotations

import errno
import time

import pytest
from test_snapshot import CHUNK, ground

from dmcore import targets
from dmcore.errors import ParseError, SpecError, TableRejected
from dmcore.kernel.device import Device
from dmcore.ref import Ref
from dmcore.table import Line, Table
from dmcore.target import NO_FEATURES
from dmcore.targets.snapshot_merge import SnapshotMerge, SnapshotState, SnapshotStatus, Store

__all__ = ["ground"]

ORIGIN, COW = Ref("7:0"), Ref("7:1")
MERGE = SnapshotMerge(origin=ORIGIN, cow=COW, chunk=8)


@pytest.mark.parametrize(
    ("words", "value"),
    [
        ("7:0 7:1 P 8", MERGE),
        ("7:0 7:1 po 8 1 discard_zeroes_cow", None),
    ],
)
def test_reads_what_the_kernel_reads(words, value):
    value = value or SnapshotMerge(
        origin=ORIGIN, cow=COW, store=Store.OVERFLOW, chunk=8, discard_zeroes_cow=True
    )
    assert Table.parse(f"0 48 snapshot-merge {words}") == Table.of(value, 48)


@pytest.mark.parametrize(
    ("words", "index"),
    [("7:0", 4), ("7:0 7:1 P", 6), ("7:0 7:1 X 8", 5), ("7:0 7:1 P x", 6), ("7:0 7:1 P 8 1 x", 8)],
)
def test_refuses_what_the_kernel_refuses_and_names_the_word(words, index):
    with pytest.raises(ParseError) as caught:
        Table.parse(f"0 48 snapshot-merge {words}")
    assert caught.value.index == index


@pytest.mark.parametrize(
    ("field", "values"),
    [
        ("origin", {"origin": None}),
        ("cow", {"cow": ORIGIN}),
        ("store", {"store": Store.TRANSIENT}),
        ("chunk", {"chunk": 3}),
        ("discard_passdown_origin", {"discard_passdown_origin": True}),
    ],
)
def test_refuses_bad_values_and_names_the_field(field, values):
    with pytest.raises(SpecError) as caught:
        SnapshotMerge(**{"origin": ORIGIN, "cow": COW, **values})
    assert caught.value.field == field


def test_value():
    assert MERGE.refs() == (ORIGIN, COW)
    assert MERGE.encode(str) == "7:0 7:1 P 8"
    assert MERGE.readback(NO_FEATURES) == MERGE
    assert MERGE.needs().target == "snapshot-merge"
    assert MERGE.parse_status("24/128 16") == SnapshotStatus(SnapshotState.ACTIVE, 24, 128, 16)
    assert MERGE.parse_status("Merge failed").state is SnapshotState.MERGE_FAILED


# On a kernel. A chunk has 8 sectors, 4096 bytes.


def _state(device: Device) -> SnapshotStatus:
    (status,) = device.status()
    assert isinstance(status, SnapshotStatus)
    return status


def _until(device: Device, done) -> SnapshotStatus:
    """Return the status as soon as it is what it should become, within 5 seconds."""
    deadline = time.monotonic() + 5
    while not done(status := _state(device)):
        assert time.monotonic() < deadline, f"still {status}"
        time.sleep(0.02)
    return status


def _shoot(lab, store: Store, chunks: int) -> None:
    """Make a snapshot whose first `chunks` chunks, but for each third, differ from the origin; leave it on the disks."""
    with lab.disk(0) as below:
        below.write(0, b"o" * (64 * CHUNK))
    with lab.open(_snapshot(lab, store), 512) as (_, file):
        for chunk in range(chunks):
            if chunk % 3:
                file.write(chunk * CHUNK, b"s" * CHUNK)


def _snapshot(lab, store: Store = Store.PERSISTENT) -> targets.Snapshot:
    return targets.Snapshot(origin=lab.refs[0], cow=lab.refs[1], store=store, chunk=8)


def _merge(lab, store: Store = Store.PERSISTENT) -> SnapshotMerge:
    return SnapshotMerge(origin=lab.refs[0], cow=lab.refs[1], store=store, chunk=8)


def _merged(chunks: int) -> bytes:
    return b"".join((b"s" if chunk < chunks and chunk % 3 else b"o") * CHUNK for chunk in range(64))


@pytest.mark.dm
@pytest.mark.parametrize("store", [Store.PERSISTENT, Store.OVERFLOW])
def test_merges_to_the_end(lab, store):
    _shoot(lab, store, 50)
    origin = targets.SnapshotOrigin(dev=lab.refs[0])
    with lab.open(origin, 512) as (device, file):
        assert file.read(0, 64 * CHUNK) == b"o" * (64 * CHUNK)
        device.reload(Table.of(_merge(lab, store), 512))
        assert device.table() == Table.of(_merge(lab, store), 512)
        assert file.read(0, 64 * CHUNK) == _merged(50), "the snapshot's content from the first moment on"
        file.write(CHUNK, b"n" * 512)
        assert _until(device, lambda status: status.empty) == SnapshotStatus(
            SnapshotState.ACTIVE, 16, 4096, 16
        )
        now = _merged(50)[:CHUNK] + b"n" * 512 + _merged(50)[CHUNK + 512 :]
        assert file.read(0, 64 * CHUNK) == now
        device.reload(Table.of(origin, 512))
        assert file.read(0, 64 * CHUNK) == now
    with lab.disk(0) as below:
        assert below.read(0, 64 * CHUNK) == now
    with lab.open(_snapshot(lab, store), 512) as (device, file):
        assert _state(device).empty, "the store says so on the disk as well"
        assert file.read(0, 64 * CHUNK) == now


@pytest.mark.dm
def test_takes_the_chunks_of_a_live_snapshot_over(lab):
    with lab.disk(0) as below:
        below.write(0, b"o" * (64 * CHUNK))
    with lab.open(targets.SnapshotOrigin(dev=lab.refs[0]), 512) as (device, file):
        device.suspend()
        with lab.open(_snapshot(lab), 512) as (snapshot, shot):
            device.resume()
            shot.write(CHUNK, b"s" * (2 * CHUNK))
            lines = Table.of(_merge(lab), 512).encode(str)
            lab.control.load(device.selector, lines)
            with lab.device(targets.Zero(), 512) as other:
                with pytest.raises(TableRejected) as caught:
                    lab.control.load(other.selector, lines)
                assert caught.value.errno == errno.EINVAL, "a second merge of one origin"
            device.suspend()
            with pytest.raises(TableRejected):
                lab.control.resume(device.selector)
            snapshot.suspend()
            device.resume()
            assert _until(device, lambda status: status.empty).used == 16
            snapshot.resume()
            with pytest.raises(OSError) as failed:
                shot.read(0, CHUNK)
            assert failed.value.errno == errno.EIO, "what the old snapshot had is gone"
        assert file.read(0, 4 * CHUNK) == b"o" * CHUNK + b"s" * (2 * CHUNK) + b"o" * CHUNK


@pytest.mark.dm
def test_a_discard_does_nothing(lab):
    big = 512 * 512
    with lab.disk(0) as below:
        below.write(0, b"o" * big)
    fields = {"origin": lab.refs[0], "cow": lab.refs[1], "chunk": 512, "discard_zeroes_cow": True}
    with lab.open(targets.Snapshot(**fields), 1536) as (_, file):
        file.write(big, b"s" * big)
    with lab.open(SnapshotMerge(**fields), 1536) as (device, file):
        file.discard(0, 2 * big)
        _until(device, lambda status: status.empty)
        file.discard(0, 2 * big)
        assert file.read(0, big) == b"o" * big
        assert file.read(big, big) == b"s" * big


@pytest.mark.dm
def test_a_merge_that_cannot_read_its_chunks_fails(lab):
    _shoot(lab, Store.PERSISTENT, 10)
    header = Line(0, 16, targets.Linear(dev=lab.refs[1]))
    broken = Table((header, Line(16, 4080, targets.Error())))
    with lab.device(broken, 4096) as cow:
        value = SnapshotMerge(origin=lab.refs[0], cow=cow.ref, chunk=8)
        with lab.open(value, 512) as (device, file):
            failed = _until(device, lambda status: status.state is not SnapshotState.ACTIVE)
            assert failed == SnapshotStatus(SnapshotState.MERGE_FAILED)
            assert file.read(0, CHUNK) == b"o" * CHUNK
    with lab.open(_merge(lab), 512) as (device, file):
        _until(device, lambda status: status.empty)
        assert file.read(0, 64 * CHUNK) == _merged(10), "with the disk healed, nothing is lost"


@pytest.mark.dm
def test_an_invalid_snapshot_is_not_merged(lab):
    with lab.disk(0) as below:
        below.write(0, b"o" * (64 * CHUNK))
    small = targets.Linear(dev=lab.refs[1])
    with lab.device(small, 32) as cow:
        shot = targets.Snapshot(origin=lab.refs[0], cow=cow.ref, chunk=8)
        with lab.open(shot, 512) as (_, file), pytest.raises(OSError) as full:
            file.write(0, b"s" * (64 * CHUNK))
        assert full.value.errno == errno.EIO
        with lab.open(SnapshotMerge(origin=lab.refs[0], cow=cow.ref, chunk=8), 512) as (device, file):
            assert _state(device) == SnapshotStatus(SnapshotState.INVALID)
            assert file.read(0, 64 * CHUNK) == b"o" * (64 * CHUNK)
