"""The model of clone, and its metadata in both directions."""

from __future__ import annotations

import errno
import random

import pytest
from failing import BreakingStore, damage, damage_superblock
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from persistent_audit import array_blocks, audit
from twins import outcome, twins

from dmcore.errors import FormatError
from dmcore.formats.clone import SUPERBLOCK, SuperBlock
from dmcore.formats.persistent_data import BLOCK, Reader
from dmcore.model.block import FUA, SYNC
from dmcore.targets.clone import CloneStatus, Failed
from dmcore.volume import open_volume

LENGTH = 100
REGION = 8


def _disks(metadata_blocks=64):
    disks = {
        name: BreakingStore(size * 512, word=name)
        for name, size in (("meta", 8 * metadata_blocks), ("dest", LENGTH), ("source", LENGTH))
    }
    disks["source"].write(0, memoryview(b"s" * LENGTH * 512))
    return disks


def _open(disks, options="", **more):
    return open_volume(f"0 {LENGTH} clone meta dest source {REGION} {options}", disks, **more)


def _status(volume) -> CloneStatus:
    (status,) = volume.status()
    assert isinstance(status, CloneStatus)
    return status


def _audit(disks):
    found = SuperBlock.read(Reader(disks["meta"]))
    audit(disks["meta"], found.space_map, [(found.bitset, 8, array_blocks)])


def _text(error, request):
    with pytest.raises(OSError) as caught:
        request()
    assert caught.value.errno == error


def test_regions_come_over_when_they_are_written():
    disks = _disks()
    with _open(disks) as volume:
        assert volume.read(0, LENGTH * 512) == b"s" * LENGTH * 512
        volume.write(512, b"w" * 512)
        assert disks["dest"].read(0, 9) == b"s" * 512 + b"w" * 512 + b"s" * 6 * 512 + bytes(512)
        volume.write(16 * 512, b"x" * 4096)
        volume.write(98 * 512, b"y" * 512)
        expected = b"s" * 512 + b"w" * 512 + b"s" * 14 * 512 + b"x" * 4096 + b"s" * 74 * 512 + b"y" * 512
        assert volume.read(0, 99 * 512) == expected
        status = _status(volume)
        assert (status.regions.used, status.regions.total, status.hydrating) == (3, 13, 0)
        assert (status.metadata.used, status.metadata.total) == (6, 64)
    _audit(disks)
    with _open(disks) as volume:
        assert _status(volume).regions.used == 3
        assert volume.read(0, 99 * 512) == expected


def test_hydration_fills_the_destination_and_raises_an_event():
    disks = _disks()
    with _open(disks, "1 no_hydration 4 hydration_threshold 5 hydration_batch_size 3") as volume:
        volume.write(0, b"w" * 4096)
        volume.settle()
        assert _status(volume).regions.used == 1
        volume.message("Enable_Hydration")
        volume.message("hydration_threshold 0")
        volume.settle()
        assert _status(volume).regions.used == 1, "a threshold of 0 stops it"
        volume.message("hydration_threshold 5")
        assert volume.device.event_nr == 0
        volume.settle()
        status = _status(volume)
        assert (status.regions.used, status.hydration, status.hydration_threshold) == (13, True, 5)
        assert volume.device.event_nr == 1
    assert disks["dest"].read(0, LENGTH) == b"w" * 4096 + b"s" * (LENGTH - 8) * 512
    disks["source"].broken = "read"
    with _open(disks) as volume:
        assert volume.read(0, 8192) == b"w" * 4096 + b"s" * 4096


def test_discards_of_whole_regions_hydrate_without_a_copy():
    disks = _disks()
    disks["dest"].write(0, memoryview(b"d" * LENGTH * 512))
    with _open(disks, "1 no_discard_passdown") as volume:
        volume.discard(512, 20 * 512)
        assert _status(volume).regions.used == 1
        assert volume.read(0, 24 * 512) == b"s" * 4096 + b"d" * 4096 + b"s" * 4096
        volume.discard(96 * 512, 4 * 512)
        assert _status(volume).regions.used == 1, "the last, short region is no whole one"
    with _open(disks) as volume:
        volume.discard(0, 16 * 512)
        assert volume.read(0, 16 * 512) == bytes(16 * 512)
        assert disks["dest"].read(16, 1) == b"d" * 512


