from __future__ import annotations

import errno

import pytest

from dmcore import targets
from dmcore.errors import ParseError, SpecError
from dmcore.ref import Ref
from dmcore.table import Line, Table
from dmcore.target import NO_FEATURES, Leg
from dmcore.targets.striped import StripedStatus, StripeHealth

A, B = Ref("7:0"), Ref("7:1")
TWO = targets.Striped(chunk=8, legs=(Leg(A), Leg(B, 16)))


@pytest.mark.parametrize(
    ("words", "value"),
    [
        ("2 8 7:0 0 7:1 16", TWO),
        ("+2 +8 7:0 0 7:1 0016", TWO),
        ("1 3 7:0 7", targets.Striped(chunk=3, legs=(Leg(A, 7),))),
    ],
)
def test_reads_what_the_kernel_reads(words, value):
    assert Table.parse(f"0 48 striped {words}") == Table.of(value, 48)


@pytest.mark.parametrize(
    ("words", "index"),
    [
        ("", 3),
        ("2", 4),
        ("0 8", 3),
        ("4294967296 8 7:0 0", 3),
        ("2 8x 7:0 0 7:1 0", 4),
        ("2 8 7:0 0", 5),
        ("1 8 7:0 0 7:1 0", 5),
        ("2 8 7:0 0 7:1 +0", 8),
    ],
)
def test_refuses_what_the_kernel_refuses_and_names_the_word(words, index):
    with pytest.raises(ParseError) as caught:
        Table.parse(f"0 48 striped {words}")
    assert caught.value.index == index


@pytest.mark.parametrize(
    ("field", "values"),
    [
        ("chunk", {"chunk": 0}),
        ("chunk", {"chunk": 2**32}),
        ("legs", {"legs": ()}),
        ("legs", {"legs": [Leg(A)]}),
        ("legs[1]", {"legs": (Leg(A), B)}),
    ],
)
def test_refuses_bad_values_and_names_the_field(field, values):
    with pytest.raises(SpecError) as caught:
        targets.Striped(**{"chunk": 8, "legs": (Leg(A), Leg(B)), **values})
    assert caught.value.field == field


@pytest.mark.parametrize(("length", "field"), [(17, "legs"), (24, "chunk"), (8, "chunk")])
def test_refuses_a_length_that_is_no_whole_number_of_chunks_per_leg(length, field):
    with pytest.raises(SpecError) as caught:
        Line(0, length, TWO)
    assert caught.value.field == field
    assert Line(0, 32, TWO).end == 32


def test_value():
    assert TWO.refs() == (A, B)
    assert TWO.encode(str) == "2 8 7:0 0 7:1 16"
    assert TWO.readback(NO_FEATURES) == TWO


def test_status():
    assert TWO.parse_status("2 7:0 7:1 1 AD") == StripedStatus(
        (StripeHealth(A, False), StripeHealth(B, True))
    )
    for bad in [
        "",
        "2 7:0 7:1 1 A",
        "2 7:0 7:1 1 AX",
        "2 7:0 1 AA",
        "2 7:0 7:1 1 AA x",
        "1000000000 7:0",
        "2 a b 2 AA",
    ]:
        with pytest.raises(ParseError):
            TWO.parse_status(bad)


@pytest.mark.dm
def test_chunks_go_round(lab):
    value = targets.Striped(chunk=3, legs=(Leg(lab.refs[0], 5), Leg(lab.refs[1])))
    with lab.open(value, 24) as (device, file):
        assert device.table() == Table.of(value, 24)
        assert device.status() == [StripedStatus(tuple(StripeHealth(ref, False) for ref in lab.refs))]
        file.write(0, b"".join(bytes([chunk]) * 1536 for chunk in range(8)))
        with lab.disk(0) as below:
            assert below.read(5 * 512, 4 * 1536) == b"".join(bytes([chunk]) * 1536 for chunk in (0, 2, 4, 6))
        with lab.disk(1) as below:
            assert below.read(0, 4 * 1536) == b"".join(bytes([chunk]) * 1536 for chunk in (1, 3, 5, 7))


@pytest.mark.dm
def test_a_failed_leg_shows_in_the_status(lab):
    with lab.device(targets.Error(), 512) as bad:
        value = targets.Striped(chunk=8, legs=(Leg(lab.refs[0]), Leg(bad.ref)))
        with lab.open(value, 1024) as (device, file):
            assert file.read(0, 4096) == bytes(4096)
            with pytest.raises(OSError) as caught:
                file.read(4096, 4096)
            assert caught.value.errno == errno.EIO
            (status,) = device.status()
            assert status == StripedStatus((StripeHealth(lab.refs[0], False), StripeHealth(bad.ref, True)))
            assert device.wait(0, timeout=5) == 1
