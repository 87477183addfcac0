"""Who holds a block device open, as far as /sys and /proc tell."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from dmcore.abi.devt import DevT

__all__ = ["holders"]

_MOST = 10


def holders(dev: DevT) -> list[str]:
    """Return up to ten holders of `dev`: devices above, mounts, swap, loop devices, processes of this pid namespace.

    Best effort: what cannot be read (other namespaces, other users' processes) is left out.
    """
    found: list[str] = []
    for search in (_above, _mounts, _swaps, _loops, _processes):
        try:
            found += search(dev)
        except OSError as error:
            found.append(f"({search.__name__.strip('_')} cannot be read: {error.strerror})")
    return found[:_MOST]


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace").strip()


def _is_dev(path: str | Path, dev: DevT) -> bool:
    try:
        found = Path(path).stat()
    except OSError:
        return False
    return stat.S_ISBLK(found.st_mode) and found.st_rdev == dev.rdev


def _above(dev: DevT) -> Iterator[str]:
    folder = Path(f"/sys/dev/block/{dev}/holders")
    for holder in sorted(folder.iterdir()) if folder.exists() else ():
        name = holder / "dm" / "name"
        yield f"device {holder.name}" + (f" ({_text(name)})" if name.exists() else "")


def _mounts(dev: DevT) -> Iterator[str]:
    for line in _text(Path("/proc/self/mountinfo")).splitlines():
        fields = line.split()
        source = fields[fields.index("-") + 2]
        if fields[2] == str(dev) or (source.startswith("/") and _is_dev(source, dev)):
            yield f"mounted at {fields[4]}"


def _swaps(dev: DevT) -> Iterator[str]:
    swaps = Path("/proc/swaps")
    for line in _text(swaps).splitlines()[1:] if swaps.exists() else ():
        if _is_dev(line.split()[0], dev):
            yield "used as swap"


def _loops(dev: DevT) -> Iterator[str]:
    for backing in Path("/sys/block").glob("loop*/loop/backing_file"):
        if _is_dev(_text(backing), dev):
            yield f"backing of /dev/{backing.parent.parent.name}"


def _processes(dev: DevT) -> Iterator[str]:
    for process in Path("/proc").glob("[0-9]*"):
        try:
            with os.scandir(process / "fd") as entries:
                holds = any(_is_dev(entry.path, dev) for entry in entries)
            if holds:
                yield f"process {process.name} ({_text(process / 'comm')})"
        except (PermissionError, FileNotFoundError, ProcessLookupError):
            continue
