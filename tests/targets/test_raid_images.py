"""Raid sets that kernels and models write; all kinds are in tests/differential/test_raid_kinds.py."""

from __future__ import annotations

import pytest
from raid_images import Shape, check_images

from dmcore.targets.raid import RaidType

pytestmark = pytest.mark.dm


@pytest.mark.parametrize(
    "shape",
    [
        Shape(RaidType.RAID1, 2, "0"),
        Shape(RaidType.RAID6_ZR, 4),
        Shape(RaidType.RAID10, 4),
    ],
    ids=str,
)
def test_kernel_and_model_write_the_same_and_read_each_other(lab, shape):
    check_images(lab, shape)
