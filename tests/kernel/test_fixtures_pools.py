"""dm.thin_pool, dm.cache, dm.writecache and dm.era on a real kernel."""

from __future__ import annotations

import errno
import shutil
import subprocess
import threading
import time

import pytest

from dmcore.errors import DmError, SpecError
from dmcore.targets.cache import CacheMode
from dmcore.targets.thin_pool import PoolMode

KIB, MIB = 1 << 10, 1 << 20
pytestmark = pytest.mark.dm(size="2M")


def refused(number, action, *args):
    with pytest.raises(OSError) as caught:
        action(*args)
    assert caught.value.errno == number


def test_thin_disks_and_their_snapshots_share_blocks(dm):
    pool = dm.thin_pool()
    thin = pool.thin("1G")
    assert thin.size == 1 << 30
    thin.write(0, b"t" * 128 * KIB)
    assert thin.mapped == 128 * KIB
    shot = thin.snapshot()
    assert shot.mapped == 128 * KIB
    assert pool.state.data.used == 2
    shot.write(0, b"s" * 64 * KIB)
    assert pool.state.data.used == 3
    assert (thin.read(0, 512), shot.read(0, 512)) == (b"t" * 512, b"s" * 512)
    assert shot.read(64 * KIB, 512) == b"t" * 512
    pool.delete(shot)
    assert pool.state.data.used == 2
    with pool.metadata_snapshot() as root:
        assert pool.state.held_root == root
    assert pool.state.held_root is None
    thin.grow("2G")
    assert thin.read((2 << 30) - 4096, 4096) == bytes(4096)
    with pytest.raises(SpecError, match="size"):
        thin.grow("1G")


def test_a_thin_disk_above_another_disk(dm):
    below = dm.loop("1M")
    below.write(0, b"b" * 128 * KIB)
    pool = dm.thin_pool()
    thin = pool.thin("1M", origin=below)
    thin.write(0, b"t" * 512)
    assert thin.read(0, 1024) == b"t" * 512 + b"b" * 512
    assert thin.read(64 * KIB, 512) == b"b" * 512
    assert thin.mapped == 64 * KIB
    assert below.read(0, 512) == b"b" * 512


def test_a_full_pool_fails_writes(dm):
    pool = dm.thin_pool(error_if_no_space=True)
    thin = pool.thin()
    thin.write(0, b"1" * 64 * KIB)
    filler = pool.fill()
    assert pool.free_blocks == 0
    refused(errno.ENOSPC, thin.write, MIB, b"x" * 4096)
    assert pool.out_of_space
    thin.write(0, b"2" * 64 * KIB)
    pool.delete(filler)
    thin.write(MIB, b"x" * 4096)
    assert pool.state.mode is PoolMode.WRITABLE


@pytest.mark.dm(needs="kernel")
def test_a_full_pool_lets_writes_wait_for_more(dm):
    pool = dm.thin_pool(error_if_no_space=True)
    thin = pool.thin()
    pool.set(error_if_no_space=False)
    pool.fill()
    waits = threading.Thread(target=thin.write, args=(MIB + 512 * KIB, b"y" * 4096))
    waits.start()
    waits.join(0.2)
    assert waits.is_alive()
    pool.grow("4M")
    waits.join(20)
    assert not waits.is_alive()
    assert thin.read(MIB + 512 * KIB, 4096) == b"y" * 4096
    for wrong in ("1M", "1G"):
        with pytest.raises(SpecError, match="size"):
            pool.grow(wrong)


def test_a_pool_whose_metadata_fail(dm):
    pool = dm.thin_pool()
    thin = pool.thin()
    thin.write(0, b"t" * 4096)
    with pool.metadata.fail(writes=True):
        thin.write(MIB, b"x" * 4096)
        refused(errno.EIO, thin.flush)
        assert pool.failed or pool.state.mode is PoolMode.READ_ONLY
    if pool.failed:
        with pytest.raises(DmError, match="ThinPoolStatus"):
            _ = pool.state


@pytest.mark.dm(size="4M")
def test_a_cache_takes_blocks_in_and_writes_them_back(dm):
    cache = dm.cache()
    assert cache.state.blocks.total == 32
    cache.warm(0, 64 * KIB)
    assert cache.state.blocks.used >= 2
    cache.write(0, b"d" * 4096)
    assert cache.dirty
    assert cache.origin.read(0, 4096) == bytes(4096)
    cache.write_back()
    assert cache.dirty == 0
    assert cache.origin.read(0, 4096) == b"d" * 4096
    cache.fast.fail(reads=True)
    refused(errno.EIO, cache.read, 0, 4096)
    cache.fast.heal()
    cache.set_mode("passthrough")
    assert cache.state.mode is CacheMode.PASSTHROUGH
    assert cache.state.blocks.used >= 2
    cache.invalidate()
    assert cache.state.blocks.used == 0
    assert cache.read(0, 4096) == b"d" * 4096
    cache.set_mode(CacheMode.WRITETHROUGH)
    with pytest.raises(SpecError, match="mode"):
        cache.invalidate()
    with pytest.raises(SpecError, match="length"):
        cache.warm(512)
    with pytest.raises(SpecError, match="mode"):
        cache.set_mode("writearound")


