"""The model of writecache, and its images in both directions."""

from __future__ import annotations

import errno
import random
import struct
import time
from dataclasses import replace

import pytest
from failing import BreakingStore, damage
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from twins import outcome

from dmcore.errors import FormatError, SpecError
from dmcore.formats import writecache as layout
from dmcore.kernel.block import BlockFile
from dmcore.model.block import META, SYNC
from dmcore.model.stores import MemoryStore
from dmcore.table import Table
from dmcore.targets.writecache import WritecacheStatus
from dmcore.volume import open_volume

BLOCK = 4096


def _disks(cache_blocks=8, sectors=256):
    return {"origin": MemoryStore(sectors * 512), "cache": MemoryStore((cache_blocks + 1) * BLOCK)}


def _open(disks, options="0", length=256, **more):
    return open_volume(f"0 {length} writecache s origin cache {BLOCK} {options}", disks, **more)


def _status(volume) -> WritecacheStatus:
    (status,) = volume.status()
    assert isinstance(status, WritecacheStatus)
    return status


def _fill(byte, blocks=1):
    return bytes([byte]) * (BLOCK * blocks)


def test_geometry_is_the_largest_that_fits():
    for size in range(0, 40 * BLOCK, 512):
        blocks = layout.most_blocks(size, BLOCK)
        assert layout.entries_bytes(blocks, BLOCK) + blocks * BLOCK <= size or blocks == 0
        assert layout.entries_bytes(blocks + 1, BLOCK) + (blocks + 1) * BLOCK > size
    assert layout.most_blocks(1 << 20, BLOCK) == 254


def test_what_is_written_lies_in_the_cache_until_it_is_flushed():
    disks = _disks()
    with _open(disks) as volume:
        assert volume.block_size == BLOCK
        volume.write(0, _fill(1, 2))
        volume.write(8 * BLOCK, _fill(2))
        assert volume.read(0, 3 * BLOCK) == _fill(1, 2) + _fill(0)
        assert disks["origin"].read(0, 256) == bytes(256 * 512)
        status = _status(volume)
        assert (status.blocks, status.free, status.writes, status.writes_allocate) == (8, 5, 3, 3)
        assert (status.reads, status.read_hits) == (3, 2)
        volume.message("flush")
        assert disks["origin"].read(0, 16) == _fill(1, 2)
        assert _status(volume).free == 8
    with _open(disks) as volume:
        assert _status(volume).free == 8


def test_what_was_not_committed_is_gone_after_a_power_cut():
    disks = _disks()
    volume = _open(disks)
    volume.write(0, _fill(1))
    volume.flush()
    volume.write(BLOCK, _fill(2))
    volume.write(0, _fill(3))
    with _open(disks) as after:
        assert after.read(0, BLOCK) == _fill(3), "a committed block is written over in place"
        assert after.read(BLOCK, BLOCK) == bytes(BLOCK)
        assert _status(after).free == 7


def test_a_full_cache_is_written_around_and_its_watermarks_keep_it_from_being_full():
    disks = _disks()
    with _open(disks, "4 high_watermark 75 low_watermark 50") as volume:
        volume.write(0, _fill(1, 5))
        volume.settle()
        assert _status(volume).free == 3, "the high watermark is not reached"
        volume.write(10 * BLOCK, _fill(2, 4))
        status = _status(volume)
        assert (status.free, status.writes_around, status.writes_allocate) == (0, 1, 8)
        volume.settle()
        assert disks["origin"].read(0, 5 * 8) == _fill(1, 5), "the oldest go first, in one run"
        status = _status(volume)
        assert (status.free, status.writeback) == (5, 0)


def test_options_that_keep_writes_out():
    with _open(_disks(), "1 metadata_only") as volume:
        volume.write(0, _fill(1))
        volume.device.write(8, memoryview(_fill(2)), SYNC | META)
        status = _status(volume)
        assert (status.writes_around, status.writes_allocate) == (1, 1)
    with _open(_disks(), "1 cleaner") as volume:
        volume.write(0, _fill(1))
        assert _status(volume).writes_around == 1