def test_what_was_not_flushed_may_be_lost_but_flush_and_fua_commit():
    disks = _disks()
    volume = _open(disks)
    volume.write(0, b"w" * 4096)
    with _open(disks) as after:
        assert _status(after).regions.used == 0
    volume = _open(disks)
    volume.write(0, b"w" * 4096)
    volume.flush()
    volume.write(4096, b"w" * 512, fua=True)
    volume.device.write(24, memoryview(b"w" * 4096), SYNC | FUA)
    volume.write(16384, b"w" * 4096)
    with _open(disks) as after:
        assert _status(after).regions.used == 3


def test_a_failing_metadata_device_makes_it_read_only_with_what_was_committed():
    disks = _disks()
    volume = _open(disks)
    volume.write(0, b"w" * 4096)
    volume.flush()
    volume.write(8192, b"w" * 4096)
    disks["meta"].broken = "write"
    _text(errno.EIO, volume.flush)
    assert volume.status_text().endswith(" ro")
    assert _status(volume).regions.used == 1
    assert volume.read(0, 4096) == b"w" * 4096
    volume.write(0, b"z" * 4096)
    _text(errno.EIO, lambda: volume.write(4096, b"z" * 4096))
    _text(errno.EIO, volume.flush)
    volume.discard(4096, 4096)
    assert volume.read(4096, 4096) == b"s" * 4096


def test_metadata_that_cannot_be_read_either_make_it_fail():
    disks = _disks()
    volume = _open(disks)
    volume.write(0, b"w" * 4096)
    disks["meta"].broken = "read write"
    _text(errno.EIO, volume.flush)
    assert volume.status() == [Failed()]
    _text(errno.EIO, lambda: volume.read(0, 512))
    _text(errno.EIO, lambda: volume.discard(0, 4096))


def test_a_metadata_device_without_room_fails_the_load():
    _text(errno.ENOSPC, lambda: _open(_disks(metadata_blocks=4)))


def test_copies_that_fail_leave_their_regions_on_the_source():
    disks = _disks()
    with _open(disks) as volume:
        disks["source"].broken = "read"
        _text(errno.EIO, lambda: volume.write(0, b"w" * 512))
        volume.settle()
        assert _status(volume).regions.used == 0
        volume.write(0, b"w" * 4096)
        disks["source"].broken = ""
        disks["dest"].broken = "write"
        _text(errno.EIO, lambda: volume.write(4096, b"w" * 4096))
        assert _status(volume).regions.used == 1
        disks["dest"].broken = ""


@pytest.mark.parametrize(
    "message", ["", "hydrate", "hydration_threshold", "hydration_threshold x", "hydration_batch_size -1"]
)
def test_refuses_other_messages(message):
    with _open(_disks()) as volume:
        _text(errno.EINVAL, lambda: volume.message(message))


@pytest.mark.parametrize(
    ("at", "data", "words"),
    [
        (32, b"\0", "magic"),
        (40, b"\2", "version 2"),
        (44, b"\0", "for 0 blocks"),
        (45, b"\1", "for 320 blocks"),
        (172, b"\x10", "regions of 16"),
        (180, b"\x08", "clone of 8 sectors"),
        (188, b"\xff", "block 255"),
    ],
)
def test_refuses_damaged_metadata_and_says_what_is_wrong(at, data, words):
    disks = _disks()
    _open(disks).close()
    block = damage_superblock(disks["meta"], SUPERBLOCK, at, data)
    with pytest.raises(FormatError, match=words):
        _open(disks)
    block[300] ^= 1
    disks["meta"].write(0, memoryview(block))
    with pytest.raises(FormatError, match=r"magic|checksum"):
        _open(disks)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 8), st.integers(0, BLOCK - 8), st.binary(min_size=1, max_size=8))
