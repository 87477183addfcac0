"""Sizes as people type them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dmcore.errors import SpecError
from dmcore.units import format_size, parse_size, to_sectors


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("0", 0), ("512", 512), ("4k", 4096), ("64K", 65536), ("64M", 64 << 20), ("1.5G", 3 << 29), ("1GiB", 1 << 30),
        ("2 MB", 2 << 20), ("8s", 4096), ("10B", 10), (" 1T ", 1 << 40), (4096, 4096), ("0.5K", 512),
    ],
)  # fmt: skip
def test_sizes(text, size):
    assert parse_size(text) == size


@pytest.mark.parametrize(
    "text", ["", "M", "64X", "-1M", "1,5G", "0x10", "1e3", "0.3s", "5 iB", "2Ks", "0.1K", True, -5]
)
def test_what_is_no_size_is_refused_with_its_field(text):
    with pytest.raises(SpecError) as caught:
        parse_size(text, field="log_size")
    assert caught.value.field == "log_size"
    assert repr(text) in str(caught.value)


def test_sectors_must_be_whole():
    assert to_sectors("1M") == 2048
    with pytest.raises(SpecError, match="not a multiple of 512"):
        to_sectors("700")


@given(st.integers(0, 2**63))
def test_format_is_exact(size):
    assert parse_size(format_size(size)) == size
