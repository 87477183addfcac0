from __future__ import annotations

import errno

import pytest

from dmcore import targets
from dmcore.errors import ParseError
from dmcore.table import Table
from dmcore.target import NO_FEATURES, NoStatus, Requirement


def test_text_and_value():
    value = targets.Zero()
    assert str(Table.of(value, 8)) == "0 8 zero"
    assert Table.parse("0 8 zero ") == Table.of(value, 8)
    assert (value.refs(), value.needs(), value.readback(NO_FEATURES)) == ((), Requirement("zero"), value)
    assert value.parse_status("") == NoStatus()
    with pytest.raises(ParseError) as caught:
        Table.parse("0 8 zero 1")
    assert caught.value.word == "1"


@pytest.mark.dm
def test_reads_zeros_and_drops_writes(lab):
    with lab.open(targets.Zero()) as (device, file):
        assert device.table() == Table.of(targets.Zero(), 1024)
        assert device.status() == [NoStatus()]
        file.write(0, b"x" * 4096)
        file.flush()
        assert file.read(0, 4096) == bytes(4096)


@pytest.mark.dm
def test_discard_is_as_probed(lab):
    with lab.open(targets.Zero()) as (_, file):
        if "zero.discard" in lab.features:
            file.discard(0, 4096)
        else:
            with pytest.raises(OSError) as caught:
                file.discard(0, 4096)
            assert caught.value.errno == errno.EOPNOTSUPP