def test_old_blocks_are_written_back_where_there_is_an_age():
    disks = _disks()
    with _open(disks, "2 max_age 1000") as volume:
        volume.write(0, _fill(1))
        volume.settle()
        assert _status(volume).free == 8
        assert disks["origin"].read(0, 8) == _fill(1)


def test_flush_on_suspend_writes_back_once():
    disks = _disks()
    with _open(disks) as volume:
        volume.write(0, _fill(1))
        volume.message("FLUSH_on_suspend")
        volume.device.suspend()
        with pytest.raises(OSError) as caught:
            volume.message("flush")
        assert caught.value.errno == errno.EBUSY
        volume.device.resume()
        assert disks["origin"].read(0, 8) == _fill(1)
        volume.write(0, _fill(2))
        volume.device.suspend()
        volume.device.resume()
        assert disks["origin"].read(0, 8) == _fill(1)
        volume.message("cleaner")
        volume.settle()
        assert disks["origin"].read(0, 8) == _fill(2)


def test_discards_forget_blocks_and_go_on_to_the_origin():
    disks = _disks()
    with _open(disks) as volume:
        volume.write(0, _fill(1, 4))
        volume.message("flush")
        volume.write(0, _fill(2, 4))
        volume.discard(BLOCK, 2 * BLOCK)
        assert volume.read(0, 4 * BLOCK) == _fill(2) + bytes(2 * BLOCK) + _fill(2)
        assert (_status(volume).free, _status(volume).discards) == (6, 2)
        assert disks["origin"].read(0, 32) == _fill(1) + bytes(2 * BLOCK) + _fill(1)


def test_metadata_that_cannot_be_written_fail_the_target_for_good():
    disks = _disks()
    disks["cache"] = BreakingStore(9 * BLOCK)
    volume = _open(disks)
    volume.write(0, _fill(1))
    disks["cache"].broken = "write"
    for request in (
        volume.flush,
        volume.flush,
        lambda: volume.write(0, _fill(2)),
        lambda: volume.message("flush"),
        lambda: volume.discard(0, BLOCK),
    ):
        with pytest.raises(OSError) as caught:
            request()
        assert caught.value.errno == errno.EIO
    assert volume.read(0, BLOCK) == _fill(1)
    assert _status(volume).error is True


def test_an_origin_that_fails_keeps_its_blocks_in_the_cache():
    disks = _disks()
    disks["origin"] = BreakingStore(256 * 512)
    volume = _open(disks)
    volume.write(0, _fill(1))
    disks["origin"].broken = "write"
    with pytest.raises(OSError):
        volume.message("flush")
    assert (_status(volume).error, _status(volume).free) == (True, 7)
    disks["origin"].broken = ""
    with _open(disks) as after:
        assert after.read(0, BLOCK) == _fill(1)
        after.message("flush")
    assert disks["origin"].read(0, 8) == _fill(1)


@pytest.mark.parametrize(
    ("options", "error"),
    [("2 start_sector 80", SpecError), ("2 start_sector 64", OSError)],
)
def test_refuses_a_cache_device_without_room(options, error):
    with pytest.raises(error):
        _open(_disks(), options)


@pytest.mark.parametrize(
    ("offset", "data", "words"),
    [
        (0, b"\1\0\0\0", "magic"),
        (4, b"\2", "version 2"),
        (8, b"\0\2", "blocks of 512"),
        (8, b"\1\2", "no power of two"),
        (16, b"\x09", "do not fit"),
        (16, b"\xff" * 8, "do not fit"),
        (64, struct.pack("<QQ", 3, 0), "entry 0 is for sector 3"),
    ],
)
def test_refuses_damaged_metadata_and_says_what_is_wrong(offset, data, words):
    disks = _disks()
    with _open(disks) as volume:
        volume.write(0, _fill(1))
    damage(disks["cache"], offset, data)
    with pytest.raises(FormatError, match=words):
        _open(disks)


def test_two_identical_entries_are_an_error_as_in_the_kernel():
    disks = _disks()
    with _open(disks) as volume:
        volume.write(0, _fill(1, 2))
    head = disks["cache"].read(0, 8)
    head[80:96] = head[64:80]
    disks["cache"].write(0, memoryview(head))
    volume = _open(disks)
    assert _status(volume).error is True
    with pytest.raises(OSError):
        volume.write(0, _fill(2))


