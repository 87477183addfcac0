from __future__ import annotations

import contextlib
import errno
import re
import struct
from collections.abc import Iterator

import pytest
from ground import Blank, Ground
from hypothesis import assume

from dmcore import targets
from dmcore.abi.dm import TableLine
from dmcore.errors import ParseError, SpecError, TableRejected
from dmcore.params import split_words
from dmcore.ref import Ref
from dmcore.table import Line, Table
from dmcore.target import NO_FEATURES, Target
from dmcore.targets.snapshot import Snapshot, SnapshotState, SnapshotStatus, Store

ORIGIN, COW = Ref("7:0"), Ref("7:1")
SHOT = Snapshot(origin=ORIGIN, cow=COW, chunk=8)


class SafeWords(Blank):
    """Blank disks, and lines that neither kill a kernel nor leak in it.

    Not generated: the same device twice (kernels leak a reference), discards with chunks below 512 sectors (7.2.7 divides
    by zero), the merge of a transient store (kernels oops). And a transient store without a chunk size, which is right at a
    handover only.
    """

    def prepare(self, line: TableLine) -> None:
        words = split_words(line.params)
        assume(words[:1] != words[1:2])
        if len(words) > 3:
            transient = words[2].upper().startswith("N")
            number = words[3].removeprefix("+").removesuffix("\n")
            chunk = int(number) if re.fullmatch("[0-9]{1,9}", number) else 0
            assume(chunk >= 512 or not any("discard" in word.lower() for word in words[4:]))
            assume(not (transient and (line.type == "snapshot-merge" or not number.strip("0"))))
        super().prepare(line)

    def fits(self, target: Target, length: int) -> bool:
        assert isinstance(target, Snapshot | targets.SnapshotMerge)
        return target.store is Store.TRANSIENT or 2 * (target.chunk or 32) <= self.refs[target.cow]


@contextlib.contextmanager
def ground(lab) -> Iterator[Ground]:
    yield SafeWords(lab)


@pytest.mark.parametrize(
    ("words", "value"),
    [
        ("7:0 7:1 P 8", SHOT),
        ("7:0 7:1 p +08 0", SHOT),
        ("7:0 7:1 P 8 0 any thing", SHOT),
        ("7:0 7:1 pOx 0", Snapshot(origin=ORIGIN, cow=COW, store=Store.OVERFLOW)),
        ("7:0 7:1 nothing 16", Snapshot(origin=ORIGIN, cow=COW, store=Store.TRANSIENT, chunk=16)),
        (
            "7:0 7:1 P 512 2 discard_passdown_origin DISCARD_zeroes_cow",
            Snapshot(
                origin=ORIGIN, cow=COW, chunk=512, discard_zeroes_cow=True, discard_passdown_origin=True
            ),
        ),
        (
            "7:0 7:1 P 512 2 discard_zeroes_cow discard_zeroes_cow more",
            Snapshot(origin=ORIGIN, cow=COW, chunk=512, discard_zeroes_cow=True),
        ),
    ],
)
def test_reads_what_the_kernel_reads(words, value):
    assert Table.parse(f"0 48 snapshot {words}") == Table.of(value, 48)


@pytest.mark.parametrize(
    ("words", "index"),
    [
        ("", 3),
        ("7:0 7:1 P", 6),
        ("7:0 7:1 X 8", 5),
        ("7:0 7:1 PX 8", 5),
        ("7:0 7:1 P 8x", 6),
        ("7:0 7:1 P 4294967296", 6),
        ("7:0 7:1 P 8 3", 7),
        ("7:0 7:1 P 8 1", 8),
        ("7:0 7:1 P 8 +0", 7),
        ("7:0 7:1 P 8 1 discard", 8),
    ],
)
def test_refuses_what_the_kernel_refuses_and_names_the_word(words, index):
    with pytest.raises(ParseError) as caught:
        Table.parse(f"0 48 snapshot {words}")
    assert caught.value.index == index


