from __future__ import annotations

import errno
import itertools

import pytest

from dmcore import targets
from dmcore.abi.dm import TableLine
from dmcore.errors import ParseError, SpecError, TableRejected
from dmcore.ref import Ref
from dmcore.table import Table
from dmcore.target import NO_FEATURES, NoStatus
from dmcore.targets.flakey import ALWAYS, Corrupt, Direction

DEV = Ref("7:0")
ALL = frozenset(targets.Flakey.features)
READ, WRITE = Direction.READ, Direction.WRITE


def flakey(**values):
    return targets.Flakey(**{"dev": DEV, "up": 0, "down": 1, **values})


@pytest.mark.parametrize(
    ("words", "value"),
    [
        ("", flakey()),
        ("0 ", flakey()),
        ("0 ignored words", flakey()),
        ("1 DROP_writes", flakey(drop_writes=True)),
        ("1 error_writes more", flakey(error_writes=True)),
        ("2 drop_writes error_reads", flakey(drop_writes=True, error_reads=True)),
        ("5 corrupt_bio_byte 32 W 255 4096", flakey(corrupt=Corrupt(32, WRITE, 255, 4096))),
        (
            "6 corrupt_bio_byte 4294967297 r 0 0 error_writes",
            flakey(corrupt=Corrupt(1, READ, 0), error_writes=True),
        ),
        (
            "4 random_write_corrupt 0 random_read_corrupt 1000000000",
            flakey(random_read_corrupt=ALWAYS, random_write_corrupt=0),
        ),
    ],
)
def test_reads_what_the_kernel_reads(words, value):
    assert Table.parse(f"0 8 flakey 7:0 0 0 1 {words}") == Table.of(value, 8)


def test_interval_numbers_wrap_as_the_kernels_do():
    value = targets.Flakey(dev=DEV, offset=1, up=1, down=2)
    assert Table.parse("0 8 flakey 7:0 1 4294967297 18446744069414584322") == Table.of(value, 8)


@pytest.mark.parametrize(
    ("words", "index"),
    [
        ("7:0 0 0", 6),
        ("7:0 0 x 1", 5),
        ("7:0 0 0 1 12 drop_writes", 7),
        ("7:0 0 0 1 2 drop_writes", 9),
        ("7:0 0 0 1 2 drop_writes drop_writes", 9),
        ("7:0 0 0 1 1 fail", 8),
        ("7:0 0 0 1 1 corrupt_bio_byte 1 r 2 3", 9),
        ("7:0 0 0 1 4 corrupt_bio_byte 1 r 2 3", 9),
        ("7:0 0 0 1 5 corrupt_bio_byte 0 r 2 3", 9),
        ("7:0 0 0 1 5 corrupt_bio_byte 1 x 2 3", 10),
        ("7:0 0 0 1 5 corrupt_bio_byte 1 r 256 3", 11),
        ("7:0 0 0 1 5 corrupt_bio_byte 1 r 2 x", 12),
        ("7:0 0 0 1 2 random_read_corrupt 1000000001", 9),
        ("7:0 0 0 1 1 random_read_corrupt 1", 9),
    ],
)
def test_refuses_what_the_kernel_refuses_and_names_the_word(words, index):
    with pytest.raises(ParseError) as caught:
        Table.parse(f"0 8 flakey {words}")
    assert caught.value.index == index


@pytest.mark.parametrize(
    ("field", "values"),
    [
        ("dev", {"dev": "7:0"}),
        ("offset", {"offset": 2**64}),
        ("up", {"up": -1}),
        ("up", {"up": 1.5}),
        ("down", {"down": 2**32}),
        ("down", {"up": 0, "down": 0}),
        ("down", {"up": 2**32 - 1, "down": 1}),
        ("drop_writes", {"drop_writes": 1}),
        ("error_writes", {"drop_writes": True, "error_writes": True}),
        ("corrupt", {"drop_writes": True, "corrupt": Corrupt(1, WRITE, 0)}),
        ("corrupt", {"error_writes": True, "corrupt": Corrupt(1, WRITE, 0)}),
        ("corrupt", {"corrupt": "1 r 0 0"}),
        ("random_read_corrupt", {"random_read_corrupt": ALWAYS + 1}),
        ("random_write_corrupt", {"random_write_corrupt": -1}),
    ],
)
def test_refuses_bad_values_and_names_the_field(field, values):
    with pytest.raises(SpecError) as caught:
        flakey(**values)
    assert caught.value.field == field


