"""The model of cache, and its metadata in both directions."""

from __future__ import annotations

import errno
import random
import time

import pytest
from failing import BreakingStore, damage, damage_superblock
from ground import check_offline
from hypothesis import given, settings
from hypothesis import strategies as st
from persistent_audit import array_blocks, audit
from twins import twins

from dmcore.errors import FormatError, SpecError
from dmcore.formats.cache import SUPERBLOCK, CacheFlag, SuperBlock
from dmcore.formats.persistent_data import BLOCK, Reader
from dmcore.model.stores import MemoryStore
from dmcore.model.targets._cache import CacheMetadata
from dmcore.targets.cache import CacheStatus, Failed
from dmcore.volume import open_volume

SECTORS = 64
BYTES = SECTORS * 512
LENGTH = 32 * SECTORS + 8


def _disks(mappings=(), *, version=1, flags=CacheFlag.CLEAN_SHUTDOWN):
    """Make disks with blocks of the origin, by place on the cache device; `c` fills the cache, `o` the origin."""
    disks = {
        "meta": BreakingStore(64 * BLOCK, word="meta"),
        "fast": MemoryStore(8 * BYTES, word="fast"),
        "slow": MemoryStore(LENGTH * 512, word="slow"),
    }
    disks["fast"].write(0, memoryview(b"c" * 8 * BYTES))
    disks["slow"].write(0, memoryview(b"o" * LENGTH * 512))
    _open(disks, "1 metadata2" if version == 2 else "0").close()
    metadata = CacheMetadata(disks["meta"], SECTORS, version)
    metadata.place(dict(mappings))
    metadata.commit(
        clean=bool(flags & CacheFlag.CLEAN_SHUTDOWN), needs_check=bool(flags & CacheFlag.NEEDS_CHECK)
    )
    return disks


def _open(disks, features="0", policy="smq 0", block=SECTORS, length=LENGTH):
    return open_volume(f"0 {length} cache meta fast slow {block} {features} {policy}", disks)


def _status(volume) -> CacheStatus:
    (status,) = volume.status()
    assert isinstance(status, CacheStatus)
    return status


def _audit(disk):
    found = SuperBlock.read(Reader(disk))
    assert found is not None
    roots = [root for root in (found.mappings, found.hints, found.discards, found.dirty) if root]
    audit(disk, found.space_map, [(root, 8, array_blocks) for root in roots])


def _refused(error, request):
    with pytest.raises(OSError) as caught:
        request()
    assert caught.value.errno == error


def test_a_new_cache_serves_the_origin():
    for version in (1, 2):
        disks = _disks(version=version)
        with _open(disks, "2 metadata2 writeback" if version == 2 else "0") as volume:
            volume.write(0, b"x" * 512)
            assert volume.read(0, 1024) == b"x" * 512 + b"o" * 512
            status = _status(volume)
            assert (status.blocks.used, status.blocks.total, status.dirty) == (0, 8, 0)
            assert (status.read_misses, status.write_misses, status.metadata2) == (1, 1, version == 2)
        _audit(disks["meta"])
        with _open(disks) as volume:
            assert _status(volume).read_misses == 1, "counts live on"


@pytest.mark.parametrize("version", [1, 2])
def test_writeback_keeps_what_is_written_until_it_settles(version):
    disks = _disks({3: 5, 0: 31}, version=version)
    with _open(disks) as volume:
        assert volume.read(4 * BYTES, 3 * BYTES) == b"o" * BYTES + b"c" * BYTES + b"o" * BYTES
        volume.write(5 * BYTES, b"w" * 512)
        assert disks["slow"].read(5 * SECTORS, 1) == b"o" * 512
        assert _status(volume).dirty == 1
    _audit(disks["meta"])
    with _open(disks, policy="cleaner 0") as volume:
        status = _status(volume)
        assert (status.dirty, status.blocks.used, status.write_hits, status.read_hits) == (1, 2, 1, 1)
        volume.settle()
        assert _status(volume).dirty == 0
        assert disks["slow"].read(5 * SECTORS, 2) == b"w" * 512 + b"c" * 512
    with _open(disks, policy="smq 2 migration_threshold 0") as volume:
        volume.write(31 * BYTES, b"w" * 512)
        volume.settle()
        assert _status(volume).dirty == 1, "nothing may move"


def test_an_unclean_end_makes_every_block_dirty():
    disks = _disks({3: 5, 0: 31})
    _open(disks)
    with _open(disks) as volume:
        assert _status(volume).dirty == 2
    with _open(disks) as volume:
        assert _status(volume).dirty == 2


def test_writethrough_writes_both():
    disks = _disks({3: 5})
    with _open(disks, "1 writethrough") as volume:
        volume.write(5 * BYTES, b"w" * 512)
        assert _status(volume).dirty == 0
    assert disks["slow"].read(5 * SECTORS, 1) == disks["fast"].read(3 * SECTORS, 1) == b"w" * 512


