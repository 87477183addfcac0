from __future__ import annotations

import pytest

from dmcore import targets
from dmcore.errors import ParseError, SpecError, TableRejected
from dmcore.ref import Ref
from dmcore.table import Line, Table
from dmcore.target import NO_FEATURES, NoStatus

DEV = Ref("7:0")


@pytest.mark.parametrize(
    ("words", "offset"),
    [("7:0 0", 0), ("7:0 2048 ", 2048), ("7:0 007", 7), ("7:0 18446744073709551615", 2**64 - 1)],
)
def test_reads_what_the_kernel_reads(words, offset):
    assert Table.parse(f"0 8 linear {words}").lines[0].target == targets.Linear(dev=DEV, offset=offset)


@pytest.mark.parametrize(
    ("words", "index"),
    [
        ("", 3),
        ("7:0", 4),
        ("7:0 x", 4),
        ("7:0 -1", 4),
        ("7:0 0x1", 4),
        ("7:0 +1", 4),
        ("7:0 18446744073709551616", 4),
        ("7:0 1 2", 5),
    ],
)
def test_refuses_what_the_kernel_refuses_and_names_the_word(words, index):
    with pytest.raises(ParseError) as caught:
        Table.parse(f"0 8 linear {words}")
    assert (caught.value.index, caught.value.target) == (index, "linear")


@pytest.mark.parametrize(
    ("field", "given"),
    [("offset", -1), ("offset", 2**64), ("offset", True), ("offset", "0"), ("dev", "/dev/sda")],
)
def test_refuses_bad_values_and_names_the_field(field, given):
    with pytest.raises(SpecError) as caught:
        targets.Linear(**{"dev": DEV, field: given})
    assert (caught.value.field, caught.value.value) == (field, given)


def test_value():
    value = targets.Linear(dev=DEV, offset=5)
    assert value.refs() == (DEV,)
    assert value.encode(lambda ref: "1:2") == "1:2 5"
    assert value.readback(NO_FEATURES) == value
    assert value.parse_status("") == NoStatus()
    with pytest.raises(ParseError):
        value.parse_status("A")


@pytest.mark.dm
def test_maps_pieces_of_two_devices(lab):
    first, second = lab.refs
    table = Table(
        [Line(0, 8, targets.Linear(dev=first, offset=16)), Line(8, 8, targets.Linear(dev=second, offset=3))]
    )
    with lab.open(table) as (device, file):
        assert device.table() == table.readback(lab.features)
        assert device.status() == [NoStatus(), NoStatus()]
        file.write(0, b"a" * 4096 + b"b" * 4096)
        file.flush()
        with lab.disk(0) as below:
            assert below.read(16 * 512, 4096) == b"a" * 4096
        with lab.disk(1) as below:
            assert below.read(3 * 512, 4096) == b"b" * 4096
        file.discard(0, 8192)
        assert file.read(0, 8192) == bytes(8192)


@pytest.mark.dm
def test_kernel_checks_the_size_of_the_device_below(lab):
    with pytest.raises(TableRejected), lab.device(targets.Linear(dev=lab.refs[0], offset=4000), 97):
        pass
    with lab.device(targets.Linear(dev=lab.refs[0], offset=4000), 96):
        pass
