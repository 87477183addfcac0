"""The models of the snapshot family on a host: chunks, stores, merging, and hostile stores."""

from __future__ import annotations

import errno
import struct

import pytest
from failing import BreakingStore
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dmcore.errors import DmError, FormatError, SpecError
from dmcore.model.stores import MemoryStore
from dmcore.table import Table
from dmcore.targets.snapshot import SnapshotState
from dmcore.volume import Volume, open_volume

LENGTH = 100
CHUNK = 8


def _disks(cow=200, **more):
    sizes = {"base": LENGTH, "cow": cow, **more}
    disks = {name: BreakingStore(size * 512, word=name) for name, size in sizes.items()}
    disks["base"].write(0, memoryview(b"o" * LENGTH * 512))
    return disks


def _pair(disks, store="P", chunk=CHUNK, extra=""):
    text = f"origin: 0 {LENGTH} snapshot-origin base\nsnap: 0 {LENGTH} snapshot base cow {store} {chunk}{extra}\n"
    volume = open_volume(text, disks, top="origin")
    return volume, Volume({"snap": volume.devices["snap"]}, [], volume.clock)


def _fails(request, error=errno.EIO):
    with pytest.raises(OSError) as caught:
        request()
    assert caught.value.errno == error


def test_an_origin_is_opened_together_with_its_snapshots_which_copy_before_its_writes():
    disks = _disks()
    origin, snap = _pair(disks)
    assert list(origin.devices) == ["snap", "origin"]
    origin.write(7 * 512, b"n" * 1024)
    assert snap.read(0, LENGTH * 512) == b"o" * LENGTH * 512
    assert origin.read(7 * 512, 1024) == b"n" * 1024
    assert snap.status_text() == f"0 {LENGTH} snapshot 32/200 16", "header, area and two chunks"
    assert struct.unpack("<8Q", disks["cow"].read(8, 8)[:64]) == (0, 2, 1, 3, 0, 0, 0, 0)
    assert bytes(disks["cow"].read(0, 1)[:16]) == struct.pack("<4sIII", b"SnAp", 1, 1, 8)


def test_a_snapshot_keeps_its_writes_when_it_is_opened_again():
    disks = _disks()
    text = f"0 {LENGTH} snapshot base cow P 8"
    with open_volume(text, disks) as snap:
        snap.write(512, b"s" * 512)
        snap.write(16 * 512, b"t" * 4096)
    with open_volume(text.replace("P 8", "P 32"), disks) as snap:
        assert snap.table_text() == text, "the chunk size of the store counts"
        assert snap.read(0, 24 * 512) == b"o" * 512 + b"s" * 512 + b"o" * 14 * 512 + b"t" * 4096
    assert disks["base"].read(0, LENGTH) == b"o" * LENGTH * 512


def test_many_chunks_fill_areas_and_leave_them_out():
    disks = {"base": MemoryStore(200 * 512, word="base"), "cow": MemoryStore(300 * 512, word="cow")}
    with open_volume("0 200 snapshot base cow P 1", disks) as snap:
        for sector in range(0, 200, 2):
            snap.write(sector * 512, bytes([sector % 255 + 1]) * 512)
        assert snap.status_text() == "0 200 snapshot 105/300 5", (
            "100 chunks, 3 full areas of 32 and a begun one"
        )
    with open_volume("0 200 snapshot base cow P 1", disks) as snap:
        assert all(snap.read(s * 512, 512) == bytes([s % 255 + 1]) * 512 for s in range(0, 200, 2))
        assert snap.status_text() == "0 200 snapshot 105/300 5"


@pytest.mark.parametrize("store", ["P", "N"])
def test_a_snapshot_without_room_becomes_invalid(store):
    disks = _disks(cow=32 if store == "P" else 16)
    origin, snap = _pair(disks, store)
    origin.write(0, b"n" * 512)
    snap.write(512 * 8, b"s" * 512)
    _fails(lambda: snap.write(512 * 16, b"s" * 512))
    assert snap.status()[0].state is SnapshotState.INVALID
    assert snap.device.event_nr == 1
    _fails(lambda: snap.read(0, 512))
    origin.write(0, b"m" * LENGTH * 512)
    if store == "P":
        assert disks["cow"].read(0, 1)[4:8] == bytes(4)
        with open_volume(f"0 {LENGTH} snapshot base cow P 8", disks) as again:
            assert again.status()[0].state is SnapshotState.INVALID


