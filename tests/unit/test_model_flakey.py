"""flakey: the schedule in virtual time, and every fault, as kernels with and without the newer features have it."""

from __future__ import annotations

import errno

import pytest

from dmcore import open_volume, targets
from dmcore.model.stores import MemoryStore
from dmcore.targets.flakey import ALWAYS

NEW = frozenset(targets.Flakey.features)
OLD = frozenset()
LENGTH = 64 * 512


@pytest.fixture
def disk():
    return MemoryStore(1 << 20, word="d")


def opened(disk, params, features=NEW, **more):
    return open_volume(f"0 64 flakey d 0 {params}", {"d": disk}, features=features, **more)


def outcome(request, *args):
    try:
        return request(*args)
    except OSError as error:
        return error.errno


def test_the_schedule_begins_with_the_load_and_counts_full_seconds(disk):
    with opened(disk, "2 3") as volume:
        seen = {}
        for moment in (0, 1999, 2000, 4999, 5000, 6999, 7000):
            volume.clock.advance(moment - volume.clock.now)
            seen[moment] = outcome(volume.read, 0, 512)
        good, bad = bytes(512), errno.EIO
        assert seen == {0: good, 1999: good, 2000: bad, 4999: bad, 5000: good, 6999: good, 7000: bad}
        volume.device.suspend()
        volume.device.resume()
        assert outcome(volume.read, 0, 512) == bad
        volume.device.load(volume.device.table)
        volume.clock.advance(1500)
        volume.device.resume()
        assert outcome(volume.read, 0, 512) == good
        volume.clock.advance(500)
        assert outcome(volume.read, 0, 512) == bad
        volume.clock.advance(3000)


READ = b"a" * 512
EIO = errno.EIO
ROWS = [
    ("", (EIO, EIO, EIO, EIO), "aa"),
    ("1 drop_writes", (READ, None, None, None), "aa"),
    ("1 error_writes", (READ, EIO, EIO, EIO), "aa"),
    ("1 error_reads", (EIO, None, None, None), "\0w"),
    ("2 error_reads drop_writes", (EIO, None, None, None), "aa"),
    ("2 error_reads error_writes", (EIO, EIO, EIO, EIO), "aa"),
    ("5 corrupt_bio_byte 3 w 120 0", (READ, None, None, None), "\0w"),
    ("5 corrupt_bio_byte 3 r 120 0", (b"aax" + READ[3:], None, None, None), "\0w"),
    ("6 drop_writes corrupt_bio_byte 3 r 120 0", (b"aax" + READ[3:], None, None, None), "aa"),
]


@pytest.mark.parametrize(("faults", "expected", "left"), ROWS)
def test_each_fault_does_what_the_kernels_does(disk, faults, expected, left):
    disk.write(0, memoryview(b"a" * LENGTH))
    with opened(disk, f"0 1 {faults}") as volume:
        got = (
            outcome(volume.read, 0, 512),
            outcome(volume.write, 512, b"w" * 512),
            outcome(volume.flush),
            outcome(volume.discard, 1024, 512),
        )
        assert got == expected
        volume.device.suspend()
    assert chr(disk.read(2, 1)[0]) == left[0]
    written = disk.read(1, 1)
    assert chr(written[0]) == left[1]
    assert written[2:3] == (b"x" if "byte 3 w" in faults else left[1].encode())


@pytest.mark.parametrize("params", ["1 0", "1 0 1 drop_writes", "1 0 5 corrupt_bio_byte 1 r 9 0"])
def test_in_good_times_there_are_no_faults(disk, params):
    with opened(disk, params) as volume:
        volume.write(0, b"g" * LENGTH)
        assert volume.read(0, LENGTH) == b"g" * LENGTH
        volume.flush()


@pytest.mark.parametrize(
    ("byte", "length", "changed"),
    [
        (1, 512, 0),
        (512, 512, 511),
        (513, 512, None),
        (513, 1024, 512),
        (1024, 1024, 1023),
        (2**32 - 1, LENGTH, None),
    ],
)
def test_the_byte_counts_from_the_start_of_each_request(disk, byte, length, changed):
    with opened(disk, f"0 1 5 corrupt_bio_byte {byte} w 255 0") as volume:
        volume.write(0, bytes(length))
    assert [at for at, value in enumerate(disk.read(0, 64)) if value] == (
        [] if changed is None else [changed]
    )


