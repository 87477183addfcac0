"""Linear, Zero, ErrorDevice: dm devices without verbs of their own."""

from __future__ import annotations

from pytest_dm.devices.base import DmDevice

__all__ = ["ErrorDevice", "Linear", "Zero"]


class Linear(DmDevice):
    """A piece of another device; put it above anything to have `swap` and `power_cut` there."""


class Zero(DmDevice):
    """Reads zeros, swallows writes. Before 6.12 kernels refuse discards (EOPNOTSUPP)."""


class ErrorDevice(DmDevice):
    """Every read and write fails with EIO; a flush succeeds, there being nothing to flush.

    A buffered write fails at fsync. A discard fails with EOPNOTSUPP before 6.12, with EIO from then on.
    """
