"""dm.mirror, dm.raid, dm.snapshot and dm.clone on a real kernel."""

from __future__ import annotations

import errno

import pytest

from dmcore.errors import DmError, SpecError
from dmcore.targets.mirror import LegState
from dmcore.targets.raid import DeviceState
from dmcore.targets.snapshot import SnapshotState

KIB = 1024
pytestmark = pytest.mark.dm(size="1M")


def refused(number, action, *args):
    with pytest.raises(OSError) as caught:
        action(*args)
    assert caught.value.errno == number


def letters(mirror):
    return "".join(leg.state for leg in mirror.state.legs)


def test_a_mirror_lives_on_without_a_leg_and_gets_another(dm):
    mirror = dm.mirror(region="64K")
    mirror.wait_in_sync()
    mirror.write(0, b"m" * 64 * KIB)
    assert [leg.lower.read(0, 64 * KIB) for leg in mirror.legs] == [b"m" * 64 * KIB] * 2
    with mirror.legs[0].fail(reads=True):
        assert mirror.read(512 * KIB, 4 * KIB) == bytes(4 * KIB), "the other leg has it"
        assert letters(mirror) == LegState.READ_FAILED + LegState.ALIVE
    second = mirror.replace(0)
    mirror.wait_in_sync()
    assert letters(mirror) == "AA"
    assert mirror.legs[1] is second
    with second.fail():
        mirror.write(0, b"n" * 4 * KIB)
        assert letters(mirror) == LegState.ALIVE + LegState.WRITE_FAILED
    new = mirror.replace(1)
    mirror.wait_in_sync()
    assert new.lower.read(0, 64 * KIB) == b"n" * 4 * KIB + b"m" * 60 * KIB


def test_a_mirror_whose_first_leg_is_replaced_copies_the_other(dm):
    mirror = dm.mirror(legs=[dm.loop(), dm.dust()], log=True)
    mirror.wait_in_sync()
    mirror.write(0, b"1" * 4 * KIB)
    mirror.legs[0].fail()
    new = mirror.replace(0)
    mirror.wait_in_sync()
    assert mirror.read(0, 4 * KIB) == new.lower.read(0, 4 * KIB) == b"1" * 4 * KIB
    with pytest.raises(SpecError, match="index"):
        mirror.replace(2)
    with pytest.raises(SpecError, match="disk"):
        mirror.replace(1, dm.loop("64K"))


def test_a_mirror_that_need_not_be_copied(dm, dm_backend):
    mirror = dm.mirror(3, sync=False, size="64K")
    assert mirror.in_sync
    assert len(mirror.legs) == 3
    before = len(list(dm.resources()))
    with pytest.raises(SpecError, match="legs"):
        dm.mirror(1)
    with pytest.raises(SpecError, match="size"):
        dm.mirror([dm.loop(), dm.loop()], size="1M")
    assert len(list(dm.resources())) == before + 2, "the two loops of this test"