@settings(max_examples=60, deadline=None)
@given(st.binary(min_size=0, max_size=192), st.integers(0, 192))
def test_any_bytes_of_metadata_end_in_an_error_or_a_working_volume(data, at):
    disks = _disks()
    with _open(disks) as volume:
        volume.write(0, _fill(1, 3))
    head = disks["cache"].read(0, 8)
    head[at : at + len(data)] = data
    disks["cache"].write(0, memoryview(head[:BLOCK]))
    try:
        volume = _open(disks)
    except FormatError:
        return
    assert len(volume.read(0, volume.size)) == volume.size
    volume.settle()


def _script(rng, volume, steps=60, blocks=32):
    """Do the same to a model and to a kernel's device; return what a plain disk would hold."""
    expected = bytearray(blocks * BLOCK)
    for step in range(steps):
        at, count = rng.randrange(blocks), rng.randrange(1, 5)
        count = min(count, blocks - at)
        data = _fill(step + 1, count)
        volume.write(at * BLOCK, data)
        expected[at * BLOCK : (at + count) * BLOCK] = data
        if step % 7 == 6:
            volume.flush()
    return expected


def test_reads_give_what_was_written_last():
    for seed in range(20):
        rng = random.Random(seed)
        disks = _disks(cache_blocks=rng.randrange(2, 40))
        with _open(disks, "3 metadata_only start_sector 0" if seed % 5 == 4 else "0") as volume:
            expected = _script(rng, volume)
            if seed % 2:
                volume.settle()
            assert volume.read(0, 32 * BLOCK) == expected
        with _open(disks) as volume:
            assert volume.read(0, 32 * BLOCK) == expected
            volume.message("flush")
            assert disks["origin"].read(0, 256) == expected


# On a kernel: disk 0 is the origin, disk 1 the cache, which begins so late that it has few blocks. It must not run full
# with blocks that are not committed: see "writecache" in docs/explanation/kernel-findings.md.

BLOCKS = 24
CACHE_BLOCKS = 80
QUIET = "high_watermark 100 low_watermark 100 autocommit_time 3600000 pause_writeback 60000"
_BLOCK = BLOCK // 512
_PLACES = st.integers(0, BLOCKS - 1).map(lambda block: block * _BLOCK)
_FEW = st.integers(1, 4).map(lambda blocks: blocks * _BLOCK)
_STEPS = st.one_of(
    st.tuples(st.just("write"), _PLACES, _FEW, st.integers(1, 255)),
    st.tuples(st.just("read"), _PLACES, st.just(BLOCKS * _BLOCK), st.just(0)),
    st.tuples(st.just("discard"), _PLACES, _FEW, st.just(0)),
    st.tuples(st.sampled_from(["flush", "message flush", "message clear_stats", "again"]), *[st.just(0)] * 3),
)


def eventually(what, seconds=5.0):
    """Wait for a condition; return whether it came true."""
    end = time.monotonic() + seconds
    while not (held := what()) and time.monotonic() < end:
        time.sleep(0.02)
    return held


def _counts(disk):
    """Return the status, without a number that kernels count in two ways: see docs/explanation/kernel-findings.md."""
    return [replace(status, writes_allocate=0) for status in disk.status()]


