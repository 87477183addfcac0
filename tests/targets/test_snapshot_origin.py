from __future__ import annotations

import errno

import pytest

from dmcore import targets
from dmcore.errors import ParseError, SpecError
from dmcore.ref import Ref
from dmcore.table import Table
from dmcore.target import NO_FEATURES, NoStatus

DEV = Ref("7:0")
ORIGIN = targets.SnapshotOrigin(dev=DEV)


def test_reads_what_the_kernel_reads():
    assert Table.parse("0 48 snapshot-origin 7:0 ") == Table.of(ORIGIN, 48)


@pytest.mark.parametrize(("words", "index"), [("", 3), ("7:0 0", 4)])
def test_refuses_what_the_kernel_refuses_and_names_the_word(words, index):
    with pytest.raises(ParseError) as caught:
        Table.parse(f"0 48 snapshot-origin {words}")
    assert caught.value.index == index


def test_refuses_bad_values_and_names_the_field():
    with pytest.raises(SpecError) as caught:
        targets.SnapshotOrigin(dev="7:0")
    assert caught.value.field == "dev"


def test_value():
    assert ORIGIN.refs() == (DEV,)
    assert ORIGIN.encode(str) == "7:0"
    assert ORIGIN.readback(NO_FEATURES) == ORIGIN
    assert ORIGIN.parse_status("") == NoStatus()
    with pytest.raises(ParseError):
        ORIGIN.parse_status("16/128 16")


@pytest.mark.dm
def test_without_snapshots_it_is_the_device_below(lab):
    value = targets.SnapshotOrigin(dev=lab.refs[0])
    with lab.open(value, 64) as (device, file):
        assert device.table() == Table.of(value, 64)
        assert device.status() == [NoStatus()]
        file.write(512, b"x" * 1024)
        file.flush()
        assert file.read(0, 2048) == bytes(512) + b"x" * 1024 + bytes(512)
        with lab.disk() as below:
            assert below.read(0, 2048) == bytes(512) + b"x" * 1024 + bytes(512)
        with pytest.raises(OSError) as caught:
            file.discard(0, 4096)
        assert caught.value.errno == errno.EOPNOTSUPP
