"""Raid sets on a kernel: each device is a part of 1024 sectors of a disk."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator

import ground as grounds

from dmcore import targets
from dmcore.errors import IoctlError
from dmcore.kernel.block import BlockFile
from dmcore.kernel.device import Device
from dmcore.targets.raid import DeviceState, Raid, RaidDevice, RaidStatus, SyncAction

PART = 1024


class Parts(grounds.Ground):
    """Eight parts of the disks, blank before every load: superblocks count."""

    fresh = True

    def __init__(self, lab, devices: list[Device]) -> None:
        super().__init__(lab)
        self.devices = devices
        self.refs = {device.ref: PART for device in devices}

    def prepare(self, line) -> None:
        self.lab.wipe()

    def fits(self, target: Raid, length: int) -> bool:
        """Whether a new set can be run of it, as far as that depends on what is on the devices."""
        refs = target.refs()
        count = len(target.devices)
        copies = (target.raid10_copies or 2) if target.kind.level == 10 else 1
        shared = 1 if target.kind.level == 1 else count - target.kind.parity
        missing = sum(device.data is None for device in target.devices)
        conversion = target.rebuild or target.journal_dev or target.data_offset or target.delta_disks
        kept = sum(device.meta is not None for device in target.devices)
        return (
            len(set(refs)) == len(refs)
            and not conversion
            and kept in {0, count}  # of a new set each device has a new superblock, or none has one
            and missing <= {0: 0, 1: count - 1, 10: 0}.get(target.kind.level, target.kind.parity)
            and length * copies // shared <= PART
        )


@contextlib.contextmanager
def ground(lab) -> Iterator[Parts]:
    with contextlib.ExitStack() as stack:
        devices = [
            stack.enter_context(lab.device(targets.Linear(dev=dev, offset=start), PART))
            for start in range(0, 4 * PART, PART)
            for dev in lab.refs
        ]
        yield Parts(lab, devices)


def state(device: Device) -> RaidStatus:
    (status,) = device.status()
    assert isinstance(status, RaidStatus)
    return status


def until(device: Device, done) -> RaidStatus:
    """Return the status as soon as it is what it should become, within 30 seconds."""
    deadline = time.monotonic() + 30
    while not done(status := state(device)):
        assert time.monotonic() < deadline, f"still {status}"
        time.sleep(0.02)
    return status


def idle(device: Device) -> RaidStatus:
    return until(device, lambda status: status.action is SyncAction.IDLE)


def quiet(device: Device) -> RaidStatus:
    """Return the status once nothing goes on and the last action is put away: md loses what it is told just before."""
    deadline = time.monotonic() + 30
    while True:
        seen = device.info().event_nr
        status = idle(device)
        with contextlib.suppress(IoctlError):
            device.wait(seen, timeout=0.1)
            assert time.monotonic() < deadline, f"always something new, {status}"
            continue
        return status


def _still(status: RaidStatus) -> bool:
    through = status.done == status.total and DeviceState.NOT_IN_SYNC not in status.devices
    return status.action is SyncAction.FROZEN or (status.action is SyncAction.IDLE and through)


@contextlib.contextmanager
def opened(lab, value: Raid, length: int) -> Iterator[tuple[Device, BlockFile]]:
    """Open a set, and let it come to rest before it goes: a 6.1 that just starts a resync would go with it."""
    with lab.open(value, length) as (device, file):
        yield device, file
        if value.kind.level:
            until(device, _still)


def letters(status: RaidStatus) -> str:
    return "".join(status.devices)


def members(parts: Parts, count: int, *, meta: bool) -> tuple[RaidDevice, ...]:
    refs = [device.ref for device in parts.devices]
    return tuple(RaidDevice(refs[index], refs[count + index] if meta else None) for index in range(count))
