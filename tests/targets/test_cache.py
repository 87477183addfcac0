from __future__ import annotations

import contextlib
import errno
import time

import pytest
from ground import Blank, check_offline, fail_next_writes

from dmcore import targets
from dmcore.errors import IoctlError, ParseError, SpecError, TableRejected
from dmcore.kernel.block import BlockFile
from dmcore.ref import Ref
from dmcore.table import Table
from dmcore.target import NO_FEATURES
from dmcore.targets.cache import (
    MQ_TUNABLES,
    Cache,
    CacheMode,
    CacheStatus,
    Failed,
    InvalidateCblocks,
    Policy,
    SetMigrationThreshold,
    SetTunable,
    Unreadable,
    Usage,
)

META, FAST, SLOW = Ref("7:0"), Ref("7:1"), Ref("7:2")
REFS = {"metadata": META, "cache": FAST, "origin": SLOW}
CACHE = Cache(**REFS)


class Caches(Blank):
    def fits(self, target, length):
        return target.block_sectors <= self.refs[target.cache]


@contextlib.contextmanager
def ground(lab):
    yield Caches(lab)


@pytest.mark.parametrize(
    ("words", "values"),
    [
        ("64 0 smq 0", {}),
        ("+64 1 WRITEback smq 0 and more", {}),
        ("128 1 writethrough default 0", {"block_sectors": 128, "mode": CacheMode.WRITETHROUGH, "policy": Policy.DEFAULT}),
        ("64 2 metadata2 passthrough cleaner 0", {"metadata2": True, "mode": CacheMode.PASSTHROUGH, "policy": Policy.CLEANER}),
        ("64 3 no_discard_passdown no_discard_passdown metadata2 smq 0", {"metadata2": True, "no_discard_passdown": True}),
        ("64 0 smq 2 Migration_threshold +7", {"migration_threshold": 7}),
        ("64 0 smq 4 migration_threshold 7 migration_threshold 8", {"migration_threshold": 8}),
        (
            "64 0 mq 6 random_threshold 4 migration_threshold 1 sequential_threshold 5",
            {"policy": Policy.MQ, "migration_threshold": 1, "tunables": (("random_threshold", 4), ("sequential_threshold", 5))},
        ),
    ],
)  # fmt: skip
def test_reads_what_the_kernel_reads(words, values):
    assert Table.parse(f"0 64 cache 7:0 7:1 7:2 {words}") == Table.of(Cache(**{**REFS, **values}), 64)


@pytest.mark.parametrize(
    ("words", "index"),
    [
        ("", 6),
        ("64", 7),
        ("0x40 0 smq 0", 6),
        ("64 4", 7),
        ("64 1", 8),
        ("64 1 fast smq 0", 8),
        ("64 2 writeback writeback smq 0", 9),
        ("64 0", 8),
        ("64 0 SMQ 0", 8),
        ("64 0 lru 0", 8),
        ("64 0 smq", 9),
        ("64 0 smq 1 migration_threshold", 9),
        ("64 0 smq 2 migration_threshold", 11),
        ("64 0 smq 2 random_threshold 4", 10),
        ("64 0 smq 2 migration_threshold -1", 11),
        ("64 0 smq 1025", 9),
    ],
)
def test_refuses_what_the_kernel_refuses_and_names_the_word(words, index):
    with pytest.raises(ParseError) as caught:
        Table.parse(f"0 64 cache 7:0 7:1 7:2 {words}")
    assert caught.value.index == index


@pytest.mark.parametrize(
    ("field", "values"),
    [
        ("metadata", {"metadata": "7:0"}),
        ("cache", {"cache": 7}),
        ("origin", {"origin": None}),
        ("block_sectors", {"block_sectors": 0}),
        ("block_sectors", {"block_sectors": 96}),
        ("block_sectors", {"block_sectors": 2097216}),
        ("mode", {"mode": "writeback"}),
        ("metadata2", {"metadata2": 2}),
        ("no_discard_passdown", {"no_discard_passdown": None}),
        ("policy", {"policy": "smq"}),
        ("migration_threshold", {"migration_threshold": 2**64}),
        ("tunables", {"tunables": [("random_threshold", 1)]}),
        ("tunables[0]", {"tunables": (("random_threshold", 1),)}),
        ("tunables[0]", {"policy": Policy.MQ, "tunables": (("threshold", 1),)}),
        ("tunables[0]", {"policy": Policy.MQ, "tunables": (("random_threshold", "1"),)}),
        ("tunables[0]", {"policy": Policy.MQ, "tunables": ("random_threshold",)}),
        ("tunables", {"policy": Policy.MQ, "tunables": (("random_threshold", 1),) * 2}),
    ],
)
def test_refuses_bad_values_and_names_the_field(field, values):
    with pytest.raises(SpecError) as caught:
        Cache(**{**REFS, **values})
    assert caught.value.field == field


