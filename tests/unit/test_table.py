from __future__ import annotations

import pytest

from dmcore import targets
from dmcore.abi.dm import TableLine
from dmcore.errors import ParseError, SpecError
from dmcore.ref import Ref
from dmcore.table import MAX_SECTORS, Line, Table
from dmcore.target import Requirement
from dmcore.targets._raw import Raw, RawStatus

DEV = Ref("7:0")
LINEAR = targets.Linear(dev=DEV, offset=8)
TABLE = Table(
    [Line(0, 8, LINEAR), Line(8, 16, targets.Zero()), Line(24, 8, targets.Linear(dev=Ref("/dev/sda#1")))]
)
TEXT = "0 8 linear 7:0 8\n8 16 zero\n24 8 linear /dev/sda#1 0"


def test_text_both_ways():
    assert str(TABLE) == TEXT
    assert Table.parse(TEXT) == TABLE


@pytest.mark.parametrize(
    "text",
    [
        "\n# comment\n\n 0 8 linear 7:0 8 \n",
        "0 8 linear 7:0 8 # comment",
        "  0\t8  linear\t7:0  8\r\n#\n",
        "00 08 linear 7:0 08",
    ],
)
def test_reads_what_dmsetup_reads(text):
    assert Table.parse(text) == Table.of(LINEAR, 8)


def test_values():
    assert (TABLE.length, TABLE.refs()) == (32, (DEV, Ref("/dev/sda#1")))
    assert TABLE.needs() == (Requirement("linear"), Requirement("zero"))
    assert TABLE.encode(lambda ref: f"<{ref}>")[0] == TableLine(0, 8, "linear", "<7:0> 8")
    assert Table.from_lines(TABLE.encode(str)) == TABLE
    assert hash(Table.parse(TEXT)) == hash(TABLE)


def test_lookup_gives_the_devices():
    table = Table.parse("0 8 linear 7:0 8", lookup={"7:0": Ref("data")}.__getitem__)
    assert table.refs() == (Ref("data"),)
    assert str(table) == "0 8 linear data 8"


@pytest.mark.parametrize(
    ("text", "index", "expected"),
    [
        ("x", 0, "start"),
        ("0", 1, "length"),
        ("0 8", 2, "name"),
        ("-1 8 zero", 0, "start"),
        ("0 8s zero", 1, "length"),
        ("0 8 zero 1", 3, "the end"),
        ("0 ٣ zero", 1, "length"),
        ("9" * 5000 + " 8 zero", 0, "start"),
        ("0 8 zero\n8 8 linear 7:0", 4, "sector"),
    ],
)
def test_refuses_what_is_no_line(text, index, expected):
    with pytest.raises(ParseError, match=expected) as caught:
        Table.parse(text)
    assert caught.value.index == index
    assert caught.value.text in text


@pytest.mark.parametrize(
    ("text", "field"),
    [
        ("", "lines"),
        ("# nothing", "lines"),
        ("8 8 zero", "lines[0].start"),
        ("0 8 zero\n9 8 zero", "lines[1].start"),
        ("0 8 zero\n7 8 zero", "lines[1].start"),
        ("0 8 zero\n8 0 zero", "lines[1].length"),
        (f"0 8 zero\n8 {MAX_SECTORS - 7} zero", "lines[1].length"),
        (f"{2**64} 8 zero", "lines[0].start"),
        ("0 8 zero\n8 8 dust 7:0 0 100", "lines[1].block_size"),
        ("0 8 zero\n8 8 striped 1 3 7:0 0", "lines[1].chunk"),
        ("0 8 zero\n8 8 linear a\\ b 0", "lines[1].ref"),
    ],
)
def test_refuses_bad_tables_and_names_the_line(text, field):
    with pytest.raises(SpecError) as caught:
        Table.parse(text)
    assert caught.value.field == field


@pytest.mark.parametrize(
    ("field", "make"),
    [
        ("start", lambda: Line(-1, 8, LINEAR)),
        ("start", lambda: Line(0.0, 8, LINEAR)),
        ("length", lambda: Line(0, MAX_SECTORS + 1, LINEAR)),
        ("length", lambda: Line(1, MAX_SECTORS, LINEAR)),
        ("target", lambda: Line(0, 8, "zero")),
        ("lines[0]", lambda: Table(["0 8 zero"])),
        ("name", lambda: Raw("two words")),
        ("name", lambda: Raw("")),
        ("name", lambda: Raw("sixteen-letters!")),
        ("params", lambda: Raw("x", "a\0")),
    ],
)
def test_refuses_bad_values(field, make):
    with pytest.raises(SpecError) as caught:
        make()
    assert caught.value.field == field


def test_the_largest_device():
    assert Table.of(targets.Zero(), MAX_SECTORS).length == 2**54 - 1


def test_an_unknown_target_is_kept_as_text():
    table = Table.parse("0 8 future 7:0  a\\ b  ")
    assert table == Table.of(Raw("future", "7:0  a\\ b"), 8)
    assert table.encode(str) == [TableLine(0, 8, "future", "7:0  a\\ b")]
    assert (table.refs(), table.needs()) == ((), (Requirement("future"),))
    assert table.lines[0].target.parse_status("A 1") == RawStatus("A 1")