@pytest.mark.parametrize(
    ("flags", "write", "read"),
    [(0, True, True), (1, True, False), (2048, True, True), (4096, False, False), (1 << 15, True, False), (2049, True, False)],
)  # fmt: skip
def test_only_requests_with_all_the_flags_are_corrupted(disk, flags, write, read):
    with opened(disk, f"0 1 5 corrupt_bio_byte 1 w 255 {flags}") as volume:
        volume.write(0, bytes(512))
    assert (disk.read(0, 1)[0] == 255) is write
    disk.write(0, memoryview(bytes(512)))
    with opened(disk, f"0 1 5 corrupt_bio_byte 1 r 255 {flags}") as volume:
        assert (volume.read(0, 512)[0] == 255) is read


def test_a_request_of_zeros_is_corrupted_but_not_on_old_kernels(disk):
    for features, first in ((NEW, 255), (OLD, 0)):
        with opened(disk, "0 1 5 corrupt_bio_byte 1 w 255 0", features) as volume:
            volume.write_zeroes(0, LENGTH)
        assert disk.read(0, 1)[0] == first


def test_old_kernels_corrupt_reads_only_above_a_dm_device(disk):
    params = "0 1 5 corrupt_bio_byte 1 r 255 0"
    with opened(disk, params, OLD) as volume:
        assert volume.read(0, 512)[0] == 0
    stack = f"low: 0 64 linear d 0\ntop: 0 64 flakey low 0 {params}"
    with open_volume(stack, {"d": disk}, features=OLD) as volume:
        assert volume.read(0, 512)[0] == 255


def test_a_request_above_4_mib_is_corrupted_in_pieces_but_not_on_old_kernels():
    disk = MemoryStore(9 << 20, word="d")
    for features, places in ((NEW, [0, 4 << 20, 8 << 20]), (OLD, [0])):
        disk.write_zeroes(0, disk.sectors)
        table = f"0 {disk.sectors} flakey d 0 0 1 5 corrupt_bio_byte 1 w 255 0"
        with open_volume(table, {"d": disk}, features=features) as volume:
            volume.write(0, bytes(9 << 20))
        found = disk.read(0, disk.sectors)
        assert [at for at in (0, 4 << 20, 8 << 20) if found[at]] == places
        assert found.count(255) == len(places)


def test_the_caller_s_own_buffer_stays_as_it_was(disk):
    data = bytearray(512)
    with opened(disk, "0 1 5 corrupt_bio_byte 1 w 255 0") as volume:
        volume.write(0, data)
    assert data == bytes(512)


@pytest.mark.parametrize(("chance", "low", "high"), [(0, 0, 0), (ALWAYS // 2, 300, 700), (ALWAYS, 900, 1000)])
def test_random_corruption_hits_as_often_as_the_table_says(disk, chance, low, high):
    with opened(disk, f"0 1 4 random_read_corrupt {chance} random_write_corrupt 1", seed=7) as volume:
        hit = sum(volume.read(0, 512) != bytes(512) for _ in range(1000))
    assert low <= hit <= high
    with opened(disk, f"0 1 4 random_write_corrupt {chance} random_read_corrupt 1", seed=7) as volume:
        hit = 0
        for _ in range(1000):
            volume.write(0, bytes(LENGTH))
            found = disk.read(0, 64)
            assert found.count(0) >= LENGTH - 1
            hit += found != bytes(LENGTH)
    assert low <= hit <= high


def test_the_same_seed_gives_the_same_chance(disk):
    def reads(seed):
        with opened(disk, f"0 1 2 random_read_corrupt {ALWAYS // 3}", seed=seed) as volume:
            return [volume.read(0, 4096) for _ in range(20)]

    assert reads(1) == reads(1) != reads(2)


@pytest.mark.parametrize(
    ("features", "shown"), [(NEW, "0 1 2 error_reads error_writes"), (OLD, "0 1 0")]
)  # fmt: skip
def test_the_table_reads_back_as_the_kernels(disk, features, shown):
    with opened(disk, "0 1", features) as volume:
        assert volume.table_text() == f"0 64 flakey d 0 {shown}"
        volume.device.suspend()


def test_a_flush_that_the_device_below_has_no_use_for_does_not_fail():
    with open_volume("low: 0 64 error\ntop: 0 64 flakey low 0 0 1 1 error_writes", {}) as volume:
        volume.flush()