def test_value():
    assert CACHE.refs() == (META, FAST, SLOW)
    assert CACHE.encode(str) == "7:0 7:1 7:2 64 1 writeback smq 0"
    assert CACHE.readback(NO_FEATURES) == CACHE
    value = Cache(
        **REFS, metadata2=True, no_discard_passdown=True, mode=CacheMode.WRITETHROUGH, migration_threshold=9
    )
    assert value.encode(str) == (
        "7:0 7:1 7:2 64 3 metadata2 writethrough no_discard_passdown smq 2 migration_threshold 9"
    )  # fmt: skip


STATUS = CacheStatus(
    Usage(7, 1024),
    64,
    Usage(64, 128),
    1280,
    0,
    1216,
    1,
    2,
    64,
    3,
    mode=CacheMode.WRITEBACK,
    metadata2=False,
    no_discard_passdown=False,
    migration_threshold=2048,
    policy="smq",
    tunables=(),
    read_only=False,
    needs_check=False,
)
TEXT = "8 7/1024 64 64/128 1280 0 1216 1 2 64 3"


def test_status():
    assert CACHE.parse_status(f"{TEXT} 1 writeback 2 migration_threshold 2048 smq 0 rw - ") == STATUS
    found = CACHE.parse_status(
        f"{TEXT} 3 metadata2 passthrough no_discard_passdown 2 migration_threshold 9 mq 4 a 0 b 1 ro needs_check"
    )
    assert (found.mode, found.metadata2, found.no_discard_passdown) == (CacheMode.PASSTHROUGH, True, True)
    assert (found.migration_threshold, found.policy, found.tunables) == (9, "mq", (("a", 0), ("b", 1)))
    assert (found.read_only, found.needs_check) == (True, True)
    assert CACHE.parse_status("Fail") == Failed()
    assert CACHE.parse_status("Error") == Unreadable()


@pytest.mark.parametrize(
    "text",
    [
        "",
        TEXT,
        f"{TEXT} 1 writeback 2 migration_threshold 2048 smq 0 rw",
        f"{TEXT} 1 writeback 2 migration_threshold 2048 smq 1 x rw -",
        f"{TEXT} 1 writeback 2 migration_threshold 2048 smq 0 rw - x",
        f"{TEXT} 1 writearound 2 migration_threshold 2048 smq 0 rw -",
    ],
)
def test_bad_status(text):
    with pytest.raises(ParseError):
        CACHE.parse_status(text)


@pytest.mark.parametrize(
    ("message", "text"),
    [
        (SetMigrationThreshold(0), "migration_threshold 0"),
        (SetTunable("random_threshold", 4), "random_threshold 4"),
        (InvalidateCblocks((range(3), range(5, 6))), "invalidate_cblocks 0-3 5-6"),
        (InvalidateCblocks(()), "invalidate_cblocks"),
    ],
)
def test_messages(message, text):
    assert message.encode() == text
    assert message.parse_reply("") is None


@pytest.mark.parametrize(
    ("field", "make"),
    [
        ("sectors", lambda: SetMigrationThreshold(2**64)),
        ("key", lambda: SetTunable("migration_threshold", 1)),
        ("value", lambda: SetTunable("random_threshold", -1)),
        ("ranges", lambda: InvalidateCblocks(range(3))),
        ("ranges[0]", lambda: InvalidateCblocks((3,))),
        ("ranges[1]", lambda: InvalidateCblocks((range(3), range(0)))),
        ("ranges[0]", lambda: InvalidateCblocks((range(0, 4, 2),))),
        ("ranges[0]", lambda: InvalidateCblocks((range(-1, 4),))),
        ("ranges[0]", lambda: InvalidateCblocks((range(2**32),))),
    ],
)
def test_refuses_bad_messages(field, make):
    with pytest.raises(SpecError) as caught:
        make()
    assert caught.value.field == field


# On a kernel: disk 0 holds the metadata in its first half and the cache in its second, disk 1 is the origin.

HALF = 2048
LENGTH = 4096
BLOCK = 64 * 512


@pytest.fixture
def cached(lab):
    """Return what makes a cache of disk 1, whose sectors are numbered."""
    with lab.disk(1) as origin:
        origin.write(0, _sectors(0, LENGTH))
    with (
        lab.device(targets.Linear(dev=lab.refs[0]), HALF) as metadata,
        lab.device(targets.Linear(dev=lab.refs[0], offset=HALF), HALF) as fast,
    ):

        def make(**values):
            return Cache(**{"metadata": metadata.ref, "cache": fast.ref, "origin": lab.refs[1], **values})

        make.metadata = metadata
        yield make


