"""Mirrors on a kernel: legs and a log that fail when told to."""

from __future__ import annotations

import contextlib
import errno
import time
from collections.abc import Iterator

import pytest

from dmcore import targets
from dmcore.kernel.block import BlockFile
from dmcore.kernel.device import Device
from dmcore.ref import Ref
from dmcore.table import Line, Table
from dmcore.target import Leg, Target
from dmcore.targets.mirror import (
    CoreLog,
    Mirror,
    MirrorStatus,
    Sync,
)

# On a kernel. A region has 64 sectors, the mirror 16 of them; the log lies in the second disk's second half.

REGION, SECTORS = 64, 1024
SIZE = SECTORS * 512


def mirror_state(device: Device) -> MirrorStatus:
    (status,) = device.status()
    assert isinstance(status, MirrorStatus)
    return status


def until(device: Device, done) -> MirrorStatus:
    """Return the status as soon as it is what it should become, within 30 seconds."""
    deadline = time.monotonic() + 30
    while not done(status := mirror_state(device)):
        assert time.monotonic() < deadline, f"still {status}"
        time.sleep(0.02)
    return status


def letters(status: MirrorStatus) -> str:
    return "".join(leg.state.value for leg in status.legs)


def fails(request) -> None:
    with pytest.raises(OSError) as caught:
        request()
    assert caught.value.errno == errno.EIO


class Below:
    """A device that is a part of a disk, until it is told to fail."""

    def __init__(self, lab, device: Device, dev: Ref, start: int) -> None:
        self.device = device
        self.dev = dev
        self.start = start

    @property
    def leg(self) -> Leg:
        return Leg(self.device.ref)

    def be(self, target: Target) -> None:
        self.device.reload(Table.of(target, SECTORS))

    def heal(self) -> None:
        self.be(targets.Linear(dev=self.dev, offset=self.start))

    def fail(self) -> None:
        self.be(targets.Error())

    def fail_writes(self) -> None:
        self.be(targets.Flakey(dev=self.dev, offset=self.start, up=0, down=1, error_writes=True))

    def fail_flushes(self) -> None:
        """Let flushes fail, and nothing else but writes to the last 8 sectors."""
        good = targets.Linear(dev=self.dev, offset=self.start)
        bad = targets.Flakey(dev=self.dev, offset=self.start + SECTORS - 8, up=0, down=1, error_writes=True)
        self.device.reload(Table((Line(0, SECTORS - 8, good), Line(SECTORS - 8, 8, bad))))


def mirror(below, log=None, **words: bool) -> Mirror:
    return Mirror(log=log or CoreLog(REGION, Sync.NOSYNC), legs=(below[0].leg, below[1].leg), **words)


@contextlib.contextmanager
def opened(lab, value: Mirror) -> Iterator[tuple[Device, BlockFile]]:
    with lab.open(value, SECTORS) as (device, file):
        assert device.table() == Table.of(value, SECTORS)
        yield device, file