@pytest.mark.parametrize(
    ("field", "values"),
    [
        ("byte", (0, READ, 0)),
        ("direction", (1, "r", 0)),
        ("value", (1, READ, 256)),
        ("flags", (1, READ, 0, 2**32)),
    ],
)
def test_refuses_bad_corruption(field, values):
    with pytest.raises(SpecError) as caught:
        Corrupt(*values)
    assert caught.value.field == field


def test_words_stand_in_the_kernels_order_and_are_counted():
    value = flakey(
        error_reads=True,
        error_writes=True,
        corrupt=Corrupt(1, READ, 2, 3),
        random_read_corrupt=4,
        random_write_corrupt=5,
    )
    assert value.encode(str) == (
        "7:0 0 0 1 11 error_reads error_writes corrupt_bio_byte 1 r 2 3 random_read_corrupt 4 random_write_corrupt 5"
    )


@pytest.mark.parametrize(
    ("value", "without", "with_all"),
    [
        (flakey(), flakey(), flakey(error_reads=True, error_writes=True)),
        (flakey(random_read_corrupt=0), flakey(), flakey(error_reads=True, error_writes=True)),
        (
            flakey(drop_writes=True, random_write_corrupt=0),
            flakey(drop_writes=True),
            flakey(drop_writes=True),
        ),
        (flakey(random_read_corrupt=1), flakey(random_read_corrupt=1), flakey(random_read_corrupt=1)),
    ],
)
def test_readback(value, without, with_all):
    assert value.readback(NO_FEATURES) == without
    assert value.readback(ALL) == with_all


@pytest.mark.parametrize(
    ("values", "names"),
    [
        ({}, set()),
        ({"drop_writes": True}, set()),
        ({"corrupt": Corrupt(1, READ, 0)}, set()),
        ({"error_reads": True}, {"error_reads"}),
        ({"random_write_corrupt": 0}, {"random_corrupt"}),
        ({"error_reads": True, "random_read_corrupt": 0}, {"error_reads", "random_corrupt"}),
        ({"error_reads": True, "corrupt": Corrupt(1, WRITE, 0)}, {"error_reads"}),
        ({"error_reads": True, "corrupt": Corrupt(1, READ, 0)}, {"error_reads", "error_reads_with_corrupt"}),
        (
            {"error_writes": True, "random_write_corrupt": 1},
            {"random_corrupt", "fail_writes_with_random_corrupt"},
        ),
    ],
)
def test_needs(values, names):
    assert flakey(**values).needs().features == {f"flakey.{name}" for name in names}


def test_status_is_empty():
    assert flakey().parse_status("") == NoStatus()


# What happens while a device is down: to reads, writes, flushes. "same": done as asked; "gone": success, not done.
BEHAVIOUR = [
    ({}, "eio", "eio", "eio"),
    ({"drop_writes": True}, "same", "gone", "same"),
    ({"error_writes": True}, "same", "eio", "eio"),
    ({"error_reads": True}, "eio", "same", "same"),
    ({"error_reads": True, "drop_writes": True}, "eio", "gone", "same"),
    ({"error_reads": True, "error_writes": True}, "eio", "eio", "eio"),
    ({"corrupt": Corrupt(3, WRITE, 0xEE)}, "same", "changed", "same"),
    ({"corrupt": Corrupt(3, READ, 0xEE)}, "changed", "same", "same"),
    ({"corrupt": Corrupt(513, WRITE, 0xEE)}, "same", "same", "same"),
    ({"corrupt": Corrupt(3, WRITE, 0xEE, 1 << 12)}, "same", "same", "same"),
    ({"random_write_corrupt": ALWAYS}, "same", "random", "same"),
    ({"random_read_corrupt": ALWAYS}, "random", "same", "same"),
]
OLD, NEW, CHANGED = b"o" * 512, b"n" * 512, 0xEE