def test_a_cache_whose_metadata_fail(dm):
    cache = dm.cache()
    cache.metadata.fail()
    deadline = time.monotonic() + 20
    while not cache.failed:
        assert time.monotonic() < deadline
    with pytest.raises(DmError, match="CacheStatus"):
        _ = cache.dirty
    assert cache.read(MIB, 4096) == bytes(4096)


def test_a_writecache_takes_writes_until_they_are_written_back(dm):
    cache = dm.writecache(high_watermark=100, low_watermark=100)
    cache.write(0, b"w" * 64 * KIB)
    assert cache.cached == 16
    assert cache.origin.read(0, 4096) == bytes(4096)
    cache.write_back()
    assert cache.origin.read(0, 64 * KIB) == b"w" * 64 * KIB
    assert cache.state.writes == 16
    cache.clear_stats()
    assert cache.state.writes == 0
    cache.clean()
    cache.write(0, b"a" * 4096)
    assert cache.cached == 0
    assert cache.origin.read(0, 4096) == b"a" * 4096
    cache.use()
    cache.write(0, b"b" * 4096)
    assert cache.cached == 1
    assert not cache.failed


def test_a_writecache_whose_fast_disk_fails(dm):
    cache = dm.writecache()
    cache.write(0, b"w" * 4096)
    with cache.fast.fail():
        refused(errno.EIO, cache.write, 4096, b"w" * 4096)
        assert not cache.failed, "the write alone failed"
        with pytest.raises(OSError):
            cache.flush()
    assert cache.failed
    refused(errno.EIO, cache.write, 0, b"w" * 4096)


@pytest.mark.dm(needs="era_invalidate")
def test_an_era_knows_what_was_written_since(dm):
    disk = dm.era()
    disk.write(0, b"1" * 4096)
    second = disk.checkpoint()
    assert disk.era == second
    disk.write(16 * KIB, b"2" * 8192)
    third = disk.checkpoint()
    assert third > second
    disk.write(MIB, b"3" * 4096)
    assert disk.written_since(third) == (range(256, 257),)
    assert disk.written_since(second) == (range(4, 6), range(256, 257))
    assert disk.written_since(0)[0].start == 0
    assert disk.state.metadata_snap is None
    assert disk.lower.read(16 * KIB, 4096) == b"2" * 4096


def _checked(tool, *words):
    program = shutil.which(tool) or shutil.which(tool, path="/sbin:/usr/sbin")
    assert program
    run = subprocess.run([program, *words], capture_output=True, text=True, timeout=60, check=False)
    assert run.returncode == 0, f"{tool}: {run.stdout}{run.stderr}"


@pytest.mark.dm(
    needs=("kernel", "thin_check", "cache_check", "era_check", "veritysetup", "integritysetup", "e2fsck")
)
def test_offline_checkers_agree_with_what_removed_devices_left(dm):
    pool = dm.thin_pool()
    thin = pool.thin("64M")
    thin.write(MIB, b"t" * 256 * KIB)
    shot = thin.snapshot()
    shot.write(MIB, b"s" * 4096)
    pool.delete(shot)
    cache = dm.cache(dm.loop("8M"))
    cache.warm(0, 256 * KIB)
    cache.write(0, b"c" * 64 * KIB)
    era = dm.era()
    era.write(0, b"e" * 64 * KIB)
    era.checkpoint()
    data = dm.loop()
    data.write(0, b"v" * MIB)
    verity = dm.verity(data, salt=b"salt")
    integrity = dm.integrity(metadata=False)
    integrity.write(0, b"i" * 64 * KIB)
    clone = dm.clone()
    dm.mkfs(clone, "ext4")
    clone.hydrate()
    for device in (thin, pool, cache, era, verity, integrity, clone):
        device.close()
    _checked("thin_check", pool.metadata.path)
    _checked("cache_check", cache.metadata.path)
    _checked("era_check", era.metadata.path)
    _checked(
        "veritysetup", "verify", data.path, verity.hashes.path, verity.root.hex(), "--no-superblock", "--salt=73616c74",
        f"--data-blocks={data.size // 4096}",
    )  # fmt: skip
    _checked("integritysetup", "dump", integrity.lower.path)
    _checked("e2fsck", "-fn", clone.dest.path)
