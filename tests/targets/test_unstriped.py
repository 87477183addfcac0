from __future__ import annotations

import contextlib
import errno
from collections.abc import Iterator

import pytest
from ground import Ground
from hypothesis import assume

from dmcore import targets
from dmcore.abi.dm import TableLine
from dmcore.errors import ParseError, SpecError
from dmcore.params import split_words
from dmcore.ref import Ref
from dmcore.table import Line, Table
from dmcore.target import NO_FEATURES, Leg, NoStatus

DEV = Ref("7:0")
SECOND_OF_TWO = targets.Unstriped(stripes=2, chunk=8, index=1, dev=DEV, offset=16)


class _NoNegativeNumbers(Ground):
    """Without the numbers that the kernel takes and prints as negative ones: the library refuses them on purpose."""

    def prepare(self, line: TableLine) -> None:
        words = [word.strip("+\n") for word in split_words(line.params)]
        assume(not any(word.isdecimal() and 2**31 <= int(word) < 2**32 for word in words))


@contextlib.contextmanager
def ground(lab) -> Iterator[Ground]:
    yield _NoNegativeNumbers(lab)


@pytest.mark.parametrize("words", ["2 8 1 7:0 16", "+2 +8 +1 7:0 0016", "2 008 1 7:0 16 "])
def test_reads_what_the_kernel_reads(words):
    assert Table.parse(f"0 48 unstriped {words}") == Table.of(SECOND_OF_TWO, 48)


@pytest.mark.parametrize(
    ("words", "index"),
    [
        ("", 3),
        ("2 8 1 7:0", 7),
        ("2 8 1 7:0 16 0", 8),
        ("x 8 1 7:0 16", 3),
        ("4294967296 8 1 7:0 16", 3),
        ("2 -8 1 7:0 16", 4),
        ("2 8 1x 7:0 16", 5),
        ("2 8 1 7:0 +16", 7),
    ],
)
def test_refuses_what_the_kernel_refuses_and_names_the_word(words, index):
    with pytest.raises(ParseError) as caught:
        Table.parse(f"0 48 unstriped {words}")
    assert caught.value.index == index


@pytest.mark.parametrize(
    ("field", "values"),
    [
        ("stripes", {"stripes": 0}),
        ("stripes", {"stripes": 2**31}),
        ("chunk", {"chunk": 0}),
        ("chunk", {"chunk": 2**32}),
        ("index", {"index": -1}),
        ("index", {"index": 3}),
        ("index", {"stripes": 1, "index": 2**31}),
        ("dev", {"dev": "7:0"}),
        ("offset", {"offset": -1}),
    ],
)
def test_refuses_bad_values_and_names_the_field(field, values):
    with pytest.raises(SpecError) as caught:
        targets.Unstriped(**{"stripes": 2, "chunk": 8, "index": 0, "dev": DEV, **values})
    assert caught.value.field == field


@pytest.mark.parametrize(("stripes", "index"), [(1, 7), (2, 2), (3, 0)])
def test_takes_the_indexes_that_the_kernel_takes(stripes, index):
    assert targets.Unstriped(stripes=stripes, chunk=8, index=index, dev=DEV).index == index


def test_refuses_a_length_that_is_no_whole_number_of_chunks():
    with pytest.raises(SpecError) as caught:
        Line(0, 20, SECOND_OF_TWO)
    assert caught.value.field == "chunk"
    assert Line(0, 24, SECOND_OF_TWO).end == 24


def test_value():
    assert SECOND_OF_TWO.refs() == (DEV,)
    assert SECOND_OF_TWO.encode(str) == "2 8 1 7:0 16"
    assert SECOND_OF_TWO.readback(NO_FEATURES) == SECOND_OF_TWO
    assert SECOND_OF_TWO.parse_status("") == NoStatus()
    with pytest.raises(ParseError):
        SECOND_OF_TWO.parse_status("A")


@pytest.mark.dm
@pytest.mark.parametrize("chunk", [1, 3, 8])
def test_each_leg_of_a_striped_device_comes_out_whole(lab, chunk):
    length = 16 * chunk
    striped = targets.Striped(chunk=chunk, legs=(Leg(lab.refs[0]), Leg(lab.refs[1])))
    with lab.open(striped, 2 * length) as (device, file):
        file.write(0, b"".join(bytes([number]) * 512 * chunk for number in range(32)))
        for index in range(2):
            value = targets.Unstriped(stripes=2, chunk=chunk, index=index, dev=device.ref)
            with lab.open(value, length) as (leg, shown), lab.disk(index) as below:
                assert leg.table() == Table.of(value, length)
                assert leg.status() == [NoStatus()]
                assert shown.read(0, length * 512) == below.read(0, length * 512)
                shown.write(5 * chunk * 512, b"new" + bytes(509))
                assert below.read(5 * chunk * 512, 512) == b"new" + bytes(509)


@pytest.mark.dm
def test_the_chunks_of_a_plain_disk(lab):
    with lab.disk() as below:
        below.write(16 * 512, b"".join(bytes([number]) * 512 for number in range(90)))
    value = targets.Unstriped(stripes=3, chunk=2, index=1, dev=lab.refs[0], offset=16)
    with lab.open(value, 20) as (_, file):
        sectors = [row * 6 + 2 + place for row in range(10) for place in range(2)]
        assert file.read(0, 20 * 512) == b"".join(bytes([sector]) * 512 for sector in sectors)


@pytest.mark.dm
def test_the_index_behind_the_last_is_the_first_one_row_on(lab):
    with lab.disk() as below:
        below.write(0, b"".join(bytes([number]) * 512 for number in range(64)))
    with lab.open(targets.Unstriped(stripes=2, chunk=8, index=2, dev=lab.refs[0]), 16) as (_, file):
        assert file.read(0, 512)[0] == 16


@pytest.mark.dm
def test_chunks_behind_the_end_of_the_disk_fail(lab):
    sectors = lab.disks[0].size // 512
    with lab.open(targets.Unstriped(stripes=2, chunk=8, index=0, dev=lab.refs[0]), sectors) as (_, file):
        assert file.read((sectors // 2 - 8) * 512, 4096) == bytes(4096)
        with pytest.raises(OSError) as caught:
            file.read(sectors // 2 * 512, 4096)
        assert caught.value.errno == errno.EIO


@pytest.mark.dm
def test_a_flush_is_swallowed_and_a_discard_not_supported(lab):
    with lab.device(targets.Error(), 512) as bad:
        value = targets.Unstriped(stripes=2, chunk=8, index=0, dev=bad.ref)
        with lab.open(value, 256) as (_, file):
            file.flush()
            with pytest.raises(OSError) as caught:
                file.discard(0, 4096)
            assert caught.value.errno == errno.EOPNOTSUPP
