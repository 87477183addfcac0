"""Watch the removal of every dm device in this process, and hold it against dmsetup just before."""

from __future__ import annotations

import os
import threading
from typing import TYPE_CHECKING, Self

from dmsetup_oracle import assert_agrees

from dmcore.errors import DmError
from dmcore.kernel.control import Control

if TYPE_CHECKING:
    from dmcore.abi.dm import DeviceInfo
    from dmcore.kernel.control import Selector

_remove = Control.remove


class Agreement:
    """While it is entered, `Control.remove` compares first. What differs is kept for `take`: a removal never fails here.

    dmsetup is asked for nothing that changes a device: its status comes without a flush.
    """

    def __init__(self) -> None:
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

    def _compare(self, control: Control, selector: Selector) -> None:
        try:
            info = control.info(selector)
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