def test_passthrough_reads_the_origin_and_writes_take_blocks_out():
    disks = _disks({3: 5, 4: 6})
    with _open(disks, "1 passthrough") as volume:
        assert volume.read(5 * BYTES, 512) == b"o" * 512
        volume.write(5 * BYTES, b"w" * 512)
        assert (_status(volume).blocks.used, _status(volume).demotions) == (1, 1)
        for text in ("8", "4-4", "5-4", "x", "4-9", "-1"):
            _refused(errno.EINVAL, lambda text=text: volume.message(f"invalidate_cblocks {text}"))
        volume.message("invalidate_cblocks 0-3 4")
        assert (_status(volume).blocks.used, _status(volume).demotions) == (0, 1)
    _audit(disks["meta"])
    with _open(disks) as volume:
        _refused(errno.EPERM, lambda: volume.message("invalidate_cblocks 1"))
        assert volume.read(5 * BYTES, BYTES) == b"w" * 512 + b"o" * (BYTES - 512)


def test_passthrough_refuses_dirty_blocks_and_an_unclean_end():
    disks = _disks({3: 5})
    with _open(disks) as volume:
        volume.write(5 * BYTES, b"w" * 512)
    _refused(errno.EBUSY, lambda: _open(disks, "1 passthrough"))
    _refused(errno.EINVAL, lambda: _open(_disks(flags=CacheFlag(0)), "1 passthrough"))


def test_discards_are_remembered_and_passed_down():
    disks = _disks({3: 5})
    with _open(disks) as volume:
        volume.discard(4 * BYTES + 512, 3 * BYTES)
        assert volume.read(5 * BYTES, BYTES) == b"c" * BYTES, "what is cached stays"
        assert disks["slow"].read(6 * SECTORS, SECTORS) == bytes(BYTES)
    found = CacheMetadata(disks["meta"], SECTORS, 1)
    assert (list(found.discards), found.now.discard_blocks) == ([5, 6], 33)
    with _open(disks, "1 no_discard_passdown") as volume:
        volume.write(6 * BYTES, b"w" * 512)
        volume.discard(0, 2 * BYTES)
        assert volume.read(0, 512) == b"o" * 512
    assert list(CacheMetadata(disks["meta"], SECTORS, 1).discards) == [0, 1, 5]


def test_messages():
    with _open(_disks(), policy="mq 2 random_threshold 7") as volume:
        volume.message("migration_threshold 0")
        volume.message("random_threshold 5")
        status = _status(volume)
        assert (status.migration_threshold, status.policy, len(status.tunables)) == (0, "mq", 5)
        for text in ("", "threshold 5", "migration_threshold", "migration_threshold x", "random_threshold x"):
            _refused(errno.EINVAL, lambda text=text: volume.message(text))


def test_a_failed_commit_makes_it_read_only_until_it_is_checked():
    disks = _disks({3: 5})
    volume = _open(disks)
    disks["meta"].broken = "write"
    assert volume.status() == [Failed()], "not even the flag can be written"
    assert volume.read(5 * BYTES, 512) == b"c" * 512
    disks["meta"].broken = ""
    with pytest.raises(FormatError, match="cache_repair"):
        _open(_disks(flags=CacheFlag.CLEAN_SHUTDOWN | CacheFlag.NEEDS_CHECK))


def test_other_sizes():
    disks = _disks({3: 5, 7: 31})
    with pytest.raises(FormatError, match="blocks of 64"):
        _open(disks, block=128)
    with _open(disks, length=20 * SECTORS) as volume:
        assert _status(volume).blocks.used == 1, "behind the new end"
    disks["fast"] = MemoryStore(4 * BYTES, word="fast")
    with _open(disks) as volume:
        assert (_status(volume).blocks.total, volume.read(5 * BYTES, 512)) == (4, bytes(512))
    _audit(disks["meta"])
    with pytest.raises(SpecError, match="larger than the cache device"):
        _open(disks, block=512)


@pytest.mark.parametrize(
    ("at", "data", "words"),
    [
        (32, b"\0", "magic"),
        (40, b"\3", "version 3"),
        (64, b"\0", "for 0 blocks"),
        (192, b"\xff", "block 255"),
        (240, b"\xff", "array of mappings"),
        (252, b"\x01", "unknown features"),
    ],
)
def test_refuses_damaged_metadata_and_says_what_is_wrong(at, data, words):
    disks = _disks()
    damage_superblock(disks["meta"], SUPERBLOCK, at, data)
    with pytest.raises(FormatError, match=words):
        _open(disks)