def test_any_damage_ends_in_an_error_or_a_working_volume(number, at, data):
    disks = _disks()
    _open(disks).close()
    damage(disks["meta"], number * BLOCK + at, data)
    try:
        volume = _open(disks)
    except FormatError:
        return
    assert len(volume.read(0, volume.size)) == volume.size


def test_reads_give_what_was_written_last_or_the_source():
    for seed in range(15):
        rng = random.Random(seed)
        disks = _disks()
        expected = bytearray(b"s" * LENGTH * 512)
        with _open(disks, "" if seed % 2 else "1 no_hydration") as volume:
            for step in range(40):
                at = rng.randrange(LENGTH)
                count = min(rng.choice([1, 3, 8, 16, 40]), LENGTH - at)
                volume.write(at * 512, bytes([step]) * count * 512)
                expected[at * 512 : (at + count) * 512] = bytes([step]) * count * 512
                if step % 9 == 8:
                    volume.settle()
            assert volume.read(0, volume.size) == expected
        _audit(disks)
        with _open(disks) as volume:
            assert volume.read(0, volume.size) == expected


# On a kernel.

PIECES = {"meta": (0, 0, 1024), "dest": (0, 1024, 2048), "source": (1, 0, 2048)}
TABLE = f"0 {LENGTH} clone {{meta}} {{dest}} {{source}} {REGION} 1 no_hydration"
_STEPS = st.one_of(
    st.tuples(st.just("write"), st.integers(0, LENGTH - 1), st.integers(1, 20), st.integers(1, 255)),
    st.tuples(st.just("write"), st.integers(0, 12).map(lambda at: at * REGION), st.just(REGION), st.just(9)),
    st.tuples(st.just("read"), st.integers(0, LENGTH - 1), st.integers(1, LENGTH), st.just(0)),
    st.tuples(st.just("discard"), st.integers(0, LENGTH - 1), st.integers(1, 40), st.just(0)),
    st.tuples(st.sampled_from(["flush", "again", "message hydration_threshold 7"]), *[st.just(0)] * 3),
)


@pytest.mark.dm
def test_model_and_kernel_agree_on_data_and_status(lab):
    with twins(lab, **PIECES) as both:

        @settings(max_examples=8, deadline=None, database=None, suppress_health_check=list(HealthCheck))
        @given(st.lists(_STEPS, min_size=3, max_size=15))
        def check(script):
            both.wipe()
            both.fill("source", b"".join(bytes([at % 251]) * 512 for at in range(2048)))
            with both.kernel(TABLE) as (device, file), both.model(TABLE) as volume:
                for step in script:
                    assert outcome(volume.device, volume, step) == outcome(device, file, step), step
                    assert volume.status() == device.status()
                assert volume.table_text() == device.table_text()
            for name in ("dest", "source"):
                assert bytes(both.stores[name].read(0, 2048)) == both.bytes(name), name

        check()


@pytest.mark.dm
def test_metadata_go_both_ways(lab):
    with twins(lab, **PIECES) as both:
        both.fill("source", random.Random(1).randbytes(2048 * 512))
        rng = random.Random(2)

        def write(disk):
            for _ in range(6):
                disk.write(rng.randrange(LENGTH - 12) * 512, rng.randbytes(rng.choice([512, 4096, 5120])))
            return disk.read(0, LENGTH * 512)

        with both.kernel(TABLE) as (device, file):
            expected, status = write(file), device.status()
        for _ in range(2):
            both.pull()
            with both.model(TABLE) as volume:
                assert (volume.read(0, volume.size), volume.status()) == (expected, status)
                expected, status = write(volume), volume.status()
            both.push()
            with both.kernel(TABLE) as (device, file):
                assert (file.read(0, file.size), device.status()) == (expected, status)
                expected, status = write(file), device.status()
        both.pull()
        with both.model(TABLE.replace("1 no_hydration", "")) as volume:
            volume.settle()
        both.push()
        with both.kernel(TABLE) as (device, file):
            assert device.status()[0].regions.used == 13
            assert file.read(0, file.size) == expected
