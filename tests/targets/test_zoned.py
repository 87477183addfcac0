from __future__ import annotations

import pytest

from dmcore.errors import ParseError, SpecError
from dmcore.ref import Ref
from dmcore.table import Table
from dmcore.targets.zoned import Reclaim, Zoned, ZonedStatus, Zones

A, B = Ref("7:0"), Ref("7:1")


def test_text_and_bad_values():
    assert Table.parse("0 8 zoned 7:0 7:1") == Table.of(Zoned(devices=(A, B)), 8)
    with pytest.raises(ParseError) as missing:
        Table.parse("0 8 zoned")
    assert missing.value.index == 3
    for devices in ((), [A], ("7:0",)):
        with pytest.raises(SpecError):
            Zoned(devices=devices)
    assert Reclaim().encode() == "reclaim"


def test_status():
    text = "72 zones 0/0 cache 6/8 random 60/62 sequential"
    assert Zoned(devices=(A,)).parse_status(text) == ZonedStatus(
        72, Zones(0, 0), (Zones(6, 8),), (Zones(60, 62),)
    )
    cached = Zoned(devices=(A, B)).parse_status("80 zones 3/8 cache 1/2 random 3/4 sequential")
    assert cached.cache == Zones(3, 8)


@pytest.mark.parametrize(
    "text", ["", "72 zones", "72 zones 0/0 cache 6/8 random", "x zones 0/0 cache", "1 zones 0 cache"]
)
def test_bad_status(text):
    with pytest.raises(ParseError):
        Zoned(devices=(A,)).parse_status(text)