@pytest.mark.parametrize(
    ("field", "values"),
    [
        ("origin", {"origin": "7:0"}),
        ("cow", {"cow": "7:1"}),
        ("cow", {"cow": ORIGIN}),
        ("store", {"store": "P"}),
        ("chunk", {"chunk": -1}),
        ("chunk", {"chunk": 24}),
        ("chunk", {"chunk": 2**22}),
        ("discard_zeroes_cow", {"discard_zeroes_cow": 1}),
        ("discard_passdown_origin", {"discard_passdown_origin": None}),
        ("discard_passdown_origin", {"discard_passdown_origin": True}),
    ],
)
def test_refuses_bad_values_and_names_the_field(field, values):
    with pytest.raises(SpecError) as caught:
        Snapshot(**{"origin": ORIGIN, "cow": COW, **values})
    assert caught.value.field == field


def test_value():
    assert SHOT.refs() == (ORIGIN, COW)
    assert SHOT.encode(str) == "7:0 7:1 P 8"
    assert SHOT.readback(NO_FEATURES) == SHOT
    assert Snapshot(origin=ORIGIN, cow=COW).readback(NO_FEATURES).chunk == 32
    assert SHOT.needs().version == (0, 0, 0)
    both = Snapshot(origin=ORIGIN, cow=COW, chunk=512, discard_zeroes_cow=True, discard_passdown_origin=True)
    assert both.encode(str) == "7:0 7:1 P 512 2 discard_zeroes_cow discard_passdown_origin"
    assert both.needs().version == (1, 16, 0)


@pytest.mark.parametrize(
    ("text", "status"),
    [
        ("16/128 16", SnapshotStatus(SnapshotState.ACTIVE, 16, 128, 16)),
        ("0/4096 0", SnapshotStatus(SnapshotState.ACTIVE, 0, 4096, 0)),
        ("Invalid", SnapshotStatus(SnapshotState.INVALID)),
        ("Overflow", SnapshotStatus(SnapshotState.OVERFLOW)),
        ("Merge failed", SnapshotStatus(SnapshotState.MERGE_FAILED)),
        ("Unknown", SnapshotStatus(SnapshotState.UNKNOWN)),
    ],
)
def test_status(text, status):
    assert SHOT.parse_status(text) == status


@pytest.mark.parametrize("text", ["", "active", "16/128", "16 128", "16/x 16", "16/128 16 x", "invalid"])
def test_bad_status(text):
    with pytest.raises(ParseError):
        SHOT.parse_status(text)


@pytest.mark.parametrize(
    ("status", "empty"),
    [
        (SnapshotStatus(SnapshotState.ACTIVE, 16, 128, 16), True),
        (SnapshotStatus(SnapshotState.ACTIVE, 24, 128, 16), False),
        (SnapshotStatus(SnapshotState.INVALID), False),
    ],
)
def test_empty(status, empty):
    assert status.empty is empty


# On a kernel. A chunk has 8 sectors, 4096 bytes.

CHUNK = 4096


def _fails(request, number: int = errno.EIO) -> None:
    with pytest.raises(OSError) as caught:
        request()
    assert caught.value.errno == number


def _used(chunks: int, total: int, metadata: int = 16) -> list[SnapshotStatus]:
    return [SnapshotStatus(SnapshotState.ACTIVE, metadata + 8 * chunks, total, metadata)]


def _small_cow(lab, sectors: int) -> Table:
    """Return a table whose device has room for `sectors`, all zeros."""
    return Table((Line(0, sectors, targets.Linear(dev=lab.refs[1])),))


@pytest.mark.dm
@pytest.mark.parametrize("store", Store)
def test_what_is_written_to_a_snapshot_stays_there(lab, store):
    with lab.disk(0) as origin:
        origin.write(0, b"o" * (8 * CHUNK))
    value = Snapshot(origin=lab.refs[0], cow=lab.refs[1], store=store, chunk=8)
    metadata = 0 if store is Store.TRANSIENT else 16
    with lab.open(value, 64) as (device, file), lab.disk(0) as origin:
        assert device.table() == Table.of(value, 64)
        assert device.status() == _used(0, 4096, metadata)
        assert file.read(0, 8 * CHUNK) == b"o" * (8 * CHUNK)
        file.write(CHUNK + 512, b"s" * 512)
        file.write(3 * CHUNK, b"t" * CHUNK)
        file.write(CHUNK, b"u" * 512)
        file.flush()
        assert file.read(CHUNK, CHUNK) == b"u" * 512 + b"s" * 512 + b"o" * (CHUNK - 1024)
        assert file.read(3 * CHUNK, CHUNK) == b"t" * CHUNK
        assert device.status() == _used(2, 4096, metadata)
        assert origin.read(0, 8 * CHUNK) == b"o" * (8 * CHUNK)
        _fails(lambda: file.discard(0, CHUNK), errno.EOPNOTSUPP)
    again = Snapshot(origin=lab.refs[0], cow=lab.refs[1], store=store, chunk=8)
    with lab.open(again, 64) as (_, file):
        kept = b"o" if store is Store.TRANSIENT else b"t"
        assert file.read(3 * CHUNK, CHUNK) == kept * CHUNK


