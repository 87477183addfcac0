"""Watch the removal of every dm device in this process, and hold it against dmsetup just before."""

from __future__ import annotations

import os
import re
import threading
from typing import TYPE_CHECKING, Self

from dmsetup_oracle import assert_agrees

from dmcore.errors import DmError
from dmcore.kernel.control import Control

if TYPE_CHECKING:
    from dmcore.abi.dm import DeviceInfo
    from dmcore.kernel.control import Selector

_remove = Control.remove
_OF_ONE_TEST = 4
_NUMBER = re.compile(r"\b[0-9a-f]*[0-9][0-9a-f]*\b")


class Agreement:
    """While it is entered, `Control.remove` compares first. What differs is kept for `take`: a removal never fails here.

    dmsetup is asked for nothing that changes a device: its status comes without a flush. Unless `every` device is asked for,
    those that differ from an earlier one in numbers alone are let go, and so are the many of one test that generates them:
    dmsetup costs four processes for each.
    """

    def __init__(self, *, every: bool = False) -> None:
        self._kinds: set[object] | None = None if every else set()
        self._count = 0
        self._differences: list[str] = []
        self._lock = threading.Lock()
        self._owner = os.getpid()

    def take(self) -> tuple[int, list[str]]:
        """Return how many devices were compared since the last call, and what differed."""
        with self._lock:
            taken = self._count, self._differences
            self._count, self._differences = 0, []
        return taken

    def _is_new(self, control: Control, info: DeviceInfo) -> bool:
        if self._kinds is None:
            return True
        if self._count >= _OF_ONE_TEST:
            return False
        lines = (*control.table(info.dev), *control.table(info.dev, inactive=True))
        told = tuple((line.type, _NUMBER.sub("#", line.params)) for line in lines)
        kind = (info.live, info.inactive, info.suspended, info.readonly, told)
        with self._lock:
            if kind in self._kinds:
                return False
            self._kinds.add(kind)
        return True

    def _compare(self, control: Control, selector: Selector) -> None:
        try:
            info = control.info(selector)
            if not self._is_new(control, info):
                return
            assert_agrees(control, info.dev)
        except DmError:  # gone meanwhile, or nobody who may ask: the removal says so
            return
        except AssertionError as differs:
            if not control.exists(
                selector
            ):  # its removal had been put off until its last close, which came now
                return
            said = f"{selector}: {differs}"
        else:
            said = ""
        with self._lock:
            self._count += 1
            if said:
                self._differences.append(said)

    def __enter__(self) -> Self:
        def remove(
            control: Control, selector: Selector, *, deferred: bool = False, cookie: int = 0
        ) -> DeviceInfo:
            if os.getpid() == self._owner and os.geteuid() == 0:
                self._compare(control, selector)
            return _remove(control, selector, deferred=deferred, cookie=cookie)

        Control.remove = remove
        return self

    def __exit__(self, *_: object) -> None:
        Control.remove = _remove
