"""Hooks of the plugin; each calls the module that does the work."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from pytest_dm import auto_vm, backend, markers, reporting
from pytest_dm.fixtures import (
    dm,
    dm_backend,
    dm_crash,
    dm_delay,
    dm_dust,
    dm_error,
    dm_flakey,
    dm_linear,
    dm_log_writes,
    dm_loop,
    dm_pair,
    dm_session,
    dm_zero,
)
from pytest_dm.options import Options, add_options

if TYPE_CHECKING:
    from collections.abc import Generator

__all__ = [
    "dm",
    "dm_backend",
    "dm_crash",
    "dm_delay",
    "dm_dust",
    "dm_error",
    "dm_flakey",
    "dm_linear",
    "dm_log_writes",
    "dm_loop",
    "dm_pair",
    "dm_session",
    "dm_zero",
]


def _is_worker(config: pytest.Config) -> bool:
    return hasattr(config, "workerinput")


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add `--dm-*` and their ini twins."""
    add_options(parser)


def pytest_cmdline_main(config: pytest.Config) -> None:
    """Make xdist distribute the session over guests, after it has read its own options."""
    options = Options.of(config)
    if options.wants_guests and not _is_worker(config) and not backend.in_guest():
        from pytest_dm import vm_session  # noqa: PLC0415 - only a session in guests pays for it

        vm_session.distribute(config, options)


def pytest_configure(config: pytest.Config) -> None:
    """Register the marker, and the part of the plugin that this process needs."""
    config.addinivalue_line("markers", markers.DESCRIPTION)
    options = Options.of(config)
    if _is_worker(config) and backend.in_guest():
        from pytest_dm import guest_worker  # noqa: PLC0415 - only in a guest

        config.pluginmanager.register(
            guest_worker.GuestWorker(config, options.timeout), guest_worker.PLUGIN_NAME
        )
    elif options.wants_guests and not _is_worker(config) and not backend.in_guest():
        from pytest_dm import vm_session  # noqa: PLC0415 - only a session in guests pays for it

        config.pluginmanager.register(vm_session.VmSession(config, options), vm_session.PLUGIN_NAME)
    elif options.backend == "auto" and not _is_worker(config) and not backend.in_guest():
        config.pluginmanager.register(auto_vm.AutoVm(config, options), auto_vm.PLUGIN_NAME)

    if options.report is not None and not _is_worker(config) and not backend.in_guest():
        from pytest_dm.crash.page import ReportPage  # noqa: PLC0415 - only a session that wants one pays for it

        config.pluginmanager.register(ReportPage(options.report), "dm-report-page")


@pytest.hookimpl(wrapper=True)
def pytest_pycollect_makeitem() -> Generator[None, Any, Any]:
    """Refuse a wrong marker at collection, and mark every test that uses our fixtures."""
    made = yield
    markers.check(made)
    return made


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark every test that asks for our fixtures, so that `-m dm` finds all that need a kernel."""
    for item in items:
        if item.get_closest_marker("dm") is None and markers.uses_dm(item):
            item.add_marker("dm")


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip a test that this machine cannot run; remember where the kernel log was."""
    if markers.uses_dm(item):
        backend.check(item)
        reporting.begin(item)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Turn what this machine cannot do into a skip; show the devices of a failed test while they are there."""
    if markers.uses_dm(item):
        backend.skip_unsupported(item.config, call)
    report = yield
    if markers.uses_dm(item):
        reporting.add_explorations(item, report)
        if report.failed:
            reporting.add_sections(item, report)
    return report


def pytest_report_header(config: pytest.Config) -> str | None:
    """Say where device-mapper tests run, when asked for details."""
    return reporting.header(config)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Say what `--dm-keep` left."""
    reporting.summarize(config, terminalreporter)
