"""Messages and replies of I/O statistics."""

from __future__ import annotations

import pytest

from dmcore.errors import ParseError, SpecError
from dmcore.stats import (
    StatsArea,
    StatsClear,
    StatsCreate,
    StatsDelete,
    StatsList,
    StatsPrint,
    StatsRegion,
    StatsSetAux,
)


@pytest.mark.parametrize(
    ("message", "text"),
    [
        (StatsCreate(), "@stats_create - /1 - -"),
        (StatsCreate(areas=100, program="me"), "@stats_create - /100 me -"),
        (StatsCreate(start=8, length=16, step=4, aux="a b"), r"@stats_create 8+16 4 - a\ b"),
        (
            StatsCreate(precise=True, histogram=(1, 20)),
            "@stats_create - /1 2 precise_timestamps histogram:1,20 - -",
        ),
        (StatsList(), "@stats_list"),
        (StatsList("me"), "@stats_list me"),
        (StatsPrint(3), "@stats_print 3 0 -"),
        (StatsPrint(0, 5, 2, clear=True), "@stats_print_clear 0 5 2"),
        (StatsDelete(7), "@stats_delete 7"),
        (StatsClear(7), "@stats_clear 7"),
        (StatsSetAux(7, "a\\b"), r"@stats_set_aux 7 a\\b"),
    ],
)
def test_messages(message, text):
    assert message.encode() == text


@pytest.mark.parametrize(
    ("field", "make"),
    [
        ("start", lambda: StatsCreate(start=-1, length=1)),
        ("start", lambda: StatsCreate(start=1)),
        ("length", lambda: StatsCreate(length=0)),
        ("length", lambda: StatsCreate(start=2**64 - 1, length=1)),
        ("step", lambda: StatsCreate(step=0)),
        ("areas", lambda: StatsCreate(areas=2**32)),
        ("areas", lambda: StatsCreate(step=1, areas=1)),
        ("precise", lambda: StatsCreate(precise=1)),
        ("histogram[0]", lambda: StatsCreate(histogram=(0,))),
        ("histogram[1]", lambda: StatsCreate(histogram=(5, 5))),
        ("histogram", lambda: StatsCreate(histogram=[5])),
        ("program", lambda: StatsCreate(program="12")),
        ("program", lambda: StatsCreate(program="a b")),
        ("program", lambda: StatsList("")),
        ("aux", lambda: StatsCreate(aux="")),
        ("aux", lambda: StatsSetAux(0, "a\nb")),
        ("region", lambda: StatsSetAux(-1, "a")),
        ("region", lambda: StatsDelete(2**31)),
        ("region", lambda: StatsPrint("0")),
        ("first", lambda: StatsPrint(0, -1)),
        ("count", lambda: StatsPrint(0, 0, -1)),
        ("clear", lambda: StatsPrint(0, clear=2)),
    ],
)
def test_refuses_what_the_kernel_refuses_and_names_the_field(field, make):
    with pytest.raises(SpecError) as caught:
        make()
    assert caught.value.field == field


def test_replies():
    assert StatsCreate().parse_reply("12") == 12
    assert StatsList().parse_reply("") == ()
    regions = "0: 0+1024 128 - -\n3: 8+16 4 me a b precise_timestamps histogram:1,20\n"
    assert StatsList().parse_reply(regions) == (
        StatsRegion(0, 0, 1024, 128, "-", "-", precise=False, histogram=()),
        StatsRegion(3, 8, 16, 4, "me", "a b", precise=True, histogram=(1, 20)),
    )
    areas = "0+8 1 0 8 2 3 0 24 5 1 7 8 9 10 4:0:1\n8+8 0 0 0 0 0 0 0 0 0 0 0 0 0\n"
    assert StatsPrint(0).parse_reply(areas) == (
        StatsArea(0, 8, 1, 0, 8, 2, 3, 0, 24, 5, 1, 7, 8, 9, 10, (4, 0, 1)),
        StatsArea(8, 8, *[0] * 13),
    )
    assert StatsDelete(0).parse_reply("") is None


@pytest.mark.parametrize(
    ("message", "reply"),
    [
        (StatsCreate(), ""),
        (StatsCreate(), "-1"),
        (StatsCreate(), "1 2"),
        (StatsList(), "0 0+8 8 - -"),
        (StatsList(), "x: 0+8 8 - -"),
        (StatsPrint(0), "0+8 1 2 3"),
        (StatsPrint(0), "0+8 1 0 8 2 3 0 24 5 1 7 8 9 x"),
        (StatsDelete(0), "yes"),
    ],
)
def test_replies_that_are_none(message, reply):
    with pytest.raises(ParseError):
        message.parse_reply(reply)
