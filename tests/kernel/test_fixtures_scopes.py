"""The factory's end: everything goes, whatever happened; and what it is like in sessions, scopes and under @given."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dmcore.errors import IoctlError, LeakError, SpecError
from pytest_dm.backend import Backend

KIB = 1 << 10
pytestmark = pytest.mark.dm(size="1M")


def ours(dm_backend):
    """Return what of ours is there."""
    control = dm_backend.runtime.control
    devices = {entry.name for entry in control.list_devices(uuid_prefix="PYTESTDM-")}
    loops = {
        path.read_text()
        for path in Path("/sys/block").glob("loop*/loop/backing_file")
        if "pytest-dm" in path.read_text()
    }
    mounts = {
        line.split()[1] for line in Path("/proc/mounts").read_text().splitlines() if "pytest-dm" in line
    }
    return devices, loops, mounts, set(dm_backend.runtime.folder.iterdir())


@pytest.fixture
def before(dm_backend):
    return ours(dm_backend)


def test_a_scope_ends(dm, dm_backend, before):
    with dm.scope() as scope:
        disk = scope.loop()
        above = scope.flakey(scope.linear(scope.dust(disk)))
        above.fail(reads=True)
        assert ours(dm_backend) != before
    assert ours(dm_backend) == before
    assert list(dm.resources()) == []


def test_a_scope_ends_after_a_failure(dm, dm_backend, before):
    def use(scope):
        scope.flakey(size="16M").fail()
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), dm.scope() as scope:
        use(scope)
    assert ours(dm_backend) == before
    assert any("flakey" in line for line in dm.post_mortem)


@given(data=st.binary(min_size=1, max_size=64), fail=st.booleans())
@settings(max_examples=10, deadline=None)
def test_under_given(dm_session, data, fail):
    with dm_session.scope() as dm:
        disk = dm.flakey(size="64K")
        block = data.ljust(512, b"\0")
        if fail:
            with disk.fail(writes=True), pytest.raises(OSError, match="Input/output"):
                disk.write(0, block)
            assert disk.read(0, 512) == bytes(512)
        else:
            disk.write(0, block)
            assert disk.read(0, 512) == block


@pytest.fixture(scope="module")
def shared(dm_session):
    return dm_session.linear(size="1M", start=0)


def test_a_device_of_the_session(shared):
    shared.write(0, b"x" * 512)


def test_is_there_in_the_next_test(shared):
    assert shared.read(0, 512) == b"x" * 512


def test_an_open_file_delays_the_end_and_is_named(dm, dm_backend, before, monkeypatch):
    monkeypatch.delattr("sys.last_value", raising=False)
    scope = type(dm)(dm.runtime, dm.wants)
    device = scope.linear()
    fd = os.open(device.path, os.O_RDONLY)
    remove = device.device.remove
    monkeypatch.setattr(device.device, "remove", lambda **given: remove(**{**given, "timeout": 0.1}))
    try:
        with pytest.raises(ExceptionGroup) as failed:
            scope.close()
    finally:
        os.close(fd)
    deadline = time.monotonic() + 10
    while ours(dm_backend) != before and time.monotonic() < deadline:
        time.sleep(0.01)  # the kernel removes it at the last close, in its own time
    assert ours(dm_backend) == before
    busy, leak = failed.value.exceptions
    assert isinstance(busy, IoctlError)
    assert str(os.getpid()) in busy.detail
    assert isinstance(leak, LeakError)
    assert device.name in str(leak)


def test_the_end_goes_on_past_failures(dm, dm_backend, before, monkeypatch):
    scope = type(dm)(dm.runtime, dm.wants)
    first, second = scope.zero(), scope.linear()

    def broken():
        raise OSError(5, "broken")

    monkeypatch.setattr(first, "close", broken)
    with pytest.raises(ExceptionGroup) as failed:
        scope.close()
    assert [type(error) for error in failed.value.exceptions] == [OSError, LeakError]
    assert first.name in str(failed.value.exceptions[1])
    assert second.name not in str(failed.value.exceptions[1])
    monkeypatch.undo()
    first.close()
    assert ours(dm_backend) == before


def test_ctrl_c_waits_until_the_rest_is_removed(dm, dm_backend, before, monkeypatch):
    scope = type(dm)(dm.runtime, dm.wants)
    scope.linear()
    last = scope.zero()
    close = last.close

    def interrupted():
        close()
        raise KeyboardInterrupt

    monkeypatch.setattr(last, "close", interrupted)
    with pytest.raises(KeyboardInterrupt):
        scope.close()
    assert ours(dm_backend) == before


def test_closing_early(dm, dm_backend):
    disk = dm.loop()
    before = ours(dm_backend)
    device = dm.linear(disk)
    device.close()
    device.close()
    assert ours(dm_backend) == before


@pytest.mark.dm(needs="kernel")
def test_the_backend_says_what_runs_where(dm_backend):
    assert isinstance(dm_backend, Backend)
    assert dm_backend.kind == "kernel"
    assert dm_backend.release == os.uname().release
    assert dm_backend.version[0] == 4
    assert dm_backend.target_version("flakey") >= (1, 5, 0)
    assert "flakey" in dm_backend.targets
    assert dm_backend.has("linear")
    assert dm_backend.has("mkfs.ext4")
    assert not dm_backend.has("no-such-program")
    assert dm_backend.has("dm-flakey.error_reads") is dm_backend.has("flakey.error_reads")
    with pytest.raises(SpecError, match=r"no such feature; there are: .*flakey\.error_reads"):
        dm_backend.has("flakey.eror_reads")
    with pytest.raises(SpecError, match="there are: none"):
        dm_backend.has("linear.magic")
    assert dm_backend.has("flakey.error_reads") is not dm_backend.release.startswith("6.1.")


@pytest.mark.dm(needs=("flakey", "dust", "mkfs.ext4"))
def test_needs_that_are_met(dm_backend):
    assert dm_backend.has("dust")