@pytest.mark.dm
def test_the_persistent_store_on_the_disk(lab):
    with lab.open(Snapshot(origin=lab.refs[0], cow=lab.refs[1], chunk=8), 64) as (_, file):
        file.write(5 * CHUNK, b"x" * CHUNK)
        file.write(2 * CHUNK, b"y" * CHUNK)
    with lab.disk(1) as cow:
        assert struct.unpack("<4sIII", cow.read(0, 512)[:16]) == (b"SnAp", 1, 1, 8)
        assert struct.unpack("<6Q", cow.read(CHUNK, 512)[:48]) == (5, 2, 2, 3, 0, 0)
        assert cow.read(2 * CHUNK, 2 * CHUNK) == b"x" * CHUNK + b"y" * CHUNK


@pytest.mark.dm
def test_a_store_keeps_its_own_chunk_size(lab):
    for chunk in (16, 8, 0):
        with lab.device(Snapshot(origin=lab.refs[0], cow=lab.refs[1], chunk=chunk), 64) as device:
            (line,) = device.table().lines
            assert line.target == Snapshot(origin=lab.refs[0], cow=lab.refs[1], chunk=16)


@pytest.mark.dm
def test_a_disk_with_something_else_is_refused(lab):
    with lab.disk(1) as cow:
        cow.write(0, b"data" * 128)
    with pytest.raises(TableRejected) as caught, lab.device(_shot(lab), 64):
        pass
    assert caught.value.errno == errno.ENXIO


def _shot(lab) -> Snapshot:
    return Snapshot(origin=lab.refs[0], cow=lab.refs[1], chunk=8)


@pytest.mark.dm
def test_the_kernel_needs_a_chunk_size_for_a_transient_store(lab):
    value = Snapshot(origin=lab.refs[0], cow=lab.refs[1], store=Store.TRANSIENT)
    with pytest.raises(TableRejected) as caught, lab.device(value, 64):
        pass
    assert caught.value.errno == errno.EINVAL


@pytest.mark.dm
@pytest.mark.parametrize("store", [Store.PERSISTENT, Store.TRANSIENT])
def test_a_full_snapshot_becomes_invalid(lab, store):
    """Ten chunks: a header, an area of metadata and eight of data, or ten of data."""
    room = 10 if store is Store.TRANSIENT else 8
    metadata = 0 if store is Store.TRANSIENT else 16
    with lab.device(_small_cow(lab, 80), 80) as cow:
        value = Snapshot(origin=lab.refs[0], cow=cow.ref, store=store, chunk=8)
        with lab.open(value, 128) as (device, file):
            for chunk in range(room):
                file.write(chunk * CHUNK, b"s" * CHUNK)
            assert device.status() == _used(room, 80, metadata)
            event = device.info().event_nr
            _fails(lambda: file.write(room * CHUNK, b"s" * CHUNK))
            assert device.status() == [SnapshotStatus(SnapshotState.INVALID)]
            assert device.wait(event, timeout=5) == event + 1
            _fails(lambda: file.read(0, CHUNK))
            _fails(lambda: file.write(0, b"s" * CHUNK))
        with lab.open(value, 128) as (device, file):
            if store is Store.PERSISTENT:
                assert device.status() == [SnapshotStatus(SnapshotState.INVALID)]
                _fails(lambda: file.read(0, CHUNK))
            else:
                assert device.status() == _used(0, 80, 0)


