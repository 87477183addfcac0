from __future__ import annotations

import errno

import pytest

from dmcore import targets
from dmcore.errors import IoctlError, ParseError, SpecError
from dmcore.ref import Ref
from dmcore.table import Line, Table
from dmcore.target import NO_FEATURES
from dmcore.targets.dust import (
    AddBadBlock,
    ClearBadBlocks,
    CountBadBlocks,
    Disable,
    DustStatus,
    Enable,
    ListBadBlocks,
    QueryBlock,
    Quiet,
    RemoveBadBlock,
)

DEV = Ref("7:0")
DUST = targets.Dust(dev=DEV, offset=8, block_size=1024)


@pytest.mark.parametrize("words", ["7:0 8 1024", "7:0 8 +1024 ", "7:0 008 01024"])
def test_reads_what_the_kernel_reads(words):
    assert Table.parse(f"0 8 dust {words}") == Table.of(DUST, 8)


@pytest.mark.parametrize(
    ("words", "index"),
    [("7:0 8", 5), ("7:0 8 512 x", 6), ("7:0 x 512", 4), ("7:0 +8 512", 4), ("7:0 8 4294967296", 5)],
)
def test_refuses_what_the_kernel_refuses_and_names_the_word(words, index):
    with pytest.raises(ParseError) as caught:
        Table.parse(f"0 8 dust {words}")
    assert caught.value.index == index


@pytest.mark.parametrize(
    ("field", "values"),
    [
        ("dev", {"dev": "7:0"}),
        ("offset", {"offset": -1}),
        ("block_size", {"block_size": 0}),
        ("block_size", {"block_size": 256}),
        ("block_size", {"block_size": 1536}),
        ("block_size", {"block_size": 2**31}),
    ],
)
def test_refuses_bad_values_and_names_the_field(field, values):
    with pytest.raises(SpecError) as caught:
        targets.Dust(**{"dev": DEV, **values})
    assert caught.value.field == field


def test_refuses_a_block_larger_than_the_line():
    with pytest.raises(SpecError) as caught:
        Line(0, 1, DUST)
    assert caught.value.field == "block_size"
    assert Line(0, 2, DUST).end == 2


def test_value():
    assert DUST.refs() == (DEV,)
    assert DUST.encode(str) == "7:0 8 1024"
    assert DUST.readback(NO_FEATURES) == DUST


@pytest.mark.parametrize(
    ("text", "enabled", "quiet"),
    [("7:0 bypass verbose", False, False), ("7:0 fail_read_on_bad_block quiet", True, True)],
)
def test_status(text, enabled, quiet):
    assert DUST.parse_status(text) == DustStatus(DEV, enabled=enabled, quiet=quiet)


@pytest.mark.parametrize("text", ["", "7:0 bypass", "7:0 on verbose", "7:0 bypass verbose x"])
def test_bad_status(text):
    with pytest.raises(ParseError):
        DUST.parse_status(text)


@pytest.mark.parametrize(
    ("message", "text"),
    [
        (AddBadBlock(60), "addbadblock 60"),
        (AddBadBlock(60, 3), "addbadblock 60 3"),
        (RemoveBadBlock(1), "removebadblock 1"),
        (QueryBlock(1), "queryblock 1"),
        (CountBadBlocks(), "countbadblocks"),
        (ListBadBlocks(), "listbadblocks"),
        (ClearBadBlocks(), "clearbadblocks"),
        (Enable(), "enable"),
        (Disable(), "disable"),
        (Quiet(), "quiet"),
    ],
)
def test_messages(message, text):
    assert message.encode() == text


@pytest.mark.parametrize(
    ("message", "reply", "value"),
    [
        (QueryBlock(7), "dust_query_block: block 7 found in badblocklist", True),
        (QueryBlock(7), "dust_query_block: block 7 not found in badblocklist", False),
        (CountBadBlocks(), "countbadblocks: 3 badblock(s) found", 3),
        (ListBadBlocks(), "1\n2\n30\n", (1, 2, 30)),
        (ListBadBlocks(), "No blocks in badblocklist", ()),
        (ClearBadBlocks(), "dust_clear_badblocks: badblocks cleared", True),
        (ClearBadBlocks(), "dust_clear_badblocks: no badblocks found", False),
        (Enable(), "", None),
    ],
)
def test_replies(message, reply, value):
    assert message.parse_reply(reply) == value


