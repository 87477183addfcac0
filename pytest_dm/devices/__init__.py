"""Handles of the devices that tests get, with their verbs."""

from __future__ import annotations

from pytest_dm.devices.base import Disk, DmDevice
from pytest_dm.devices.delay import Delay
from pytest_dm.devices.dust import Dust
from pytest_dm.devices.error_range import ErrorRange
from pytest_dm.devices.fault import Fault
from pytest_dm.devices.flakey import Flakey
from pytest_dm.devices.log_writes import LogWrites
from pytest_dm.devices.loop import Loop
from pytest_dm.devices.mount import Mount
from pytest_dm.devices.power import PowerCut
from pytest_dm.devices.simple import ErrorDevice, Linear, Zero

__all__ = [
    "Delay",
    "Disk",
    "DmDevice",
    "Dust",
    "ErrorDevice",
    "ErrorRange",
    "Fault",
    "Flakey",
    "Linear",
    "LogWrites",
    "Loop",
    "Mount",
    "PowerCut",
    "Zero",
]
