"""KernelRuntime: tests' devices are a kernel's."""

from __future__ import annotations

import os
import stat
import time
from pathlib import Path
from typing import TYPE_CHECKING

from dmcore.errors import DmError, SpecError
from dmcore.kernel.block import BlockFile
from dmcore.kernel.control import Control
from dmcore.kernel.device import Device
from dmcore.kernel.loop import LoopDevice
from dmcore.kernel.mount import mounts
from dmcore.kernel.probe import require
from dmcore.owner import UUID_PREFIX
from dmcore.ref import Ref
from pytest_dm.runtime import Runtime

if TYPE_CHECKING:
    from collections.abc import Mapping

    from dmcore.table import Table
    from dmcore.target import Features, Requirement, Target
    from pytest_dm.devices.base import Disk
    from pytest_dm.devices.loop import Loop

__all__ = ["KernelRuntime"]


def _number(node: Path) -> int | None:
    try:
        return node.stat().st_rdev
    except OSError:  # a source that is gone is not ours, whose node is there
        return None


class KernelRuntime(Runtime):
    """The kernel as tests use it."""

    kind = "kernel"

    def __init__(self) -> None:
        super().__init__()
        self._control = Control()
        self.log = self._control.log

    @property
    def control(self) -> Control:
        """The control node."""
        return self._control

    def create(self, name: str, uuid: str, table: Table, devices: Mapping[str, str] | None) -> Device:
        """Create a dm device, load its table and resume it."""
        return Device.create(self._control, name, table, uuid=uuid, devices=devices)

    def attach(self, backing: Path, *, block_size: int, readonly: bool, direct_io: bool) -> LoopDevice:
        """Make a loop device."""
        return LoopDevice.attach(backing, block_size=block_size, readonly=readonly, direct_io=direct_io)

    def bound(self, loop: Loop) -> bool:
        """Whether the kernel still has this loop device on our file, whoever holds it."""
        shown = Path(f"/sys/block/{loop.name}/loop/backing_file")
        try:
            text = shown.read_text(encoding="utf-8", errors="surrogateescape")
        except OSError:
            return False
        return text.rstrip("\n").removesuffix(" (deleted)") == str(loop.backing)

    def node(self, disk: Disk) -> Path:
        """Return the node."""
        path = getattr(disk.bare, "path", None)
        assert isinstance(path, Path)
        return path

    def open(self, disk: Disk, *, direct: bool, readonly: bool, synchronous: bool) -> BlockFile:
        """Open the node."""
        return BlockFile(disk.path, direct=direct, readonly=readonly, synchronous=synchronous)

    def device_word(self, name: str, device: Ref | str | Path) -> str:
        """Return the number of a loop or dm device."""
        word = device.name if isinstance(device, Ref) else str(device)
        if not Ref(word).is_number:
            try:
                status = Path(word).stat()
            except OSError as error:
                raise SpecError(
                    name, word, f"no such block device ({error.strerror}); name it in devices="
                ) from error
            if not stat.S_ISBLK(status.st_mode):
                raise SpecError(name, word, "not a block device")
            word = f"{os.major(status.st_rdev)}:{os.minor(status.st_rdev)}"
        kind = Path("/sys/dev/block") / word
        if not ((kind / "loop").exists() or (kind / "dm").exists()):
            raise SpecError(
                name, word, "neither a loop nor a dm device: it may be a real disk, which tests do not touch"
            )
        return word

    def require(self, need: Requirement) -> None:
        """Raise Unsupported for what the kernel lacks."""
        require(self._control, need)

    def require_mounts(self) -> None:
        """Do nothing: a kernel mounts."""

    def check_unmounted(self, disk: Disk) -> None:
        """Raise DmError if somebody has the disk mounted."""
        number = disk.path.stat().st_rdev
        for mounted in mounts():
            if mounted.source.startswith("/dev/") and _number(Path(mounted.source)) == number:
                message = (
                    f"{disk.path} is still mounted on {mounted.target}; unmount it before the power is back"
                )
                raise DmError(message)

    def left(self, names: set[str], mountpoints: set[Path]) -> list[str]:
        """Return which of these dm devices and mounts are there."""
        found: list[str] = []
        if names:
            prefix = f"{UUID_PREFIX}{self.owner.tag}-"
            listed = {entry.name for entry in self._control.list_devices(uuid_prefix=prefix)}
            found += [f"device {name}" for name in sorted(names & listed)]
        if mountpoints:
            found += [f"mount {mounted.target}" for mounted in mounts() if mounted.target in mountpoints]
        return found

    def features(self, *kinds: type[Target]) -> Features:
        """Return what this kernel's targets of these kinds (all without any) can do; each is probed once."""
        from dmcore.kernel.probe import features  # noqa: PLC0415 - probing loads tables

        return features(self._control, kinds or None)

    def target_version(self, name: str) -> tuple[int, int, int]:
        """Return a target's version, loading its module."""
        return self._control.target_version(name)

    def monotonic(self) -> float:
        """Return the wall clock's seconds."""
        return time.monotonic()

    def sleep(self, seconds: float) -> None:
        """Wait."""
        time.sleep(seconds)

    def close(self) -> None:
        """Close the control node and remove the folder, unless a failed test's devices were kept."""
        self._control.close()
        super().close()