@pytest.mark.parametrize(
    ("message", "reply"),
    [
        (QueryBlock(7), ""),
        (QueryBlock(7), "dust_query_block: block 8 found in badblocklist"),
        (CountBadBlocks(), "countbadblocks: many badblock(s) found"),
        (ListBadBlocks(), ""),
        (ListBadBlocks(), "1\nx"),
        (ClearBadBlocks(), ""),
        (AddBadBlock(1), "done"),
    ],
)
def test_other_replies_are_errors(message, reply):
    with pytest.raises(ParseError):
        message.parse_reply(reply)


@pytest.mark.parametrize(
    ("field", "make"),
    [
        ("block", lambda: AddBadBlock(-1)),
        ("block", lambda: QueryBlock(2**64)),
        ("block", lambda: RemoveBadBlock("1")),
        ("write_failures", lambda: AddBadBlock(1, 256)),
    ],
)
def test_refuses_bad_messages(field, make):
    with pytest.raises(SpecError) as caught:
        make()
    assert caught.value.field == field


def _fails(request) -> None:
    with pytest.raises(OSError) as caught:
        request()
    assert caught.value.errno == errno.EIO


@pytest.mark.dm
def test_every_message(lab):
    with lab.device(targets.Dust(dev=lab.refs[0], block_size=512), 64) as device:
        assert device.status() == [DustStatus(lab.refs[0], enabled=False, quiet=False)]
        assert device.send(ListBadBlocks()) == ()
        assert device.send(ClearBadBlocks()) is False
        for block in (9, 3, 60):
            device.send(AddBadBlock(block))
        with pytest.raises(IoctlError) as caught:
            device.send(AddBadBlock(9))
        assert caught.value.errno == errno.EINVAL
        assert device.send(ListBadBlocks()) == (3, 9, 60)
        assert device.send(CountBadBlocks()) == 3
        device.send(RemoveBadBlock(3))
        assert device.send(QueryBlock(3)) is False
        assert device.send(QueryBlock(9)) is True
        device.send(Enable())
        device.send(Quiet())
        assert device.status() == [DustStatus(lab.refs[0], enabled=True, quiet=True)]
        device.send(Disable())
        device.send(Quiet())
        assert device.status() == [DustStatus(lab.refs[0], enabled=False, quiet=False)]
        assert device.send(ClearBadBlocks()) is True
        assert device.send(CountBadBlocks()) == 0


@pytest.mark.dm
def test_the_last_block_that_can_be_listed_is_one_behind_the_device_below(lab):
    blocks = lab.disks[0].size // 512
    with lab.device(targets.Dust(dev=lab.refs[0]), 64) as device:
        device.send(AddBadBlock(blocks))
        with pytest.raises(IoctlError):
            device.send(AddBadBlock(blocks + 1))


@pytest.mark.dm
def test_a_long_list_arrives_whole(lab):
    with lab.device(targets.Dust(dev=lab.refs[0]), 64) as device:
        device.send(Quiet())
        for block in range(0, 4000, 2):
            device.send(AddBadBlock(block))
        assert device.send(ListBadBlocks()) == tuple(range(0, 4000, 2))


@pytest.mark.dm
def test_bad_blocks_fail_and_heal_when_written(lab):
    value = targets.Dust(dev=lab.refs[0], offset=16, block_size=1024)
    with lab.open(value, 64) as (device, file):
        assert device.table() == Table.of(value, 64)
        device.send(AddBadBlock(9))  # sectors 18 and 19 of the disk: 2 and 3 of the device
        device.send(AddBadBlock(10, 2))
        assert file.read(1024, 1024) == bytes(1024), "switched off at first"
        device.send(Enable())
        assert file.read(0, 1024) == bytes(1024)
        _fails(lambda: file.read(1024, 512))
        _fails(lambda: file.read(1536, 512))
        _fails(lambda: file.read(2048, 512))
        file.write(1024, b"x" * 512)
        assert file.read(1024, 1024) == b"x" * 512 + bytes(512)
        for _ in range(2):
            _fails(lambda: file.write(2048, b"y" * 512))
        file.write(2048, b"y" * 512)
        assert file.read(2048, 512) == b"y" * 512
        assert device.send(CountBadBlocks()) == 0


@pytest.mark.dm
def test_a_flush_heals_the_block_at_the_offset(lab):
    with lab.open(targets.Dust(dev=lab.refs[0], offset=16), 64) as (device, file):
        device.send(AddBadBlock(16))
        device.send(AddBadBlock(17))
        device.send(Enable())
        file.flush()
        assert device.send(ListBadBlocks()) == (17,)
