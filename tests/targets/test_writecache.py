from __future__ import annotations

import contextlib
import errno

import pytest
from ground import Blank

from dmcore import targets
from dmcore.errors import ParseError, SpecError, TableRejected
from dmcore.ref import Ref
from dmcore.table import Line, Table
from dmcore.target import NO_FEATURES
from dmcore.targets.writecache import (
    Cleaner,
    ClearStats,
    Flush,
    FlushOnSuspend,
    Medium,
    Writecache,
    WritecacheStatus,
)

ORIGIN, CACHE = Ref("7:0"), Ref("7:1")
REFS = {"origin": ORIGIN, "cache": CACHE}
WRITECACHE = Writecache(**REFS)


class Caches(Blank):
    def fits(self, target, length):
        left = (self.refs[target.cache] - target.start_sector) * 512
        first = -(-80 // target.block_size) * target.block_size
        return left >= first + target.block_size

    def later(self, line):
        words = line.params.split()
        block = int(words[3]) if len(words) > 3 and words[3].isdecimal() else 512
        return line.length % (max(block, 512) // 512) != 0


@contextlib.contextmanager
def ground(lab):
    yield Caches(lab)


@pytest.mark.parametrize(
    ("words", "values"),
    [
        ("4096 0", {}),
        ("04096 0 and more", {}),
        ("4096 2 start_sector 0", {}),
        ("1024 1 CLEANER", {"block_size": 1024, "cleaner": True}),
        ("4096 2 start_sector 8", {"start_sector": 8}),
        ("4096 4 low_watermark 20 high_watermark 20", {"low_watermark": 20, "high_watermark": 20}),
        ("4096 4 writeback_jobs 0 writeback_jobs 4294967303", {"writeback_jobs": 7}),
        ("4096 4 autocommit_blocks 1 autocommit_time 3600000", {"autocommit_blocks": 1, "autocommit_ms": 3600000}),
        ("4096 5 metadata_only max_age 9 pause_writeback 0", {"metadata_only": True, "max_age_ms": 9, "pause_writeback_ms": 0}),
    ],
)  # fmt: skip
def test_reads_what_the_kernel_reads(words, values):
    assert Table.parse(f"0 64 writecache s 7:0 7:1 {words}") == Table.of(Writecache(**REFS, **values), 64)


def test_reads_persistent_memory():
    value = Writecache(**REFS, medium=Medium.PMEM, fua=False)
    assert Table.parse("0 64 writecache P 7:0 7:1 4096 2 fua nofua") == Table.of(value, 64)
    assert value.encode(str) == "p 7:0 7:1 4096 1 nofua"


@pytest.mark.parametrize(
    ("words", "index"),
    [
        ("", 3),
        ("x 7:0 7:1 4096 0", 3),
        ("s 7:0 7:1", 6),
        ("s 7:0 7:1 +4096 0", 6),
        ("s 7:0 7:1 4096", 7),
        ("s 7:0 7:1 4096 19", 7),
        ("s 7:0 7:1 4096 1", 8),
        ("s 7:0 7:1 4096 1 start_sector 8", 9),
        ("s 7:0 7:1 4096 2 high_watermark 101", 9),
        ("s 7:0 7:1 4096 2 autocommit_time 3600001", 9),
        ("s 7:0 7:1 4096 2 max_age x", 9),
        ("s 7:0 7:1 4096 1 clean", 8),
    ],
)
def test_refuses_what_the_kernel_refuses_and_names_the_word(words, index):
    with pytest.raises(ParseError) as caught:
        Table.parse(f"0 64 writecache {words}")
    assert caught.value.index == index


@pytest.mark.parametrize(
    ("field", "values"),
    [
        ("medium", {"medium": "s"}),
        ("origin", {"origin": "7:0"}),
        ("cache", {"cache": None}),
        ("block_size", {"block_size": 256}),
        ("block_size", {"block_size": 1536}),
        ("block_size", {"block_size": 131072}),
        ("start_sector", {"start_sector": -1}),
        ("high_watermark", {"high_watermark": 101}),
        ("high_watermark", {"high_watermark": 44}),
        ("low_watermark", {"low_watermark": 51}),
        ("low_watermark", {"low_watermark": 30, "high_watermark": 29}),
        ("writeback_jobs", {"writeback_jobs": 2**32}),
        ("autocommit_blocks", {"autocommit_blocks": "1"}),
        ("autocommit_ms", {"autocommit_ms": 3_600_001}),
        ("max_age_ms", {"max_age_ms": 86_400_001}),
        ("pause_writeback_ms", {"pause_writeback_ms": 60_001}),
        ("pause_writeback_ms", {"pause_writeback_ms": 1, "medium": Medium.PMEM}),
        ("cleaner", {"cleaner": 1}),
        ("metadata_only", {"metadata_only": None}),
        ("fua", {"fua": True}),
        ("fua", {"fua": 1, "medium": Medium.PMEM}),
    ],
)
def test_refuses_bad_values_and_names_the_field(field, values):
    with pytest.raises(SpecError) as caught:
        Writecache(**{**REFS, **values})
    assert caught.value.field == field


@pytest.mark.parametrize(("start", "length"), [(0, 12), (4, 8)])
def test_refuses_a_line_that_is_not_of_whole_blocks(start, length):
    with pytest.raises(SpecError) as caught:
        Line(start, length, WRITECACHE)
    assert caught.value.field == "block_size"


def test_value():
    assert WRITECACHE.refs() == (ORIGIN, CACHE)
    assert WRITECACHE.encode(str) == "s 7:0 7:1 4096 0"
    assert WRITECACHE.readback(NO_FEATURES) == WRITECACHE
    assert WRITECACHE.needs().features == frozenset()
    assert Writecache(**REFS, block_size=8192).needs().features == {"writecache.block_8192"}
    everything = Writecache(
        **REFS,
        start_sector=8,
        high_watermark=60,
        low_watermark=1,
        writeback_jobs=2,
        autocommit_blocks=3,
        autocommit_ms=4,
        max_age_ms=5,
        cleaner=True,
        metadata_only=True,
        pause_writeback_ms=6,
    )
    assert everything.encode(str) == (
        "s 7:0 7:1 4096 18 start_sector 8 high_watermark 60 low_watermark 1 writeback_jobs 2 autocommit_blocks 3 "
        "autocommit_time 4 max_age 5 cleaner metadata_only pause_writeback 6"
    )


def test_status():
    text = "0 254 253 1 2 3 4 5 6 7 8 9 10 11"
    status = WritecacheStatus(False, 254, 253, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11)
    assert WRITECACHE.parse_status(text) == status
    assert WRITECACHE.parse_status(f"1{text[1:]}").error is True
    assert WRITECACHE.parse_status(f"-5{text[1:]}").error is True


@pytest.mark.parametrize(
    "text", ["", "0 1 2", "x 1 2 3 4 5 6 7 8 9 10 11 12 13", "0 1 2 3 4 5 6 7 8 9 10 11 12 13 14"]
)
def test_bad_status(text):
    with pytest.raises(ParseError):
        WRITECACHE.parse_status(text)


@pytest.mark.parametrize(
    ("message", "text"),
    [
        (Flush(), "flush"),
        (FlushOnSuspend(), "flush_on_suspend"),
        (Cleaner(), "cleaner"),
        (ClearStats(), "clear_stats"),
    ],
)
def test_messages(message, text):
    assert message.encode() == text
    assert message.parse_reply("") is None


# On a kernel: disk 0 is the origin, disk 1 the cache.


def _cached(lab, **values) -> Writecache:
    return Writecache(**{"origin": lab.refs[0], "cache": lab.refs[1], **values})


def _refused(number: int, request) -> None:
    with pytest.raises(OSError) as caught:
        request()
    assert caught.value.errno == number


@pytest.mark.dm
def test_writes_stay_in_the_cache_until_they_are_flushed(lab):
    value = _cached(lab, block_size=1024, start_sector=16)
    with lab.open(value, 2048) as (device, file), lab.disk(0) as origin:
        assert device.table() == Table.of(value, 2048)
        (fresh,) = device.status()
        assert (fresh.error, fresh.free, fresh.writes) == (False, fresh.blocks, 0)
        file.write(0, b"x" * 4096)
        file.flush()
        assert file.read(0, 4096) == b"x" * 4096
        assert origin.read(0, 4096) == bytes(4096)
        (status,) = device.status()
        assert (status.blocks - status.free, status.writes, status.writes_allocate) == (4, 4, 4)
        assert (status.reads, status.read_hits) == (4, 4)
        assert status.flushes >= 1
        device.send(ClearStats())
        (status,) = device.status()
        assert (status.writes, status.reads, status.flushes) == (0, 0, 0)
        device.send(Flush())
        assert origin.read(0, 4096) == b"x" * 4096
        (status,) = device.status()
        assert status.free == status.blocks
        file.write(0, b"y" * 1024)
        file.flush()
    with lab.disk(0) as origin:
        assert origin.read(0, 1024) == b"x" * 1024, "removing it writes nothing back"
    with lab.open(value, 2048) as (_, file):
        assert file.read(0, 2048) == b"y" * 1024 + b"x" * 1024


@pytest.mark.dm
def test_flush_on_suspend_is_the_way_to_take_the_cache_away(lab):
    with lab.open(_cached(lab), 2048) as (device, file):
        file.write(8192, b"x" * 4096)
        device.send(FlushOnSuspend())
        device.reload(Table.of(targets.Linear(dev=lab.refs[0]), 2048))
        assert file.read(8192, 4096) == b"x" * 4096


@pytest.mark.dm
def test_a_cleaner_empties_the_cache_and_fills_it_no_more(lab):
    with lab.open(_cached(lab), 2048) as (device, file), lab.disk(0) as origin:
        file.write(0, b"x" * 4096)
        device.send(Cleaner())
        device.send(Flush())
        file.write(8192, b"y" * 4096)
        assert origin.read(0, 4096) == b"x" * 4096
        assert origin.read(8192, 4096) == b"y" * 4096
        (status,) = device.status()
        assert (status.free, status.writes_around) == (status.blocks, 1)
        assert device.table() == Table.of(_cached(lab), 2048), "the message does not show in the table"
    with lab.open(_cached(lab, cleaner=True), 2048) as (device, file), lab.disk(0) as origin:
        file.write(4096, b"z" * 4096)
        assert origin.read(4096, 4096) == b"z" * 4096


@pytest.mark.dm
def test_what_messages_and_loads_refuse(lab):
    with lab.device(_cached(lab), 2048) as device:
        _refused(errno.EINVAL, lambda: device.message("empty"))
        _refused(errno.EINVAL, lambda: device.message("flush now"))
        with device.suspended():
            _refused(errno.EBUSY, lambda: device.send(Flush()))
    with pytest.raises(TableRejected) as caught, lab.device(_cached(lab, block_size=512), 2048):
        pytest.fail("another block size")
    assert caught.value.errno == errno.EINVAL
    with lab.disk(1) as cache:
        cache.write(0, b"old " * 128)
    with pytest.raises(TableRejected) as caught, lab.device(_cached(lab), 2048):
        pytest.fail("not a cache, and not blank")
    assert caught.value.errno == errno.EINVAL
    with pytest.raises(SpecError, match="DAX") as guarded, lab.device(_cached(lab, medium=Medium.PMEM), 2048):
        pytest.fail("no persistent memory; 6.1 with DAX would not survive the load")
    assert guarded.value.field == "cache"


@pytest.mark.dm
def test_a_failing_cache_device_fails_the_target(lab):
    linear = targets.Linear(dev=lab.refs[1])
    with lab.device(linear, 4096) as cache, lab.open(_cached(lab, cache=cache.ref), 2048) as (device, file):
        file.write(0, b"x" * 4096)
        cache.reload(Table.of(targets.Error(), 4096))
        _refused(errno.EIO, file.flush)
        (status,) = device.status()
        assert status.error is True
        _refused(errno.EIO, lambda: file.write(8192, b"z" * 4096))
        _refused(errno.EIO, lambda: device.send(Flush()))
        cache.reload(Table.of(linear, 4096))
