"""Guest side of a session in guests: what a worker does differently because it runs in a throw-away VM."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from pytest_dm import markers

if TYPE_CHECKING:
    from collections.abc import Generator

__all__ = ["GuestWorker"]


class GuestWorker:
    """Registered in a worker whose process runs in a guest."""

    def __init__(self, config: pytest.Config, timeout: float) -> None:
        self.timeout = timeout
        control = os.environ.get("PYTEST_DM_CTL")
        self._control = int(control) if control else None
        config.option.basetemp = None  # the controller's folder is not in the guest; the guest's own /tmp is

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, config: pytest.Config, items: list[pytest.Item]) -> None:
        """Keep to the tests that need a device, where the host runs the others."""
        if getattr(config, "workerinput", {}).get("dm_only"):
            items[:] = [item for item in items if markers.uses_dm(item)]

    def _mark(self, line: str) -> None:
        if self._control is not None:
            os.write(self._control, f"{line}\n".encode())

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Generator[None, object, object]:
        """Tell the host which test runs and how long it may: the host holds the deadline, for a stuck kernel too."""
        self._mark(f"start {item.nodeid} {self._limit(item):g}")
        try:
            return (yield)
        finally:
            self._mark(f"end {item.nodeid}")

    def _limit(self, item: pytest.Item) -> float:
        for mark in item.iter_markers("dm"):
            if mark.kwargs.get("timeout"):
                return float(mark.kwargs["timeout"])
        return self.timeout

    @pytest.hookimpl
    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        """Name the kernel in the id of every test, where the suite runs on several."""
        kernel = getattr(metafunc.config, "workerinput", {}).get("dm_kernel")
        if kernel is not None:
            metafunc.fixturenames.append("_dm_kernel")
            metafunc.parametrize("_dm_kernel", [kernel], scope="session")