@pytest.mark.parametrize(("kind", "bad"), [("raid1", 1), ("raid5_ls", 1), ("raid6_zr", 2), ("raid10", 1)])
def test_a_raid_set_lives_on_without_legs_and_gets_others(dm, kind, bad):
    raid = dm.raid(kind, size="512K", chunk="4K")
    content = bytes(range(256)) * (raid.size // 256)
    raid.write(0, content)
    raid.wait_in_sync()
    for index in range(bad):
        raid.legs[index].fail()
    raid.write(0, content)
    assert raid.state.devices[: bad + 1] == (*[DeviceState.FAILED] * bad, DeviceState.IN_SYNC)
    raid.forget_cached()
    assert raid.read(0, raid.size) == content
    for index in range(bad):
        raid.replace(index)
        raid.wait_rebuilt(index)
    raid.wait_in_sync()
    assert raid.read(0, raid.size) == content
    assert raid.check() == 0


def test_a_raid_set_is_checked_and_repaired(dm):
    raid = dm.raid("raid1", size="512K")
    raid.write(0, b"r" * raid.size)
    raid.wait_in_sync()
    raid.legs[1].lower.write(8 * KIB, b"x" * 512)
    assert raid.check() > 0
    raid.repair()
    assert raid.check() == 0
    assert raid.legs[1].lower.read(8 * KIB, 512) == b"r" * 512


def test_what_a_raid_set_cannot_be(dm):
    with pytest.raises(SpecError, match="kind"):
        dm.raid("raid7")
    stripes = dm.raid("raid0", metadata=False, size="128K")
    assert stripes.size == 256 * KIB
    with pytest.raises(SpecError, match="kind"):
        stripes.replace(0)
    with pytest.raises(SpecError, match="stripe_cache"):
        dm.raid("raid1", stripe_cache=64)
    assert all(type(one).__name__ in {"Loop", "Flakey", "Raid"} for one in dm.resources())
    assert len(list(dm.resources())) == 5, "of the set that works only"


def test_a_snapshot_keeps_what_was(dm):
    disk = dm.loop()
    disk.write(0, b"o" * 16 * KIB)
    first = dm.snapshot(disk)
    origin = first.origin
    origin.write(0, b"1" * 4 * KIB)
    second = dm.snapshot(origin)
    origin.write(4 * KIB, b"2" * 4 * KIB)
    second.write(8 * KIB, b"s" * 512)
    assert origin.read(0, 12 * KIB) == b"1" * 4 * KIB + b"2" * 4 * KIB + b"o" * 4 * KIB
    assert first.read(0, 12 * KIB) == b"o" * 12 * KIB
    assert second.read(0, 12 * KIB) == b"1" * 4 * KIB + b"o" * 4 * KIB + b"s" * 512 + b"o" * 3584
    assert origin.snapshots == [first, second]


@pytest.mark.parametrize(
    ("store", "state", "readable"),
    [
        ("P", SnapshotState.INVALID, False),
        ("PO", SnapshotState.OVERFLOW, True),
        ("N", SnapshotState.INVALID, False),
    ],
)
def test_a_snapshot_is_filled(dm, store, state, readable):
    snapshot = dm.snapshot(store=store, cow_size="128K")
    assert snapshot.valid
    assert snapshot.fill().state is state
    assert snapshot.valid is readable
    if readable:
        assert snapshot.read(0, 4 * KIB) == bytes(4 * KIB)
        refused(errno.EIO, snapshot.write, 512 * KIB, b"x" * 4 * KIB)
    else:
        refused(errno.EIO, snapshot.read, 0, 4 * KIB)
    snapshot.origin.write(0, b"x" * 4 * KIB)


def test_a_snapshot_is_merged_back(dm):
    snapshot = dm.snapshot()
    origin = snapshot.origin
    origin.write(0, b"n" * 64 * KIB)
    snapshot.write(32 * KIB, b"s" * 4 * KIB)
    origin.merge(snapshot)
    assert origin.read(0, 64 * KIB) == bytes(32 * KIB) + b"s" * 4 * KIB + bytes(28 * KIB)
    assert origin.snapshots == []
    again = dm.snapshot(origin, store="N")
    with pytest.raises(SpecError, match="snapshot"):
        origin.merge(again)
    with pytest.raises(SpecError, match="snapshot"):
        origin.merge(snapshot)


def test_a_clone_is_there_at_once_and_hydrates(dm):
    source = dm.loop()
    source.write(0, b"c" * 64 * KIB)
    clone = dm.clone(source)
    assert clone.read(0, 64 * KIB) == b"c" * 64 * KIB
    clone.write(0, b"n" * 4 * KIB)
    assert clone.state.regions.used == 1
    assert clone.dest.read(4 * KIB, 4 * KIB) == bytes(4 * KIB), "not there yet"
    with pytest.raises(DmError, match="source"):
        clone.detach()
    clone.source.fail(reads=True)
    refused(errno.EIO, clone.read, 4 * KIB, 4 * KIB)
    clone.source.heal()
    clone.pause()
    clone.hydrate()
    assert clone.hydrated
    assert source.read(0, 4 * KIB) == b"c" * 4 * KIB
    clone.detach()
    assert clone.read(0, 64 * KIB) == b"n" * 4 * KIB + b"c" * 60 * KIB


def test_families_stand_on_each_other(dm):
    """A file system's disk as people build it: encrypted, on a thin disk, in a pool on a mirror."""
    mirror = dm.mirror(size="16M", sync=False)
    thin = dm.thin_pool(mirror).thin("64M")
    crypt = dm.crypt(thin)
    dm.mkfs(crypt, "ext4")
    with dm.mount(crypt) as mounted:
        (mounted.mountpoint / "file").write_bytes(b"x" * 1000)
        mirror.legs[0].fail(writes=True)
        with (mounted.mountpoint / "more").open("wb") as file:
            file.write(b"y" * 100000)
            file.flush()
        crypt.flush()
    assert mirror.state.legs[0].state is LegState.WRITE_FAILED
