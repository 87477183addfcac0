"""How `dmcore stats` reads and shows sizes, times and histograms: as the C library of dmsetup does, where that is installed."""

from __future__ import annotations

import ctypes
from ctypes.util import find_library
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dmcore.cli._dmsetup.failed import Failed
from dmcore.cli._dmsetup.stats_regions import Group, Region, parse_list
from dmcore.cli._dmsetup.stats_units import (
    ALL,
    Units,
    as_float,
    histogram,
    parse_bounds,
    parse_size,
    percent,
    take_factor,
)

LIBRARY = find_library("devmapper")
U64 = 1 << 64


@pytest.fixture(scope="module")
def library():
    if LIBRARY is None:
        pytest.skip("libdevmapper is not installed")
    found = ctypes.CDLL(LIBRARY)
    found.dm_pool_create.restype = ctypes.c_void_p
    found.dm_size_to_string.restype = ctypes.c_char_p
    found.dm_units_to_factor.restype = ctypes.c_uint64
    found.dm_percent_to_float.restype = ctypes.c_float
    found.dm_pool_destroy.restype = None
    pool = ctypes.c_void_p(found.dm_pool_create(b"test", ctypes.c_size_t(1024)))
    yield SimpleNamespace(lib=found, pool=pool)
    found.dm_pool_destroy(pool)


def their_factor(library, text):
    letter = ctypes.c_char()
    factor = library.lib.dm_units_to_factor(text.encode(), ctypes.byref(letter), 0, None)
    return (factor, letter.value.decode()) if factor else None


UNITS = st.sampled_from([*"hHrRbBsSkKmMgGtTpPeE", "3k", "12M", "1.5g", "1k", "0.5m", "2s", "1.0K"])
SIZES = st.one_of(
    st.integers(0, 1 << 54), st.integers(0, 5000), st.builds(lambda power, near: max(0, (1 << power) + near), st.integers(0, 54), st.integers(-3, 3))
)  # fmt: skip


@given(units=UNITS, sectors=SIZES)
def test_sizes_are_shown_as_the_library_shows_them(library, units, sectors):
    ours = Units.parse(units)
    assert (ours.factor, ours.letter) == their_factor(library, units)
    text = library.lib.dm_size_to_string(
        library.pool, ctypes.c_uint64(sectors), ctypes.c_char(ours.letter.encode()), 1,
        ctypes.c_uint64(ours.factor), 0, 2,
    )  # fmt: skip
    assert ours.sectors(sectors) == text.decode()


@given(text=st.text("0123456789.hkKbsSmMz ", max_size=5))
def test_units_are_those_of_the_library(library, text):
    found = take_factor(text)
    theirs = their_factor(library, text)
    if found is None or not found[0]:
        assert theirs is None
    else:
        assert theirs == found[:2]


@given(part=st.integers(0, 10**10), whole=st.integers(0, 10**10))
def test_percentages_are_those_of_the_library(library, part, whole):
    part = min(part, whole)
    ours = percent(part, whole)
    assert ours == library.lib.dm_make_percent(ctypes.c_uint64(part), ctypes.c_uint64(whole))
    assert as_float(ours) == library.lib.dm_percent_to_float(ours)
    assert 0 <= ours <= ALL


def test_sizes_are_read():
    assert parse_size("8", "start") == 4096
    assert parse_size("8s", "start") == 4096
    assert parse_size("64k", "start") == 65536
    assert parse_size("64K", "start") == 64000
    assert parse_size("7b", "start") == 7
    for wrong in ("", "x", "-8", "8z", "8kk", "k"):
        with pytest.raises(Failed, match="Invalid start argument"):
            parse_size(wrong, "start")


def test_bounds_are_read():
    assert parse_bounds("10ms,20ms") == (10**7, 2 * 10**7)
    assert parse_bounds("10us,20,1s,5") == (10**4, 2 * 10**4, 10**9, 5 * 10**9)
    assert parse_bounds("7") == (7,)
    for wrong, why in (
        ("", "Invalid"),
        ("1,,2", "Empty"),
        ("1xs", "'?x"),
        (",1", "Empty"),
        ("ms", "m"),
        ("1ms2", "Invalid|2"),
    ):
        with pytest.raises(Failed, match=why):
            parse_bounds(wrong)


def test_histograms_are_shown():
    limits, counts = (10**4, 5 * 10**6), (1, 0, 3)
    assert histogram(limits, counts, "count", "", suffix=True, padded=True) == "     1     0     3"
    assert histogram(limits, counts, "count", "", suffix=True, padded=False) == "1:0:3"
    assert histogram(limits, counts, "", "lower", suffix=True, padded=True) == "0s,10us,5ms"
    assert (
        histogram(limits, counts, "", "range", suffix=False, padded=True) == "0-10000,10000-5000000,>5000000"
    )
    assert (
        histogram(limits, counts, "percent", "lower", suffix=True, padded=False)
        == "0s:25.00%:10us:0.00%:5ms:75.00%"
    )


def test_lists_of_regions():
    assert parse_list("0,2-4") == [(0, 0), (2, 4)]
    assert parse_list(" 1 - 2 ,,") == [(1, 2)]
    assert parse_list("0-99999999999999999999") == [(0, 99999999999999999999)]
    assert parse_list("") == []
    for wrong in ("x", "3-1", "1-", "-1", "1 2", "1-2-3"):
        assert parse_list(wrong) is None


@given(st.sets(st.integers(0, 40), min_size=1))
def test_a_groups_ranges_read_back(numbers):
    members = [Region(n, 0, 8, 8, "", "", precise=False, bounds=()) for n in sorted(numbers)]
    group = Group("", members)
    ranges = parse_list(group.ranges)
    assert {n for low, high in ranges for n in range(low, high + 1)} == numbers
    assert group.number == min(numbers)
