"""Block devices in memory that the module null_blk makes, set up through configfs."""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from dmcore.kernel.mount import mount

_CONFIG = Path("/sys/kernel/config")
_MODPROBE = "/run/pytest-dm/modprobe"
_numbers = itertools.count()


def _load(module: str, *options: str) -> None:
    tool = _MODPROBE if Path(_MODPROBE).exists() else "modprobe"
    run = subprocess.run([tool, module, *options], capture_output=True, text=True, timeout=60, check=False)
    if run.returncode:
        pytest.skip(f"this kernel has no module {module}: {run.stderr.strip()}")


@contextlib.contextmanager
def null_block(**attributes: int) -> Iterator[Path]:
    """Make one that keeps what is written, with attributes of null_blk; sizes in MiB."""
    _load("configfs")
    _load("null_blk", "nr_devices=0")
    if not (_CONFIG / "nullb").exists():
        try:
            mount("none", _CONFIG, "configfs")
        except OSError as error:
            if error.errno != errno.EBUSY:
                raise
    name = f"dmcore{os.getpid()}-{next(_numbers)}"
    folder = _CONFIG / "nullb" / name
    folder.mkdir()
    try:
        for key, value in {"memory_backed": 1, "blocksize": 512, **attributes}.items():
            (folder / key).write_text(str(value))
        (folder / "power").write_text("1")
        number = int((folder / "index").read_text())
        found = [Path(f"/dev/{node}") for node in (f"nullb{number}", name)]
        yield next(path for path in found if path.exists())
    finally:
        (folder / "power").write_text("0")
        folder.rmdir()
