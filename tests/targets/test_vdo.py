from __future__ import annotations

import pytest

from dmcore.errors import ParseError, SpecError
from dmcore.ref import Ref
from dmcore.table import Line, Table
from dmcore.targets.vdo import (
    Config,
    Dump,
    DumpOnShutdown,
    IndexAction,
    IndexMessage,
    SetCompression,
    Stats,
    Vdo,
    VdoMode,
    VdoStatus,
)

A = Ref("7:0")


@pytest.mark.parametrize(
    ("words", "value"),
    [
        ("V4 7:0 262144 4096 32768 16380", Vdo(dev=A, physical_blocks=262144)),
        (
            "V4 7:0 +262144 512 32768 1 bio 4 compression on hash 1 logical 2 physical 1 deduplication off bio 2",
            Vdo(
                dev=A,
                physical_blocks=262144,
                minimum_io=512,
                era_length=1,
                bio=2,
                hash=1,
                logical=2,
                physical=1,
                compression=True,
                deduplication=False,
            ),
        ),
    ],
)
def test_reads_what_the_kernel_reads(words, value):
    assert Table.parse(f"0 2048 vdo {words}") == Table.of(value, 2048)
    assert Table.parse(str(Table.of(value, 2048))) == Table.of(value, 2048)


@pytest.mark.parametrize(
    ("words", "index"),
    [
        ("", 3),
        ("V5 7:0 1 4096 32768 1", 3),
        ("V4 7:0 x 4096 32768 1", 5),
        ("V4 7:0 1 1024 32768 1", 6),
        ("V4 7:0 1 4096 32768", 8),
        ("V4 7:0 1 4096 32768 1 bio", 10),
        ("V4 7:0 1 4096 32768 1 compression yes", 10),
        ("V4 7:0 1 4096 32768 1 Bio 1", 9),
    ],
)
def test_refuses_what_the_kernel_refuses_and_names_the_word(words, index):
    with pytest.raises(ParseError) as caught:
        Table.parse(f"0 2048 vdo {words}")
    assert caught.value.index == index


@pytest.mark.parametrize(
    ("field", "make"),
    [
        ("minimum_io", lambda: Vdo(dev=A, physical_blocks=1, minimum_io=1024)),
        ("bio", lambda: Vdo(dev=A, physical_blocks=1, bio=0)),
        ("logical", lambda: Vdo(dev=A, physical_blocks=1, logical=1)),
        ("cache_blocks", lambda: Vdo(dev=A, physical_blocks=1, logical=9, physical=1, hash=1)),
        ("maxDiscard", lambda: Vdo(dev=A, physical_blocks=1, maxDiscard=2**20)),
        ("compression", lambda: Vdo(dev=A, physical_blocks=1, compression="on")),
        ("length", lambda: Line(0, 7, Vdo(dev=A, physical_blocks=1))),
        ("on", lambda: SetCompression(1)),
        ("action", lambda: IndexMessage("index-close")),
    ],
)
def test_refuses_bad_values_and_names_the_field(field, make):
    with pytest.raises(SpecError) as caught:
        make()
    assert caught.value.field == field


def test_status_and_messages():
    value = Vdo(dev=A, physical_blocks=262144)
    assert value.parse_status("/dev/dm-3 normal - online offline 91 262144") == VdoStatus(
        Ref("/dev/dm-3"), VdoMode.NORMAL, False, "online", False, 91, 262144
    )
    assert value.parse_status("/dev/sdb read-only recovering error online 0 1").recovering
    for text in ("", "/dev/sdb broken - online online 1 1", "/dev/sdb normal - online online 1"):
        with pytest.raises(ParseError):
            value.parse_status(text)
    sent = (
        SetCompression(True),
        IndexMessage(IndexAction.CLOSE),
        Dump(),
        DumpOnShutdown(),
        Stats(),
        Config(),
    )
    words = ["compression on", "index-close", "dump", "dump-on-shutdown", "stats", "config"]
    assert [message.encode() for message in sent] == words
    assert Stats().parse_reply("{ version : 36, }") == "{ version : 36, }"
