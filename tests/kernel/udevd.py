"""A real udevd for a module's tests: this system's, or in a guest, where none runs, one of our own."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from dmcore.errors import Unsupported
from dmcore.kernel import udev
from pytest_dm.backend import in_guest

_PROGRAMS = ("/usr/lib/systemd/systemd-udevd", "/lib/systemd/systemd-udevd", "/sbin/udevd")


def _program() -> str:
    for path in _PROGRAMS:
        if os.access(path, os.X_OK):
            return path
    raise Unsupported("udevd", "there is no udevd on this machine", "apt-get install udev")


@contextlib.contextmanager
def running() -> Iterator[None]:
    """Have a udevd during the block, with the devices that were there before it known to it."""
    if udev.running():
        yield
        return
    if not in_guest():
        raise Unsupported(
            "udevd", "none runs here, and a machine that is not a guest gets none", "use --dm-vm"
        )
    Path("/run/udev").mkdir(exist_ok=True)
    with subprocess.Popen([_program()], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as daemon:
        try:
            deadline = time.monotonic() + 30
            while not udev.running():
                assert daemon.poll() is None, f"udevd ended with {daemon.returncode}"
                assert time.monotonic() < deadline, "udevd does not answer"
                time.sleep(0.01)
            subprocess.run(
                ["udevadm", "trigger", "--subsystem-match=block", "--settle"], check=True, timeout=120
            )
            yield
        finally:
            daemon.terminate()
            daemon.wait(30)
            shutil.rmtree("/run/udev")


@pytest.fixture(scope="module")
def udevd() -> Iterator[None]:
    """A udevd with device-mapper's rules."""
    with running():
        yield