def _sectors(first: int, count: int) -> bytes:
    return b"".join(number.to_bytes(4, "big") * 128 for number in range(first, first + count))


def _status(device) -> CacheStatus:
    (status,) = device.status()
    return status


def _refused(number: int, request) -> None:
    with pytest.raises(OSError) as caught:
        request()
    assert caught.value.errno == number


def _heat(device, file, *, blocks: int = 2) -> None:
    """Read and write the first blocks until the policy takes some into the cache."""
    deadline = time.monotonic() + 30
    while _status(device).promotions < blocks:
        assert time.monotonic() < deadline, device.status_text()
        for _ in range(50):
            for block in range(blocks):
                file.write(block * BLOCK, file.read(block * BLOCK, 512))


def _await_clean(device) -> None:
    deadline = time.monotonic() + 30
    while _status(device).dirty:
        assert time.monotonic() < deadline, device.status_text()
        time.sleep(0.05)


@pytest.mark.dm(needs="cache_check")
@pytest.mark.parametrize("metadata2", [False, True])
def test_writeback_keeps_dirty_blocks_until_the_cleaner_comes(lab, cached, metadata2):
    value = cached(metadata2=metadata2, migration_threshold=4096)
    with lab.open(value, LENGTH) as (device, file), lab.disk(1) as origin:
        assert device.table() == Table.of(value, LENGTH)
        fresh = _status(device)
        assert fresh.blocks == Usage(0, HALF // 64)
        assert (fresh.mode, fresh.policy, fresh.metadata2) == (CacheMode.WRITEBACK, "smq", metadata2)
        assert (fresh.migration_threshold, fresh.read_only, fresh.needs_check) == (4096, False, False)
        _heat(device, file)
        file.write(0, b"new!" * 128)
        status = _status(device)
        assert status.promotions >= 2
        assert status.write_hits > 0
        device.reload(Table.of(cached(metadata2=metadata2, policy=Policy.CLEANER), LENGTH))
        _await_clean(device)
        assert _status(device).policy == "cleaner"
        assert origin.read(0, 1024) == b"new!" * 128 + _sectors(1, 1)
        assert file.read(0, LENGTH * 512)[:1024] == b"new!" * 128 + _sectors(1, 1)
    check_offline("cache_check", cached.metadata.path)


@pytest.mark.dm(needs="cache_check")
def test_writethrough_keeps_the_origin_up_to_date(lab, cached):
    with lab.open(cached(mode=CacheMode.WRITETHROUGH), LENGTH) as (device, file), lab.disk(1) as origin:
        _heat(device, file)
        file.write(0, b"new!" * 128)
        assert origin.read(0, 1024) == b"new!" * 128 + _sectors(1, 1)
        assert _status(device).dirty == 0
        assert _status(device).mode is CacheMode.WRITETHROUGH
    check_offline("cache_check", cached.metadata.path)
    with lab.open(cached(), LENGTH) as (device, file):
        assert _status(device).blocks.used >= 2, "the cache lives through a removal"
        assert _status(device).dirty == 0
        assert file.read(0, 1024) == b"new!" * 128 + _sectors(1, 1)


@pytest.mark.dm(needs="cache_check")
def test_passthrough_reads_the_origin_and_its_blocks_can_be_taken_out(lab, cached):
    with lab.open(cached(mode=CacheMode.WRITETHROUGH), LENGTH) as (device, file):
        _heat(device, file, blocks=4)
        _refused(errno.EPERM, lambda: device.send(InvalidateCblocks((range(1),))))
    with lab.open(cached(mode=CacheMode.PASSTHROUGH), LENGTH) as (device, file), lab.disk(1) as origin:
        before = _status(device)
        assert before.mode is CacheMode.PASSTHROUGH
        assert before.blocks.used >= 4
        _refused(errno.EINVAL, lambda: device.send(InvalidateCblocks((range(HALF // 64 + 1),))))
        _refused(errno.EINVAL, lambda: device.message("invalidate_cblocks x"))
        device.send(InvalidateCblocks((range(HALF // 64),)))
        assert _status(device).blocks.used == 0
        file.write(0, b"new!" * 128)
        assert origin.read(0, 1024) == b"new!" * 128 + _sectors(1, 1) == file.read(0, 1024)
    check_offline("cache_check", cached.metadata.path)


def _suspend_dirty(device) -> None:
    """Write until the device, suspended now, has blocks that the policy has not yet written back."""
    deadline = time.monotonic() + 30
    while True:
        with BlockFile(device.path) as file:
            for block in range(2):
                file.write(block * BLOCK, b"dirt" * 128)
        device.suspend()
        if _status(device).dirty:
            return
        device.resume()
        assert time.monotonic() < deadline, device.status_text()


@pytest.mark.dm(needs="cache_check")
@pytest.mark.parametrize("metadata2", [False, True])
def test_passthrough_refuses_dirty_blocks(lab, cached, metadata2):
    with lab.device(cached(metadata2=metadata2), LENGTH) as device:
        with BlockFile(device.path) as file:
            _heat(device, file)
        _suspend_dirty(device)
    check_offline("cache_check", cached.metadata.path)
    # At the resume with EBUSY; kernels from before that check refuse at the load, with EINVAL.
    with pytest.raises(IoctlError) as caught, lab.device(cached(mode=CacheMode.PASSTHROUGH), LENGTH):
        pytest.fail("dirty blocks")
    assert caught.value.errno in {errno.EBUSY, errno.EINVAL}
    with lab.device(cached(policy=Policy.CLEANER), LENGTH) as device:
        _await_clean(device)
    with lab.open(cached(mode=CacheMode.PASSTHROUGH), LENGTH) as (_, file):
        assert file.read(0, 512) == b"dirt" * 128


@pytest.mark.dm
def test_every_message_and_what_it_refuses(lab, cached):
    tunables = tuple((key, number) for number, key in enumerate(MQ_TUNABLES))
    value = cached(policy=Policy.MQ, tunables=tunables, no_discard_passdown=True)
    with lab.device(value, LENGTH) as device:
        assert device.table() == Table.of(value, LENGTH)
        status = _status(device)
        assert (status.policy, status.tunables) == ("mq", tuple((key, 0) for key, _ in status.tunables))
        assert {key for key, _ in status.tunables} == set(MQ_TUNABLES)
        assert status.no_discard_passdown is True
        device.send(SetMigrationThreshold(8))
        assert _status(device).migration_threshold == 8
        device.send(SetTunable("random_threshold", 9))
        _refused(errno.EINVAL, lambda: device.message("threshold 9"))
        _refused(errno.EINVAL, lambda: device.message("migration_threshold x"))
        _refused(errno.EINVAL, lambda: device.message("migration_threshold"))
    with lab.device(cached(policy=Policy.DEFAULT), LENGTH) as device:
        assert _status(device).policy == "smq"
        _refused(errno.EINVAL, lambda: device.send(SetTunable("random_threshold", 9)))


@pytest.mark.dm
def test_metadata_keep_their_block_size(lab, cached):
    with lab.device(cached(), LENGTH):
        pass
    with pytest.raises(TableRejected) as caught, lab.device(cached(block_sectors=128), LENGTH):
        pytest.fail("another block size")
    assert caught.value.errno == errno.EINVAL


@pytest.mark.dm
def test_a_failing_metadata_device_fails_the_cache(lab, cached):
    with lab.open(cached(), LENGTH) as (device, file):
        _heat(device, file)
        cached.metadata.reload(Table.of(targets.Error(), HALF))
        assert device.status()[0] in {Failed(), Unreadable()}, "it notices while it is asked"
        assert device.status() == [Failed()]
        _refused(errno.EOPNOTSUPP, lambda: device.send(SetMigrationThreshold(8)))
        assert device.table() == Table.of(cached(), LENGTH)
        assert file.read(100 * 512, 512) == _sectors(100, 1), "it still serves what it can"


@pytest.mark.dm
def test_one_failed_commit_makes_it_read_only_until_it_is_checked(lab, cached):
    metadata = targets.Dust(dev=cached.metadata.ref, block_size=4096)
    with lab.device(metadata, HALF) as dust, lab.open(cached(metadata=dust.ref), LENGTH) as (device, file):
        _heat(device, file)
        fail_next_writes(dust, cached.metadata.path, HALF // 8)
        deadline = time.monotonic() + 30
        while True:
            status = _status(device)
            if isinstance(status, Failed):
                pytest.skip(
                    "the kernel's own timer met a second failing commit first: the cache has failed for good"
                )
            if status.read_only:
                break
            assert time.monotonic() < deadline, status
            file.write(0, b"x" * 512)
            for block in range(2, 8):
                file.write(block * BLOCK, _sectors(0, 1))
        assert status.needs_check is True
        assert file.read(1000 * 512, 512) == _sectors(1000, 1)
        _refused(errno.EOPNOTSUPP, lambda: device.send(SetMigrationThreshold(8)))
    with pytest.raises(TableRejected) as caught, lab.device(cached(), LENGTH):
        pytest.fail("needs a check")
    assert caught.value.errno == errno.EINVAL
