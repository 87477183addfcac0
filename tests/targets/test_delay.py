from __future__ import annotations

import threading
import time

import pytest

from dmcore import targets
from dmcore.errors import ParseError, SpecError
from dmcore.ref import Ref
from dmcore.table import Table
from dmcore.target import NO_FEATURES
from dmcore.targets.delay import Delayed, DelayStatus

A, B, C = Ref("7:0"), Ref("7:1"), Ref("7:2")
TICK = 0.011
"""A clock tick of HZ=100, by which the kernel may be early."""


@pytest.mark.parametrize(
    ("words", "value"),
    [
        ("7:0 0 10", targets.Delay(read=Delayed(A, 0, 10))),
        ("7:0 0 10 7:1 8 20", targets.Delay(read=Delayed(A, 0, 10), write=Delayed(B, 8, 20))),
        (
            "7:0 0 10 7:1 8 20 7:2 16 4294967296",
            targets.Delay(read=Delayed(A, 0, 10), write=Delayed(B, 8, 20), flush=Delayed(C, 16, 0)),
        ),
    ],
)
def test_reads_what_the_kernel_reads(words, value):
    assert Table.parse(f"0 8 delay {words}") == Table.of(value, 8)
    assert value.readback(NO_FEATURES) == value


@pytest.mark.parametrize(
    ("words", "index"),
    [
        ("", 3),
        ("7:0 0", 5),
        ("7:0 0 1 7:1", 7),
        ("7:0 0 1 7:1 0 1 7:2 0 1 x", 13),
        ("7:0 0 -1", 5),
        ("7:0 x 1", 4),
    ],
)
def test_refuses_what_the_kernel_refuses_and_names_the_word(words, index):
    with pytest.raises(ParseError) as caught:
        Table.parse(f"0 8 delay {words}")
    assert caught.value.index == index


@pytest.mark.parametrize(
    ("field", "make"),
    [
        ("ms", lambda: Delayed(A, 0, 2**32)),
        ("ms", lambda: Delayed(A, 0, -1)),
        ("offset", lambda: Delayed(A, -1, 0)),
        ("dev", lambda: Delayed("7:0")),
        ("read", lambda: targets.Delay(read=None)),
        ("write", lambda: targets.Delay(read=Delayed(A), write=A)),
        ("flush", lambda: targets.Delay(read=Delayed(A), flush=Delayed(A))),
    ],
)
def test_refuses_bad_values_and_names_the_field(field, make):
    with pytest.raises(SpecError) as caught:
        make()
    assert caught.value.field == field


def test_of_one_device():
    assert targets.Delay.of(A, read_ms=5).encode(str) == "7:0 0 5"
    assert targets.Delay.of(A, read_ms=5, write_ms=6, offset=8).encode(str) == "7:0 8 5 7:0 8 6"
    assert targets.Delay.of(A, read_ms=5, flush_ms=7).encode(str) == "7:0 0 5 7:0 0 5 7:0 0 7"
    assert targets.Delay.of(A, read_ms=5, flush_ms=7).refs() == (A, A, A)


def test_status():
    value = targets.Delay.of(A, read_ms=1)
    assert value.parse_status("3 0 1") == DelayStatus(reads=3, writes=0, flushes=1)
    for bad in ["", "1 2", "1 2 3 4", "1 2 x"]:
        with pytest.raises(ParseError):
            value.parse_status(bad)


def _took(call) -> float:
    start = time.monotonic()
    call()
    return time.monotonic() - start


@pytest.mark.dm
def test_each_class_waits_its_own_time(lab):
    first, second = lab.refs
    value = targets.Delay(
        read=Delayed(first, 0, 0), write=Delayed(second, 8, 100), flush=Delayed(first, 0, 200)
    )
    with lab.open(value, 64) as (device, file):
        assert device.table() == Table.of(value, 64)
        assert device.status() == [DelayStatus(0, 0, 0)]
        assert _took(lambda: file.read(0, 4096)) < 0.1
        assert _took(lambda: file.write(0, b"w" * 4096)) >= 0.1 - TICK
        assert _took(file.flush) >= 0.2 - TICK
        assert file.read(0, 4096) == bytes(4096), "reads come from the other device"
        with lab.disk(1) as below:
            assert below.read(8 * 512, 4096) == b"w" * 4096


@pytest.mark.dm
def test_the_status_counts_what_waits_and_a_suspend_sends_it(lab):
    with lab.open(targets.Delay.of(lab.refs[0], read_ms=20_000), 64) as (device, file):
        reader = threading.Thread(target=file.read, args=(0, 4096))
        reader.start()
        deadline = time.monotonic() + 5
        while device.status() != [DelayStatus(1, 0, 0)] and time.monotonic() < deadline:
            time.sleep(0.01)
        assert device.status() == [DelayStatus(1, 0, 0)]
        with device.suspended():
            reader.join(5)
            assert not reader.is_alive()
        assert device.status() == [DelayStatus(0, 0, 0)]


@pytest.mark.dm
@pytest.mark.parametrize("form", [{}, {"write_ms": 2}, {"write_ms": 2, "flush_ms": 3}])
def test_kernel_prints_the_form_it_was_given(lab, form):
    table = Table.of(targets.Delay.of(lab.refs[0], read_ms=1, **form), 64)
    with lab.device(table) as device:
        assert device.table() == table
