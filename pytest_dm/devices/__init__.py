"""Handles of the devices that tests get, with their verbs."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

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

if TYPE_CHECKING:
    from pytest_dm.devices.cache import Cache as Cache
    from pytest_dm.devices.clone import Clone as Clone
    from pytest_dm.devices.crypt import Crypt as Crypt
    from pytest_dm.devices.era import Era as Era
    from pytest_dm.devices.integrity import Integrity as Integrity
    from pytest_dm.devices.mirror import Mirror as Mirror
    from pytest_dm.devices.multipath import Multipath as Multipath
    from pytest_dm.devices.raid import Raid as Raid
    from pytest_dm.devices.snapshot import Snapshot as Snapshot
    from pytest_dm.devices.snapshot import SnapshotOrigin as SnapshotOrigin
    from pytest_dm.devices.switch import Switch as Switch
    from pytest_dm.devices.thin import Thin as Thin
    from pytest_dm.devices.thin import ThinPool as ThinPool
    from pytest_dm.devices.verity import Verity as Verity
    from pytest_dm.devices.writecache import Writecache as Writecache

__all__ = [
    "Cache",
    "Clone",
    "Crypt",
    "Delay",
    "Disk",
    "DmDevice",
    "Dust",
    "Era",
    "ErrorDevice",
    "ErrorRange",
    "Fault",
    "Flakey",
    "Integrity",
    "Linear",
    "LogWrites",
    "Loop",
    "Mirror",
    "Mount",
    "Multipath",
    "PowerCut",
    "Raid",
    "Snapshot",
    "SnapshotOrigin",
    "Switch",
    "Thin",
    "ThinPool",
    "Verity",
    "Writecache",
    "Zero",
]

_FAMILIES = {
    "Cache": "cache",
    "Clone": "clone",
    "Crypt": "crypt",
    "Era": "era",
    "Integrity": "integrity",
    "Mirror": "mirror",
    "Multipath": "multipath",
    "Raid": "raid",
    "Snapshot": "snapshot",
    "SnapshotOrigin": "snapshot",
    "Switch": "switch",
    "Thin": "thin",
    "ThinPool": "thin",
    "Verity": "verity",
    "Writecache": "writecache",
}
"""Classes that come in when first asked for, with the targets they need, and their modules."""


def __getattr__(name: str) -> object:
    if name not in _FAMILIES:
        raise AttributeError(name)
    return getattr(importlib.import_module(f"{__name__}.{_FAMILIES[name]}"), name)
