"""Fixtures for the tests of targets."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest
from lab import _lab, lab  # noqa: F401

from dmcore.targets import Linear

if TYPE_CHECKING:
    from mirror_lab import Below
    from raid_lab import Parts


@pytest.fixture
def below(lab) -> Iterator[tuple[Below, Below, Below]]:
    """Two legs of a mirror and a device for its log."""
    from mirror_lab import SECTORS, Below

    with contextlib.ExitStack() as stack:
        found = []
        for disk, start in ((0, 0), (1, 0), (1, 2048)):
            target = Linear(dev=lab.refs[disk], offset=start)
            device = stack.enter_context(lab.device(target, SECTORS))
            found.append(Below(lab, device, lab.refs[disk], start))
        yield found[0], found[1], found[2]


@pytest.fixture
def parts(lab) -> Iterator[Parts]:
    """Parts of both disks, for the devices of a raid set."""
    from raid_lab import ground

    with ground(lab) as found:
        yield found
