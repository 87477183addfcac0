"""Removes what dead processes of ours left: mounts, dm devices, nodes, loop devices, folders, udev cookies. Nothing else."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import tempfile
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from dmcore.abi.loop import LoopCommand
from dmcore.errors import DeviceMissing, DmError
from dmcore.kernel import nodes, udev
from dmcore.kernel.control import Control, Uuid
from dmcore.kernel.device import Device
from dmcore.kernel.mount import mounts, unmount
from dmcore.owner import PREFIX, UUID_PREFIX, Owner
from dmvm.exchange import roots
from pytest_dm.runtime import KEPT, backing_roots

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["Leftover", "clean", "find", "sweep"]

_PATIENCE = 1.0
"""Seconds for a device that is busy: its owner is dead, so that somebody looks at it."""


@dataclass(frozen=True, slots=True)
class Leftover:
    """Something of ours whose owner is gone.

    Attributes:
        what: "mount", "device", "node", "loop device", "udev cookie" or "folder".
        name: Which.
        remove: Removes it; raises DmError or OSError if it cannot.
    """

    what: str
    name: str
    remove: Callable[[], None]

    def __str__(self) -> str:
        return f"{self.what} {self.name}"


def _dead(text: str) -> bool:
    owner = Owner.find(text)
    return owner is not None and not owner.alive()


def _folders() -> Iterator[Path]:
    # In a guest the folder shared with the host has the host's process in its name, which no guest sees alive.
    exchange = Path(os.environ.get("PYTEST_DM_EXCHANGE") or "/nowhere")
    for root in dict.fromkeys((*backing_roots(), Path(tempfile.gettempdir()), *roots())):
        for path in sorted(root.glob(f"{PREFIX}-*")):
            if (
                path.is_dir()
                and not path.is_symlink()
                and path.stat().st_uid == os.geteuid()
                and _dead(path.name)
                and not exchange.is_relative_to(path)
            ):
                yield path


def _remove(control: Control, uuid: str) -> None:
    with contextlib.suppress(DeviceMissing):  # gone is what it was to be
        Device.find(control, Uuid(uuid)).remove(timeout=_PATIENCE)


def _mounts(folders: list[Path]) -> Iterator[Leftover]:
    if not folders:
        return
    for mounted in reversed(list(mounts())):
        if any(mounted.target.is_relative_to(folder) for folder in folders):
            yield Leftover("mount", str(mounted.target), partial(unmount, mounted.target, lazy=True))


def _below(control: Control, uuid: str) -> set[str]:
    """Return the devices below one, its live table's and its staged one's: a kill can come before the resume.

    None if it went meanwhile (its removal had been put off until its last close).
    """
    try:
        return {str(dev) for inactive in (False, True) for dev in control.deps(Uuid(uuid), inactive=inactive)}
    except DeviceMissing:
        return set()


def _devices(control: Control, spared: set[Owner]) -> Iterator[Leftover]:
    """Yield devices, those above before those below."""
    waiting = [
        entry
        for entry in control.list_devices(uuid_prefix=UUID_PREFIX)
        if _dead(entry.uuid) and Owner.find(entry.uuid) not in spared
    ]
    below = {entry.uuid: _below(control, entry.uuid) for entry in waiting}
    while waiting:
        used = {dev for entry in waiting for dev in below[entry.uuid]}
        free = [entry for entry in waiting if str(entry.dev) not in used] or waiting
        for entry in free:
            yield Leftover("device", entry.name, partial(_remove, control, entry.uuid))
        waiting = [entry for entry in waiting if entry not in free]


def _free_loop(node: Path) -> None:
    with node.open("rb", buffering=0) as file, contextlib.suppress(FileNotFoundError):
        fcntl.ioctl(file, LoopCommand.CLR_FD)


def _loops(folders: list[Path]) -> Iterator[Leftover]:
    if not folders:
        return
    for shown in sorted(Path("/sys/block").glob("loop*/loop/backing_file")):
        try:
            backing = Path(shown.read_text(encoding="utf-8", errors="surrogateescape").rstrip("\n"))
        except OSError:  # unbound while we looked
            continue
        if any(backing.is_relative_to(folder) for folder in folders):
            node = Path("/dev") / shown.parent.parent.name
            yield Leftover("loop device", str(node), partial(_free_loop, node))


def _nodes(control: Control) -> Iterator[Leftover]:
    """Yield nodes whose device is gone: their owner was killed between the two."""
    found = sorted(nodes.FOLDER.glob(f"{PREFIX}-*"))
    if not found:
        return
    there = {entry.name for entry in control.list_devices(PREFIX)}
    for path in found:
        if path.name not in there and (path.is_block_device() or path.is_symlink()):
            yield Leftover("node", str(path), partial(path.unlink, missing_ok=True))


def _cookies() -> Iterator[Leftover]:
    for semaphore in udev.abandoned():
        yield Leftover("udev cookie", f"{semaphore.key:#x}", semaphore.remove)


def _control() -> Control | None:
    """Return the control node, None where this process cannot have any device."""
    if os.geteuid() != 0:
        return None
    try:
        return Control()
    except (DmError, OSError):
        return None


def find(control: Control | None, *, kept: bool = True) -> Iterator[Leftover]:
    """Yield what is left of dead owners, in the order in which it can be removed.

    Args:
        control: The control node; None to look for folders only.
        kept: Also what `--dm-keep` left on purpose.
    """
    folders = list(_folders())
    if not kept:
        spared = [folder for folder in folders if (folder / KEPT).exists()]
        folders = [folder for folder in folders if folder not in spared]
    else:
        spared = []
    if control is not None:
        yield from _mounts(folders)
        yield from _devices(control, {owner for folder in spared if (owner := Owner.find(folder.name))})
        yield from _nodes(control)
        yield from _loops(folders)
        yield from _cookies()
    for folder in folders:
        yield Leftover("folder", str(folder), partial(shutil.rmtree, folder))


def sweep(control: Control) -> list[str]:
    """Remove what a killed session left, but not what `--dm-keep` did; returns what could not be removed, and why."""
    problems: list[str] = []
    for leftover in find(control, kept=False):
        try:
            leftover.remove()
        except (DmError, OSError) as error:
            problems.append(f"{leftover}: {error}")
    return problems


def clean(say: Callable[[str], None], *, dry_run: bool = False) -> int:
    """Remove everything that `find` finds, going on past failures.

    Args:
        say: Told one line for each thing.
        dry_run: Only say what would be removed.

    Returns:
        How many things could not be removed.
    """
    failures = 0
    count = 0
    with contextlib.ExitStack() as stack:
        control = _control()
        if control is not None:
            stack.enter_context(control)
        for leftover in find(control):
            count += 1
            if dry_run:
                say(f"would remove {leftover}")
                continue
            try:
                leftover.remove()
            except (DmError, OSError) as error:
                failures += 1
                say(f"cannot remove {leftover}: {error}")
            else:
                say(f"removed {leftover}")
    if not count:
        say("nothing of ours is left behind")
    return failures