def test_an_overflown_snapshot_can_be_read_unless_its_origin_was_written():
    disks = _disks(cow=24)
    origin, snap = _pair(disks, "PO")
    snap.write(0, b"s" * 512)
    _fails(lambda: snap.write(512 * 16, b"s" * 512))
    _fails(lambda: snap.write(0, b"s" * 512))
    assert snap.read(0, 512) == b"s" * 512
    assert (snap.status()[0].state, snap.device.event_nr) == (SnapshotState.OVERFLOW, 0)
    origin.write(50 * 512, b"n" * 512)
    assert snap.status()[0].state is SnapshotState.INVALID


@pytest.mark.parametrize(("disk", "kind"), [("base", "read"), ("cow", "write")])
def test_a_chunk_that_cannot_be_copied_makes_it_invalid(disk, kind):
    disks = _disks()
    origin, snap = _pair(disks)
    disks[disk].broken = kind
    _fails(lambda: snap.write(0, b"s" * 512))
    assert snap.status()[0].state is SnapshotState.INVALID
    origin.write(0, b"n" * 512)


def test_discards_zero_chunks_that_are_held_and_go_to_the_origin_if_asked():
    disks = _disks(cow=4096, chunk=0)
    disks["base"] = BreakingStore(2048 * 512, word="base")
    disks["base"].write(0, memoryview(b"o" * 2048 * 512))
    text = "0 2048 snapshot base cow P 512 1 discard_zeroes_cow"
    with open_volume(text, disks) as snap:
        snap.write(0, b"s" * 512)
        snap.discard(0, 1024 * 512)
        assert snap.read(0, 1024 * 512) == bytes(512 * 512) + b"o" * 512 * 512
    with open_volume(text.replace("1 discard", "2 discard_passdown_origin discard"), disks) as snap:
        snap.discard(512 * 512, 512 * 512)
        assert snap.read(512 * 512, 512) == bytes(512)
    with open_volume("0 2048 snapshot base cow P 512", disks) as snap:
        _fails(lambda: snap.discard(0, 1024 * 512), errno.EOPNOTSUPP)


def test_merging_writes_chunks_back_and_spares_other_snapshots():
    disks = _disks(cow2=200)
    with open_volume(f"0 {LENGTH} snapshot base cow P 8", disks) as snap:
        for chunk, byte in ((3, b"3"), (4, b"4"), (1, b"1"), (12, b"l")):
            snap.write(chunk * 4096, byte * 512)
    text = f"merge: 0 {LENGTH} snapshot-merge base cow P 8\nother: 0 {LENGTH} snapshot base cow2 N 4\n"
    volume = open_volume(text, disks, top="merge")
    expected = bytearray(b"o" * LENGTH * 512)
    for chunk, byte in ((3, b"3"), (4, b"4"), (1, b"1"), (12, b"l")):
        expected[chunk * 4096 : chunk * 4096 + 512] = byte * 512
    assert volume.read(0, LENGTH * 512) == expected
    volume.write(24 * 512 + 512, b"w" * 512)
    expected[25 * 512 : 26 * 512] = b"w" * 512
    assert volume.status_text() == f"0 {LENGTH} snapshot-merge 48/200 16"
    volume.settle()
    assert volume.status()[0].empty
    assert volume.status_text() == f"0 {LENGTH} snapshot-merge 16/200 16"
    assert volume.read(0, LENGTH * 512) == disks["base"].read(0, LENGTH) == expected
    assert volume.devices["other"].read(0, LENGTH) == b"o" * LENGTH * 512


