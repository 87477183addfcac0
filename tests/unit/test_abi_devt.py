"""Device numbers in the kernel's forms."""

from __future__ import annotations

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dmcore.abi.devt import DevT
from dmcore.errors import SpecError

numbers = st.builds(DevT, st.integers(0, 4095), st.integers(0, (1 << 20) - 1))


@given(numbers)
def test_every_form_leads_back(dev):
    assert DevT.from_huge(dev.huge) == dev
    assert DevT.from_rdev(dev.rdev) == dev
    assert DevT.parse(str(dev)) == dev
    assert (os.major(dev.rdev), os.minor(dev.rdev)) == (dev.major, dev.minor)


@pytest.mark.parametrize(
    ("dev", "huge"),
    [
        (DevT(7, 0), 0x700),
        (DevT(254, 255), 0xFEFF),
        (DevT(254, 256), 0x10FE00),
        (DevT(4095, 0xFFFFF), 0xFFFFFFFF),
    ],
)
def test_huge_form_is_the_kernels(dev, huge):
    assert dev.huge == huge


@pytest.mark.parametrize(
    "text", ["", "7", "7:", ":0", "7:0 ", " 7:0", "7:-1", "0x7:0", "7:0:0", "\u0667:0", "4096:0", "0:1048576"]
)
def test_other_text_is_refused(text):
    with pytest.raises(SpecError):
        DevT.parse(text)


@pytest.mark.parametrize(("major", "minor"), [(-1, 0), (0, -1), (4096, 0), (0, 1 << 20)])
def test_numbers_out_of_range_are_refused(major, minor):
    with pytest.raises(SpecError):
        DevT(major, minor)