def test_refuses_two_blocks_for_one():
    with pytest.raises(FormatError, match="both for block 5"):
        _open(_disks({3: 5, 4: 5}))


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 12), st.integers(0, 300) | st.integers(0, BLOCK - 8), st.binary(min_size=1, max_size=8))
def test_any_damage_ends_in_an_error_or_a_working_volume(number, at, data):
    disks = _disks({3: 5}, version=2)
    damage(disks["meta"], number * BLOCK + at, data)
    try:
        volume = _open(disks)
    except (FormatError, OSError):
        return
    volume.settle()
    assert len(volume.read(0, volume.size)) == volume.size


# On a kernel.

PIECES = {"meta": (0, 0, 1024), "fast": (0, 1024, 1024), "slow": (1, 0, 2048)}
TABLE = "0 2048 cache {{meta}} {{fast}} {{slow}} 64 {features} {policy}"


def _table(features="1 writeback", policy="smq 2 migration_threshold 2048"):
    return TABLE.format(features=features, policy=policy)


def _facts(status):
    counts = status.read_hits, status.read_misses, status.write_hits, status.write_misses
    return status.blocks, status.dirty, status.metadata, counts


def _heat(device, file, expected, rng) -> None:
    """Read and write some blocks until the policy has some of them in the cache, and some are dirty."""
    end = time.monotonic() + 30
    while (status := device.status()[0]).promotions < 4 or not status.dirty:
        assert time.monotonic() < end, device.status_text()
        for _ in range(60):
            at = rng.choice([0, 1, 2, 3, 9]) * BYTES
            data = rng.randbytes(512)
            file.write(at, data)
            expected[at : at + 512] = data
            file.read(at, 512)


@pytest.mark.dm
@pytest.mark.parametrize("features", ["1 writeback", "2 metadata2 writeback", "1 writethrough"])
def test_metadata_go_both_ways_and_cache_check_agrees(lab, features):
    rng = random.Random(4)
    with twins(lab, **PIECES) as both:
        expected = bytearray(rng.randbytes(2048 * 512))
        both.fill("slow", bytes(expected))
        with both.kernel(_table("2 metadata2 writeback" if "2" in features[2:] else "1 writeback")) as (
            device,
            file,
        ):
            _heat(device, file, expected, rng)
            device.suspend()  # until it goes: a device that runs may write back
            before = device.status()[0]
        both.pull()
        _audit(both.stores["meta"])
        with both.model(_table(features)) as volume:
            assert _facts(_status(volume))[:2] == (before.blocks, before.dirty)
            assert _status(volume).metadata == before.metadata
            assert volume.read(0, volume.size) == expected
            for _ in range(20):
                at, data = rng.randrange(4096) * 512 % (2048 * 512), rng.randbytes(512)
                volume.write(at, data)
                expected[at : at + 512] = data
            volume.write(0, b"0" * 1024)
            expected[:1024] = b"0" * 1024
            after = _status(volume)
        both.push()
        check_offline("cache_check", both.devices["meta"].path)
        with both.kernel(_table(features, policy="smq 2 migration_threshold 0")) as (device, file):
            device.suspend()
            found = device.status()[0]
            device.resume()
            assert _facts(found) == _facts(after)
            assert file.read(0, 2048 * 512) == expected
        both.pull()
        with both.model(_table()) as volume:
            volume.settle()
        assert both.stores["slow"].read(0, 2048) == expected


@pytest.mark.dm
def test_what_takes_a_block_out_of_a_passthrough_cache_counts_on_both_sides(lab):
    with twins(lab, **PIECES) as both:
        both.model(_table()).close()
        metadata = CacheMetadata(both.stores["meta"], SECTORS, 1)
        metadata.place({3: 5, 4: 6, 1: 0})
        metadata.commit(clean=True)
        both.push()
        text = _table("1 passthrough")
        with both.kernel(text) as (device, file), both.model(text) as volume:
            for side in (file, volume):
                side.write(5 * BYTES + 4096, bytes(BYTES))
                side.write(0, bytes(512))
            for side in (device, volume):
                side.message("invalidate_cblocks 0-8")
            found = device.status()[0]
            assert _facts(found) == _facts(_status(volume))
            assert found.demotions == _status(volume).demotions == 3


@pytest.mark.dm
def test_an_unclean_image_of_the_model_is_all_dirty_to_the_kernel(lab):
    with twins(lab, **PIECES) as both:
        expected = bytearray(2048 * 512)
        with both.kernel(_table()) as (device, file):
            _heat(device, file, expected, random.Random(1))
        both.pull()
        volume = both.model(_table())
        volume.write(0, b"x" * 512)
        expected[:512] = b"x" * 512
        both.push()
        with both.kernel(_table(policy="smq 2 migration_threshold 0")) as (device, file):
            status = device.status()[0]
            assert status.dirty == status.blocks.used >= 4
            assert file.read(0, 2048 * 512) == expected
