"""Build the wheel, install it in a clean venv in another folder, and run a stranger's tests in a guest from there."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent

STRANGER = """
import errno
import os

import dmcore
import pytest


def test_the_wheel_is_what_runs():
    assert "site-packages" in dmcore.__file__


def test_reports_a_failed_write(dm_flakey):
    dm_flakey.fail(writes=True)
    fd = os.open(dm_flakey.path, os.O_RDWR | os.O_SYNC)
    try:
        with pytest.raises(OSError) as caught:
            os.write(fd, bytes(4096))
        assert caught.value.errno == errno.EIO
    finally:
        os.close(fd)


def test_bad_block(dm_dust):
    dm_dust.add_bad(60)
    dm_dust.enable()
    with pytest.raises(OSError):
        dm_dust.read(60 * 512, 512)
"""


def run(*command: object, cwd: Path) -> None:
    print("+", *command, flush=True)
    environment = {
        key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "VIRTUAL_ENV")
    }
    subprocess.run([str(word) for word in command], check=True, cwd=cwd, timeout=600, env=environment)


def main() -> None:
    with tempfile.TemporaryDirectory(prefix="wheel-check-", dir=Path.home()) as name:
        folder = Path(name)
        run(sys.executable, "-m", "build", "--wheel", "--outdir", folder / "dist", ROOT, cwd=folder)
        (wheel,) = (folder / "dist").glob("*.whl")
        venv.create(folder / "venv", with_pip=True)
        python = folder / "venv" / "bin" / "python"
        run(python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", wheel, cwd=folder)
        test = folder / "test_stranger.py"
        test.write_text(STRANGER, encoding="utf-8")
        run(folder / "venv" / "bin" / "pytest", "--dm-vm", "-p", "no:cacheprovider", test, cwd=folder)
        run(folder / "venv" / "bin" / "pytest-dm", "vm", "list", cwd=folder)


if __name__ == "__main__":
    main()
