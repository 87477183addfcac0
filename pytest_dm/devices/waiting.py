"""What the devices of several share: a typed status, waiting for a state, the kernel's words as values."""

from __future__ import annotations

import time
from enum import StrEnum
from typing import TYPE_CHECKING, TypeVar

from dmcore.errors import DmError, SpecError
from dmcore.target import Status

if TYPE_CHECKING:
    from collections.abc import Callable

    from pytest_dm.devices.base import DmDevice

__all__ = ["PATIENCE", "kernel_word", "state_of", "wait_until"]

S = TypeVar("S", bound=Status)
E = TypeVar("E", bound=StrEnum)

PATIENCE = 60.0
"""Seconds that kernels get for background work on a small disk of a test."""

_FIRST_PAUSE = 0.002
_LONGEST_PAUSE = 0.1


def state_of(device: DmDevice, kind: type[S]) -> S:
    """Return the status of the device's only line.

    Raises:
        DmError: It has none of that kind: the target has given up, or a test loaded another table.
    """
    found = device.status()
    if len(found) == 1 and isinstance(found[0], kind):
        return found[0]
    message = f"{device.name} has no {kind.__name__} to report: {device.statuses()}"
    raise DmError(message)


def wait_until(device: DmDevice, what: str, done: Callable[[], bool], timeout: float) -> None:
    """Wait until `done` says so.

    Raises:
        DmError: It does not within `timeout` seconds; tells the device's status.
    """
    deadline = time.monotonic() + timeout
    pause = _FIRST_PAUSE
    while not done():
        if time.monotonic() > deadline:
            message = f"{device.name} is not {what} after {timeout:g} s: {device.statuses()}"
            raise DmError(message)
        device.runtime.settle()
        time.sleep(pause)
        pause = min(2 * pause, _LONGEST_PAUSE)


def kernel_word(field: str, kind: type[E], value: str) -> E:
    """Return the value of an enumeration for a kernel's word.

    Raises:
        SpecError: No such word; tells which there are.
    """
    try:
        return kind(value)
    except ValueError:
        raise SpecError(field, value, f"one of {', '.join(kind)}") from None
