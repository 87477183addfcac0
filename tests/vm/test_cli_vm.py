"""`pytest-dm vm run` as a person uses it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest


def vm_run(*arguments: str, folder: Path, timeout: float = 120) -> subprocess.CompletedProcess[str]:
    code = "import sys; from pytest_dm.cli import main; sys.exit(main())"
    return subprocess.run(
        [sys.executable, "-c", code, "vm", "run", "--kernel", "uml-6.1", *arguments],
        capture_output=True, text=True, timeout=timeout, check=False, stdin=subprocess.DEVNULL,
        env={**os.environ, "TMPDIR": str(folder)},
    )  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def kernel_is_there(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Let the first run fetch the kernel, and say so: those that follow say nothing of their own."""
    assert vm_run("true", folder=tmp_path_factory.mktemp("fetched"), timeout=600).returncode == 0


@pytest.mark.parametrize(
    ("command", "status", "said"),
    [
        ("exit 37", 37, ""),
        ("kill -9 $$", 137, ""),
        (
            "echo c > /proc/sysrq-trigger",
            125,
            "pytest-dm: the guest is lost: Kernel panic - not syncing: sysrq triggered crash (--exchange=DIR keeps its console.log)\n",
        ),
    ],
)
def test_how_it_ended(tmp_path: Path, command: str, status: int, said: str) -> None:
    done = vm_run("--", "sh", "-c", command, folder=tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (status, "", said)
    assert list(tmp_path.iterdir()) == []


def test_the_temporary_folder_may_have_any_name(tmp_path: Path) -> None:
    folder = tmp_path / "it's mine, too"
    folder.mkdir()
    done = vm_run("echo", "hello", folder=folder)
    assert (done.returncode, done.stdout, done.stderr) == (0, "hello\n", "")
    assert list(folder.iterdir()) == []
