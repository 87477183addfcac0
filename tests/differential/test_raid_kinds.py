"""Every kind of raid set, on kernels and as models."""

from __future__ import annotations

import pytest
from raid_images import Shape, check_images

from dmcore.targets.raid import RaidType

pytestmark = pytest.mark.dm

SHAPES = [
    *[Shape(kind, count) for kind in RaidType if kind.parity for count in (kind.parity + 2, kind.parity + 3)],
    Shape(RaidType.RAID0, 2, "16"),
    Shape(RaidType.RAID0, 3),
    Shape(RaidType.RAID1, 3, "0 write_mostly 0"),
    Shape(RaidType.RAID5_LS, 3, "32 region_size 64"),
    *[
        Shape(RaidType.RAID10, 4, f"8 raid10_format {form} raid10_copies {copies}", copies)
        for form in ("near", "far", "offset")
        for copies in (2, 4)
    ],
    Shape(RaidType.RAID10, 5, "8 raid10_copies 2", 2),
]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_kernel_and_model_write_the_same_and_read_each_other(lab, shape):
    check_images(lab, shape)