def test_a_merge_whose_origin_fails_stops_and_says_so():
    disks = _disks()
    with open_volume(f"0 {LENGTH} snapshot base cow P 8", disks) as snap:
        snap.write(0, b"s" * 512)
    volume = open_volume(f"0 {LENGTH} snapshot-merge base cow P 8", disks)
    disks["base"].broken = "write"
    volume.settle()
    assert volume.status()[0].state is SnapshotState.MERGE_FAILED
    disks["base"].broken = ""
    volume.device.suspend()
    volume.device.resume()
    volume.settle()
    assert disks["base"].read(0, 1) == b"s" * 512


def test_exceptions_are_handed_over_when_a_table_is_reloaded_and_to_a_merge():
    disks = _disks()
    origin, snap = _pair(disks, "N")
    snap.write(0, b"s" * 512)
    table = Table.parse(f"0 {LENGTH} snapshot base cow P 16")
    snap.device.load(table)
    with pytest.raises(SpecError, match="two snapshots"):
        origin.device.load(table)
    snap.device.resume()
    assert snap.table_text() == f"0 {LENGTH} snapshot base cow N 8"
    assert snap.read(0, 1024) == b"s" * 512 + b"o" * 512
    with pytest.raises(SpecError, match="transient"):
        origin.device.load(Table.parse(f"0 {LENGTH} snapshot-merge base cow P 8"))


def test_a_merge_takes_over_from_a_suspended_snapshot_only():
    disks = _disks()
    origin, snap = _pair(disks)
    snap.write(0, b"s" * 512)
    origin.device.load(Table.parse(f"0 {LENGTH} snapshot-merge base cow P 8"))
    _fails(origin.device.resume, errno.EINVAL)
    snap.device.suspend()
    origin.device.resume()
    assert origin.read(0, 512) == b"s" * 512
    origin.settle()
    assert disks["base"].read(0, 1) == b"s" * 512
    assert snap.status_text().endswith("Invalid")


@pytest.mark.parametrize(
    ("text", "field"),
    [("base cow P 1", "chunk"), ("base cow N 0", "chunk")],
)
def test_impossible_chunks_are_refused(text, field):
    disks = {"base": MemoryStore(8192, word="base"), "cow": MemoryStore(8192, word="cow", block_size=4096)}
    with pytest.raises(SpecError, match=field):
        open_volume(f"0 8 snapshot {text}", disks)


@pytest.mark.parametrize(
    ("header", "match"),
    [
        (struct.pack("<IIII", 0x12345678, 1, 1, 8), "magic"),
        (struct.pack("<IIII", 0x70416E53, 1, 2, 8), "version 2"),
        (struct.pack("<IIII", 0x70416E53, 1, 1, 12), "power of two"),
        (struct.pack("<IIII", 0x70416E53, 1, 1, 1 << 30), "power of two"),
        (struct.pack("<IIII", 0x70416E53, 1, 1, 1 << 20), "behind the COW device"),
    ],
)
def test_headers_of_something_else_are_refused(header, match):
    disks = _disks()
    disks["cow"].write(0, memoryview(header.ljust(512, b"\0")))
    with pytest.raises(FormatError, match=match):
        open_volume(f"0 {LENGTH} snapshot base cow P 8", disks)


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck), database=None)
@given(
    st.integers(0, 12),
    st.lists(st.tuples(st.integers(0, 20), st.integers(0, 40) | st.integers(0, 2**64 - 1)), max_size=80),
)
def test_hostile_stores_are_refused_or_read_within_the_device(bit, records):
    cow = MemoryStore(64 * 512, word="cow")
    cow.write(0, memoryview(struct.pack("<IIII", 0x70416E53, 1, 1, 1 << bit).ljust(512, b"\0")))
    packed = b"".join(struct.pack("<QQ", *record) for record in records)
    cow.write(1 << min(bit, 5), memoryview(packed.ljust(1536, b"\0")[:1536].ljust(1536, b"\0")))
    base = MemoryStore(LENGTH * 512, word="base")
    try:
        with open_volume(f"0 {LENGTH} snapshot base cow P 1", {"base": base, "cow": cow}) as snap:
            snap.read(0, LENGTH * 512)
            snap.write(0, b"w" * LENGTH * 512)
    except (DmError, OSError):
        return
