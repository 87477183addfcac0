from __future__ import annotations

import errno

import pytest

from dmcore import targets
from dmcore.errors import ParseError, SpecError, Unsupported
from dmcore.kernel.probe import require_table
from dmcore.ref import Ref
from dmcore.table import Table
from dmcore.target import NO_FEATURES, NoStatus, Requirement

DEV = Ref("7:0")


@pytest.mark.parametrize("words", ["", " ", "one", "7:0 1 2", "a b c d"])
def test_ignores_any_number_of_words_but_two(words):
    assert Table.parse(f"0 8 error {words}") == Table.of(targets.Error(), 8)


def test_two_words_are_a_device():
    value = targets.Error(dev=DEV, offset=8)
    assert Table.parse("0 8 error 7:0 8") == Table.of(value, 8)
    assert str(Table.of(value, 8)) == "0 8 error 7:0 8"
    assert value.refs() == (DEV,)
    assert value.needs() == Requirement("error", features=frozenset({"error.device"}))
    assert value.readback(frozenset({"error.device"})) == targets.Error()
    with pytest.raises(ParseError) as caught:
        Table.parse("0 8 error 7:0 x")
    assert caught.value.index == 4


def test_value():
    value = targets.Error()
    assert (value.refs(), value.needs(), value.readback(NO_FEATURES)) == ((), Requirement("error"), value)
    assert value.parse_status("") == NoStatus()


@pytest.mark.parametrize(("field", "values"), [("offset", {"offset": 1}), ("dev", {"dev": "7:0"})])
def test_refuses_bad_values(field, values):
    with pytest.raises(SpecError) as caught:
        targets.Error(**values)
    assert caught.value.field == field


@pytest.mark.dm
def test_reads_and_writes_fail_flushes_do_not(lab):
    with lab.open(targets.Error()) as (device, file):
        assert device.table() == Table.of(targets.Error(), 1024)
        assert device.status() == [NoStatus()]
        for request in (lambda: file.read(0, 512), lambda: file.write(0, bytes(512))):
            with pytest.raises(OSError) as caught:
                request()
            assert caught.value.errno == errno.EIO
        file.flush()
        with pytest.raises(OSError) as caught:
            file.discard(0, 4096)
        assert caught.value.errno == (errno.EIO if "error.discard" in lab.features else errno.EOPNOTSUPP)


@pytest.mark.dm
def test_device_below_is_held_where_the_kernel_knows_that(lab):
    value = targets.Error(dev=lab.refs[0], offset=8)
    if "error.device" not in lab.features:
        with pytest.raises(Unsupported) as caught:
            require_table(lab.control, Table.of(value, 8))
        assert "error.device" in caught.value.need
        return
    with lab.device(value) as device:
        assert [str(dev) for dev in device.deps()] == [str(lab.refs[0])]
        assert device.table() == Table.of(value, 1024).readback(lab.features)
