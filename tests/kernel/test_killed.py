"""SIGKILL at random moments of a stack's life: `pytest-dm clean`, or the next run, leaves nothing."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.dm, pytest.mark.newest_kernel]

CAMPAIGN = Path(__file__).parents[1] / "tools" / "kill_builds.py"


@pytest.mark.parametrize(("kills", "options"), [(20, []), (5, ["--udevd"])], ids=["bare", "udevd"])
def test_nothing_is_left(kills, options):
    """The whole thing, 200 kills, is the same command with another number."""
    done = subprocess.run(
        [sys.executable, str(CAMPAIGN), str(kills), *options],
        check=False,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    assert f"{kills} kills within" in done.stdout
