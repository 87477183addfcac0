"""Guest side of a session in guests: what a worker does differently because it runs in a throw-away VM."""

from __future__ import annotations

import os
import select
from typing import TYPE_CHECKING, Any, cast

import pytest

from pytest_dm import markers

if TYPE_CHECKING:
    from collections.abc import Generator

__all__ = ["PLUGIN_NAME", "GuestWorker"]

PLUGIN_NAME = "dm-guest-worker"

_ANSWER_SECONDS = 10.0


def _has_kernel(item: pytest.Item) -> bool:
    return "_dm_kernel" in getattr(getattr(item, "callspec", None), "params", {})


def _rename(item: pytest.Item, nodeid: str) -> None:
    """Give a test another id: pytest parametrizes neither unittest tests nor doctests, and has no setter for it."""
    if hasattr(item, "_id"):  # since pytest 9.2
        from _pytest.nodeid import NodeId  # noqa: PLC0415 - not there before

        setattr(item, "_id", NodeId.parse(nodeid))  # noqa: B010 - private
    else:
        setattr(item, "_nodeid", nodeid)  # noqa: B010 - private


class GuestWorker:
    """Registered in a worker whose process runs in a guest."""

    def __init__(self, config: pytest.Config, timeout: float) -> None:
        self.timeout = timeout
        control = os.environ.pop("PYTEST_DM_CTL", None)  # nobody below us has the descriptor
        self._control = int(control) if control else None
        config.option.basetemp = None  # the controller's folder is not in the guest; the guest's own /tmp is

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, config: pytest.Config, items: list[pytest.Item]) -> None:
        """Keep to the tests that need a device, where the host runs the others; name the kernel in every id."""
        told = getattr(config, "workerinput", {})
        if told.get("dm_only"):
            items[:] = [item for item in items if markers.uses_dm(item)]
        kernel = told.get("dm_kernel")
        for item in items:
            if kernel is not None and not _has_kernel(item):
                _rename(item, f"{item.nodeid}[{kernel}]")
        if kernel is not None and config.getoption("lf", default=False):
            self._leave_to_others(config, items, kernel, told["dm_kernels"])

    def _leave_to_others(
        self, config: pytest.Config, items: list[pytest.Item], kernel: str, kernels: list[str]
    ) -> None:
        """Run nothing for `--lf` where tests failed on other kernels only; pytest would run all tests again."""
        failed = set(cast("dict[str, bool]", cast("Any", config.cache).get("cache/lastfailed", {})))
        elsewhere = {
            item.nodeid.replace(kernel, other) for item in items for other in kernels if other != kernel
        }
        if failed & elsewhere and not failed.intersection(item.nodeid for item in items):
            config.hook.pytest_deselected(items=items[:])
            items.clear()

    def _mark(self, line: str) -> None:
        if self._control is not None:
            os.write(self._control, f"{line}\n".encode())

    def tell(self, line: str) -> None:
        """Have the host say a line to whoever watches."""
        self._mark(f"note {line}")

    def _await_answer(self) -> None:
        if self._control is not None and select.select([self._control], [], [], _ANSWER_SECONDS)[0]:
            os.read(self._control, 1)

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Generator[None, object, object]:
        """Tell the host which test runs and how long it may: the host holds the deadline, for a stuck kernel too.

        The test begins when the host has it, and with it all reports before: what this test does to the kernel cannot
        take them along.
        """
        self._mark(f"start {item.nodeid} {self._limit(item):g}")
        self._await_answer()
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