class _Lab:
    """A kernel's writecache and a model's over the same bytes."""

    def __init__(self, lab, cache_blocks=CACHE_BLOCKS):
        self.lab = lab
        self.start = 4096 - (cache_blocks + 1) * 8
        self.stores = [MemoryStore(4096 * 512, word=ref.name) for ref in lab.refs]

    def text(self, options=QUIET):
        origin, cache = (ref.name for ref in self.lab.refs)
        words = f"start_sector {self.start} {options}"
        return f"0 {BLOCKS * 8} writecache s {origin} {cache} {BLOCK} {len(words.split())} {words}"

    def volume(self, **more):
        return open_volume(
            self.text(**more),
            {ref.name: store for ref, store in zip(self.lab.refs, self.stores, strict=True)},
        )

    def disk(self, number):
        with self.lab.disk(number) as file:
            return bytearray(file.read(0, file.size))

    def same(self):
        """Compare the disks; what pads the entries to a whole block is whatever the kernel's memory held."""
        kernels, models = ([self.disk(at) for at in (0, 1)], [store.read(0, 4096) for store in self.stores])
        blocks = layout.most_blocks((4096 - self.start) * 512, BLOCK)
        first = self.start * 512 + layout.SUPER_BYTES + blocks * layout.ENTRY.size
        end = self.start * 512 + layout.entries_bytes(blocks, BLOCK)
        for disks in (kernels, models):
            disks[1][first:end] = bytes(end - first)
        assert kernels[0] == models[0], "origin"
        assert kernels[1] == models[1], "cache"


@pytest.mark.dm
def test_model_and_kernel_write_the_same_bytes(lab):
    @settings(max_examples=8, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(st.lists(_STEPS, min_size=4, max_size=20))
    def check(script):
        lab.wipe()
        pair = _Lab(lab)
        with (
            lab.device(Table.parse(pair.text())) as device,
            BlockFile(device.path) as disk,
            pair.volume() as volume,
        ):
            for step in script:
                assert outcome(volume.device, volume, step) == outcome(device, disk, step), step
            assert _counts(volume) == _counts(device)
            assert volume.table_text() == device.table_text()
        pair.same()

    check()


@pytest.mark.dm
def test_both_lose_a_write_over_a_block_that_is_in_the_cache_twice(lab):
    script = [(1, 2), (0, 3), (9, 1), (11, 1), (13, 1), (1, 1), (1, 2)]
    pair = _Lab(lab, cache_blocks=8)
    with (
        lab.device(Table.parse(pair.text())) as device,
        BlockFile(device.path) as disk,
        pair.volume() as volume,
    ):
        for byte, (at, count) in enumerate(script, 1):
            for each in (disk, volume):
                each.write(at * BLOCK, _fill(byte, count))
                if byte == 2:
                    each.discard(BLOCK, BLOCK)
        assert _counts(volume) == _counts(device)
        (first, second) = (volume.read(at * BLOCK, BLOCK) for at in (1, 2))
        assert [disk.read(at * BLOCK, BLOCK) for at in (1, 2)] == [first, second]
    assert first == _fill(7)
    assert second == _fill(2), "the write went to the older of two entries"


@pytest.mark.dm
def test_both_write_the_same_blocks_back_at_the_watermark(lab):
    pair = _Lab(lab, cache_blocks=8)
    options = "high_watermark 75 low_watermark 25 autocommit_time 3600000 pause_writeback 0"
    origin, cache = (ref.name for ref in lab.refs)
    text = pair.text(options)
    with (
        lab.device(Table.parse(text)) as device,
        BlockFile(device.path) as disk,
        open_volume(text, dict(zip((origin, cache), pair.stores, strict=True))) as volume,
    ):
        for at in (3, 1, 9, 10, 11, 20):
            for each in (disk, volume):
                each.write(at * BLOCK, _fill(at))
                each.flush()
        volume.settle()
        assert eventually(lambda: _counts(device) == _counts(volume))
        assert volume.status()[0].free > 2
    pair.same()


@pytest.mark.dm
def test_images_go_both_ways(lab):
    pair = _Lab(lab, cache_blocks=30)
    with lab.device(Table.parse(pair.text())) as device, BlockFile(device.path) as disk:
        expected = _script(random.Random(5), disk, blocks=BLOCKS)
    for number, store in enumerate(pair.stores):
        store.write(0, memoryview(pair.disk(number)))
    with pair.volume() as volume:
        assert volume.read(0, BLOCKS * BLOCK) == expected
        expected = _script(random.Random(6), volume, blocks=BLOCKS)
    for number, store in enumerate(pair.stores):
        with lab.disk(number) as file:
            file.write(0, bytes(store.read(0, 4096)))
    with lab.device(Table.parse(pair.text())) as device, BlockFile(device.path) as disk:
        assert device.status()[0].error is False
        assert disk.read(0, BLOCKS * BLOCK) == expected
