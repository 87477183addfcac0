"""With PYTEST_DM_AGREE in the environment dm devices that a test removes are first held against dmsetup.

Its value is `kinds`: those that differ from all earlier ones in more than numbers, four of a test at the most; or `every`.

Tests marked `newest_kernel` are long and say little about a kernel: they run on the newest guest alone, or everywhere with
PYTEST_DM_EVERYWHERE.

A busy machine is no fault of a strategy: hypothesis' limits of time are off in all tests.

With PYTEST_DM_SUPPORT what the kernel does for each test is noted in its JUnit properties: see tests/targets/witness.py.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings

settings.register_profile(
    "tests", max_examples=50, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("tests")

_COMPARE = os.environ.get("PYTEST_DM_AGREE", "")
if _COMPARE not in {"", "kinds", "every"}:
    raise ValueError(f"PYTEST_DM_AGREE is {_COMPARE!r}, not kinds or every")
_COMPARED = "dm_devices_compared"

_OLDER_GUEST = os.uname().release.startswith(("6.1.", "6.12."))


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "newest_kernel: left to the newest guest kernel in `make test`")


def _boots_guests(item: pytest.Item) -> bool:
    return item.path.parent.name == "vm"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=_boots_guests, reverse=True)  # the long ones first: what is left for the end is short
    if not _OLDER_GUEST or os.environ.get("PYTEST_DM_EVERYWHERE"):
        return
    left = pytest.mark.skip(reason="left to the newest kernel, and to make test-agree")
    for item in items:
        if item.get_closest_marker("newest_kernel"):
            item.add_marker(left)


if _COMPARE:

    @pytest.fixture(scope="session")
    def _agreement() -> Iterator[object]:
        from agreement import Agreement

        with Agreement(every=_COMPARE == "every") as agreement:
            yield agreement
        assert not agreement.take()[1], "devices of the session's end"

    @pytest.fixture(autouse=True)
    def _dmsetup_agrees(request: pytest.FixtureRequest, record_property) -> Iterator[None]:
        if request.node.get_closest_marker("dm") is None:
            yield
            return
        agreement = request.getfixturevalue("_agreement")
        yield
        compared, differences = agreement.take()
        record_property(_COMPARED, compared)
        assert not differences, "dmsetup and dmcore differ:\n" + "\n\n".join(differences)


if os.environ.get("PYTEST_DM_SUPPORT"):

    @pytest.fixture(scope="session")
    def _witness() -> Iterator[object]:
        from witness import Witness

        with Witness() as witness:
            yield witness

    @pytest.fixture(autouse=True)
    def _notes(request: pytest.FixtureRequest, record_property) -> Iterator[None]:
        if request.node.get_closest_marker("dm") is None:
            yield
            return
        from witness import PROPERTY

        witness = request.getfixturevalue("_witness")
        yield
        record_property(PROPERTY, witness.take())


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if not _COMPARE or hasattr(terminalreporter.config, "workerinput"):
        return
    reports = [
        report
        for outcome in ("passed", "failed", "error", "")
        for report in terminalreporter.getreports(outcome)
        if isinstance(report, pytest.TestReport) and report.when == "teardown"
    ]
    compared = sum(value for report in reports for key, value in report.user_properties if key == _COMPARED)
    terminalreporter.write_line(f"{compared} dm devices were compared with what dmsetup says of them")
