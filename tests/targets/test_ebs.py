from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest
from ground import Ground

from dmcore.errors import ParseError, SpecError
from dmcore.ref import Ref
from dmcore.table import Table
from dmcore.target import Target
from dmcore.targets.ebs import Ebs

A = Ref("7:0")


@pytest.mark.parametrize(
    ("words", "value"),
    [
        ("7:0 0 1", Ebs(dev=A, emulated=1)),
        ("7:0 16 8 8", Ebs(dev=A, offset=16, emulated=8, underlying=8)),
        ("7:0 016 65537 65544", Ebs(dev=A, offset=16, emulated=1, underlying=8)),
    ],
)
def test_reads_what_the_kernel_reads(words, value):
    assert Table.parse(f"0 8 ebs {words}") == Table.of(value, 8)
    assert Table.parse(str(Table.of(value, 8))) == Table.of(value, 8)


@pytest.mark.parametrize(
    ("words", "index"),
    [("", 3), ("7:0", 4), ("7:0 x 1", 4), ("7:0 0", 5), ("7:0 0 +1", 5), ("7:0 0 1 1 1", 7)],
)
def test_refuses_what_the_kernel_refuses_and_names_the_word(words, index):
    with pytest.raises(ParseError) as caught:
        Table.parse(f"0 8 ebs {words}")
    assert caught.value.index == index


@pytest.mark.parametrize(
    ("field", "make"),
    [
        ("dev", lambda: Ebs(dev="7:0", emulated=1)),
        ("emulated", lambda: Ebs(dev=A, emulated=0)),
        ("emulated", lambda: Ebs(dev=A, emulated=3)),
        ("emulated", lambda: Ebs(dev=A, emulated=16)),
        ("underlying", lambda: Ebs(dev=A, emulated=1, underlying=3)),
        ("offset", lambda: Ebs(dev=A, offset=4, emulated=1, underlying=8)),
        ("offset", lambda: Ebs(dev=A, offset=4, emulated=8, underlying=2)),
        ("emulated", lambda: Table.of(Ebs(dev=A, emulated=8), 12)),
    ],
)
def test_refuses_bad_values_and_names_the_field(field, make):
    with pytest.raises(SpecError) as caught:
        make()
    assert caught.value.field == field


@contextlib.contextmanager
def ground(lab) -> Iterator[Ground]:
    yield _New(lab)


class _New(Ground):
    """A new device for each line: kernels hold only a device's first table against its block size when it is loaded."""

    fresh = True

    def fits(self, target: Target, length: int) -> bool:
        assert isinstance(target, Ebs)
        return target.offset + length <= self.refs[target.dev]


@pytest.mark.dm
@pytest.mark.parametrize("underlying", [None, 8])
def test_is_linear_in_blocks_of_its_own(lab, underlying):
    value = Ebs(dev=lab.refs[0], offset=16, emulated=1, underlying=underlying)
    with lab.disk() as disk:
        disk.write(0, b"-" * 65536)
    with lab.open(value, 64) as (device, file):
        assert device.table() == Table.of(value, 64)
        file.write(512, b"x" * 1024)
        file.flush()
        assert file.read(0, 4096) == b"-" * 512 + b"x" * 1024 + b"-" * 2560
    with lab.disk() as disk:
        assert disk.read(8192, 4096) == b"-" * 512 + b"x" * 1024 + b"-" * 2560