@pytest.mark.dm
def test_a_full_snapshot_with_overflow_can_still_be_read(lab):
    with lab.device(_small_cow(lab, 80), 80) as cow:
        value = Snapshot(origin=lab.refs[0], cow=cow.ref, store=Store.OVERFLOW, chunk=8)
        with lab.open(value, 128) as (device, file):
            for chunk in range(8):
                file.write(chunk * CHUNK, b"s" * CHUNK)
            _fails(lambda: file.write(8 * CHUNK, b"s" * CHUNK))
            assert device.status() == [SnapshotStatus(SnapshotState.OVERFLOW)]
            assert file.read(0, 9 * CHUNK) == b"s" * (8 * CHUNK) + bytes(CHUNK)
            _fails(lambda: file.write(0, b"s" * CHUNK))
        with lab.open(value, 128) as (device, file):
            assert device.status() == _used(8, 80)
            assert file.read(0, 9 * CHUNK) == b"s" * (8 * CHUNK) + bytes(CHUNK)


@pytest.mark.dm
@pytest.mark.parametrize("store", Store)
def test_the_origin_saves_what_it_changes(lab, store):
    """A write of the origin for which there is no room makes every snapshot invalid, and succeeds."""
    with lab.disk(0) as below:
        below.write(0, b"o" * (16 * CHUNK))
    with (
        lab.open(targets.SnapshotOrigin(dev=lab.refs[0]), 128) as (origin, written),
        lab.device(_small_cow(lab, 32), 32) as cow,
    ):
        origin.suspend()
        value = Snapshot(origin=lab.refs[0], cow=cow.ref, store=store, chunk=8)
        room, metadata = (4, 0) if store is Store.TRANSIENT else (2, 16)
        with lab.open(value, 128) as (device, file):
            origin.resume()
            written.write(CHUNK + 1024, b"n" * 512)
            written.write(CHUNK, b"m" * 512)
            assert device.status() == _used(1, 32, metadata)
            assert file.read(0, 16 * CHUNK) == b"o" * (16 * CHUNK)
            assert written.read(CHUNK, 2048) == b"m" * 512 + b"o" * 512 + b"n" * 512 + b"o" * 512
            written.write(2 * CHUNK, b"n" * ((room - 1) * CHUNK))
            assert device.status() == _used(room, 32, metadata)
            assert file.read(0, 16 * CHUNK) == b"o" * (16 * CHUNK)
            written.write(10 * CHUNK, b"n" * 512)
            assert device.status() == [SnapshotStatus(SnapshotState.INVALID)]
            _fails(lambda: file.read(0, CHUNK))
            assert written.read(10 * CHUNK, 512) == b"n" * 512
            assert origin.table() == Table.of(targets.SnapshotOrigin(dev=lab.refs[0]), 128)


@pytest.mark.dm
@pytest.mark.parametrize("passdown", [False, True])
def test_discards(lab, passdown):
    big = 512 * 512
    with lab.disk(0) as below:
        below.write(0, b"o" * big)
        below.write(big, b"o" * big)
    value = Snapshot(
        origin=lab.refs[0],
        cow=lab.refs[1],
        chunk=512,
        discard_zeroes_cow=True,
        discard_passdown_origin=passdown,
    )
    with lab.open(value, 1536) as (device, file), lab.disk(0) as below:
        assert device.table() == Table.of(value, 1536)
        file.write(0, b"s" * big)
        file.discard(0, big)
        assert file.read(0, big) == bytes(big)
        assert below.read(0, big) == (bytes(big) if passdown else b"o" * big)
        file.discard(big, big)
        assert file.read(big, big) == (bytes(big) if passdown else b"o" * big)


@pytest.mark.dm
@pytest.mark.parametrize("store", [Store.PERSISTENT, Store.TRANSIENT])
def test_a_new_table_takes_the_chunks_over(lab, store):
    value = Snapshot(origin=lab.refs[0], cow=lab.refs[1], store=store, chunk=8)
    with lab.open(value, 64) as (device, file):
        file.write(CHUNK, b"s" * CHUNK)
        lines = Table.of(value, 64).encode(str)
        lab.control.load(device.selector, lines)
        (staged,) = device.table(inactive=True).lines
        assert staged.target == Snapshot(origin=lab.refs[0], cow=lab.refs[1], store=store, chunk=0)
        with pytest.raises(TableRejected) as caught:
            lab.control.load(device.selector, lines)
        assert caught.value.errno == errno.EINVAL
        device.suspend()
        device.resume()
        assert device.table() == Table.of(value, 64)
        assert file.read(CHUNK, CHUNK) == b"s" * CHUNK
        assert device.status() == _used(1, 4096, 0 if store is Store.TRANSIENT else 16)
