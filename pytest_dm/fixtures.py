"""The fixtures. dmcore comes in when the first of them is used."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

import pytest

from pytest_dm import backend, reporting
from pytest_dm.markers import Wants
from pytest_dm.options import Options

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pytest_dm import devices
    from pytest_dm.backend import Backend
    from pytest_dm.crash.session import DmCrash
    from pytest_dm.devices.base import Disk
    from pytest_dm.differential.pair import Pair
    from pytest_dm.factory import Dm

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

T = TypeVar("T", bound="Disk")


def _ready(dm: Dm, device: T) -> T:
    """Put the marker's file system on a device and mount it."""
    if dm.wants.filesystem is not None:
        dm.mkfs(device, dm.wants.filesystem)
        dm.mount(device, fs=dm.wants.filesystem)
    return device


@pytest.fixture(scope="session")
def dm_backend(pytestconfig: pytest.Config) -> Backend:
    """What runs where: kind, machine, kernel release, versions of the interface and the targets."""
    choice = backend.for_session(pytestconfig)
    if choice.kind == "none":
        backend.missing(Options.of(pytestconfig), f"needs device-mapper: {choice}")
    return backend.Backend(backend.runtime(pytestconfig))


def _node(request: pytest.FixtureRequest) -> object:
    return request.node  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType] - pytest leaves it untyped


def _factory(request: pytest.FixtureRequest, wants: Wants, here: Backend) -> Iterator[Dm]:
    from pytest_dm.factory import Dm  # noqa: PLC0415 - only where a test needs a device

    runtime = here.runtime
    node = _node(request)
    dm = Dm(runtime, wants)
    runtime.roots.append(dm)
    try:
        yield dm
    finally:
        runtime.roots.remove(dm)
        if isinstance(node, pytest.Item) and reporting.keeps(node):
            dm.keep()
        else:
            dm.close()


@pytest.fixture
def dm(request: pytest.FixtureRequest, dm_backend: Backend) -> Iterator[Dm]:
    """Factory of devices; all it made is removed at the end of the test, newest first."""
    node = _node(request)
    assert isinstance(node, pytest.Item)
    yield from _factory(request, Wants.of(node), dm_backend)


@pytest.fixture(scope="session")
def dm_session(request: pytest.FixtureRequest, dm_backend: Backend) -> Iterator[Dm]:
    """Factory whose devices live until the end of the session; `dm_session.scope()` works under @given."""
    yield from _factory(request, Wants(), dm_backend)


@pytest.fixture
def dm_loop(dm: Dm) -> devices.Loop:
    """A plain disk: a loop device on a sparse file."""
    return _ready(dm, dm.loop())


@pytest.fixture
def dm_linear(dm: Dm) -> devices.Linear:
    """A dm device that passes everything through to a disk of its own."""
    return _ready(dm, dm.linear())


@pytest.fixture
def dm_zero(dm: Dm) -> devices.Zero:
    """A device that reads zeros and swallows writes."""
    return _bare(dm, "dm_zero", dm.zero())


@pytest.fixture
def dm_error(dm: Dm) -> devices.ErrorDevice:
    """A device whose every read and write fails with EIO."""
    return _bare(dm, "dm_error", dm.error())


@pytest.fixture
def dm_flakey(dm: Dm) -> devices.Flakey:
    """A device that fails, drops or corrupts on command."""
    return _ready(dm, dm.flakey())


@pytest.fixture
def dm_dust(dm: Dm) -> devices.Dust:
    """A device with a list of bad blocks; empty and disabled at first."""
    return _ready(dm, dm.dust())


@pytest.fixture
def dm_delay(dm: Dm) -> devices.Delay:
    """A device that answers late on command; at once at first."""
    return _ready(dm, dm.delay())


@pytest.fixture
def dm_log_writes(dm: Dm) -> devices.LogWrites:
    """A device that logs every write to a second disk."""
    device = _ready(dm, dm.log_writes())
    if dm.wants.filesystem is not None:
        device.mark("mkfs")
    return device


@pytest.fixture
def dm_crash(request: pytest.FixtureRequest, dm: Dm) -> DmCrash:
    """Records what a workload writes, and explores the states that a power cut could have left of it."""
    from pytest_dm.crash.session import DmCrash  # noqa: PLC0415 - only where a test records
    from pytest_dm.progress import teller  # noqa: PLC0415

    node = _node(request)
    assert isinstance(node, pytest.Item)
    options = Options.of(node.config)
    crash = DmCrash(
        dm, node.nodeid, options.crash,
        artifacts=reporting.artifacts(node.config), shown=options.artifacts, tell=teller(node.config),
    )  # fmt: skip
    reporting.explored(node, crash.results)
    return crash


@pytest.fixture
def dm_pair(request: pytest.FixtureRequest, dm: Dm, dm_backend: Backend) -> Iterator[Pair]:
    """The same stack on the kernel and on the models of its targets: runs scripts on both and tells what differs."""
    from pytest_dm.differential.pair import Pair  # noqa: PLC0415 - only where a test compares

    lacking = dm_backend.lacks("kernel")
    if lacking is not None:
        raise lacking
    node = _node(request)
    assert isinstance(node, pytest.Item)
    pair = dm.hold(
        Pair(dm_backend.runtime, examples=Options.of(node.config).examples, root=node.config.rootpath)
    )
    yield pair
    node.user_properties.extend(pair.properties())


def _bare(dm: Dm, fixture: str, device: T) -> T:
    if dm.wants.filesystem is not None:
        pytest.fail(f"{fixture} cannot hold a file system ({dm.wants.filesystem})", pytrace=False)
    return device