def _expect(outcome: str, data: bytes, want: bytes) -> None:
    if outcome == "changed":
        assert data == want[:2] + bytes([CHANGED]) + want[3:]
    elif outcome == "random":
        assert sum(got != asked for got, asked in zip(data, want, strict=True)) <= 1
    else:
        assert data == want


@pytest.mark.dm
@pytest.mark.parametrize(("values", "read", "write", "flush"), BEHAVIOUR)
def test_behaviour_while_down(lab, values, read, write, flush):
    value = flakey(dev=lab.refs[0], offset=8, **values)
    if _refused(lab, value):
        return
    with lab.disk() as below:
        below.write(8 * 512, OLD)
        below.flush()
    if "corrupt" in values and "flakey.error_reads" not in lab.features:
        read = "same"  # such kernels leave what comes from a loop device unchanged
    with lab.open(value, 64) as (device, file), lab.disk() as below:
        assert device.table() == Table.of(value, 64).readback(lab.features)
        assert device.status() == [NoStatus()]
        _check(read, lambda: _expect(read, file.read(0, 512), OLD))
        _check(write, lambda: file.write(0, NEW))
        _check(flush, file.flush)
        _expect(write, below.read(8 * 512, 512), OLD if write in {"eio", "gone"} else NEW)


def _refused(lab, value: targets.Flakey) -> bool:
    """Whether the kernel lacks what the value needs; then see that it does refuse it."""
    if value.needs().features <= lab.features:
        return False
    with lab.empty() as device, pytest.raises(TableRejected):
        lab.control.load(device, Table.of(value, 64).encode(str))
    return True


def _check(outcome: str, request) -> None:
    if outcome != "eio":
        request()
        return
    with pytest.raises(OSError) as caught:
        request()
    assert caught.value.errno == errno.EIO


@pytest.mark.dm
def test_random_corruption_does_change_something(lab):
    value = flakey(dev=lab.refs[0], random_write_corrupt=ALWAYS)
    if _refused(lab, value):
        return
    with lab.open(value, 64) as (_, file), lab.disk() as below:
        changed = 0
        for _ in range(20):
            file.write(0, NEW)
            changed += below.read(0, 512) != NEW
        assert changed > 10


@pytest.mark.dm
def test_always_up_is_linear(lab):
    with lab.open(flakey(dev=lab.refs[0], offset=8, up=1, down=0, error_writes=True), 64) as (_, file):
        file.write(0, NEW)
        assert file.read(0, 512) == NEW
        with lab.disk() as below:
            assert below.read(8 * 512, 512) == NEW


@pytest.mark.dm
@pytest.mark.parametrize(
    "words",
    [
        "",
        "0",
        "1 error_writes",
        "1 drop_writes junk",
        "5 corrupt_bio_byte 7 R 1 2",
        "2 random_read_corrupt 0",
    ],
)
def test_kernel_prints_what_readback_says(lab, words):
    table = Table.parse(f"0 64 flakey {lab.refs[0]} 8 5 6 {words}")
    if _refused(lab, table.lines[0].target):
        return
    with lab.device(table) as device:
        assert device.table() == table.readback(lab.features)


COMBINATIONS = [
    [word for word in words if word]
    for words in itertools.product(
        ["", "drop_writes", "error_writes"],
        ["", "error_reads"],
        ["", "corrupt_bio_byte 1 r 0 0", "corrupt_bio_byte 1 w 0 0"],
        ["", "random_read_corrupt 0", "random_read_corrupt 1"],
        ["", "random_write_corrupt 0", "random_write_corrupt 1"],
    )
]


@pytest.mark.dm
def test_kernel_and_library_allow_the_same_faults_together(lab):
    with lab.device(targets.Linear(dev=lab.refs[0]), 8) as live:
        for faults in COMBINATIONS:
            words = " ".join(faults)
            line = TableLine(0, 8, "flakey", f"{lab.refs[0]} 0 0 1 {len(words.split())} {words}")
            try:
                table = Table.from_lines([line])
                allowed = table.needs()[0].features <= lab.features
            except SpecError:
                allowed = False
            if allowed:
                lab.control.load(live.dev, [line])
                printed = lab.control.table(live.dev, inactive=True)
                assert Table.from_lines(printed) == table.readback(lab.features), words
            else:
                with pytest.raises(TableRejected):
                    lab.control.load(live.dev, [line])
