"""ModelRuntime: tests' devices are models, on files of ours, in virtual time. No kernel, no root."""

from __future__ import annotations

from typing import TYPE_CHECKING, NoReturn

from dmcore.errors import SpecError, Unsupported
from dmcore.model.clock import Clock
from dmcore.model.registry import modelled
from dmcore.ref import Ref
from dmcore.registry import find
from pytest_dm.model.device import Devices, DmModel, LoopModel
from pytest_dm.model.file import ModelFile
from pytest_dm.runtime import Runtime

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from dmcore.table import Table
    from dmcore.target import Features, Requirement, Target
    from pytest_dm.devices.base import Disk
    from pytest_dm.devices.log_writes import LogWrites
    from pytest_dm.devices.loop import Loop

__all__ = ["ModelRuntime"]

_HINT = "pytest --dm-vm"


def _all_features() -> Features:
    kinds = filter(None, map(find, modelled()))
    return frozenset(name for kind in kinds for name in kind.features)


class _NoLog:
    """The log of no kernel."""

    def mark(self) -> int:
        return 0

    def since(self, mark: int, /) -> tuple[str, ...]:
        del mark
        return ()


class ModelRuntime(Runtime):
    """A machine of models, which are like the newest kernel.

    Attributes:
        devices: What is there.
    """

    kind = "model"

    def __init__(self) -> None:
        super().__init__()
        self.log = _NoLog()
        self.devices = Devices(Clock(), _all_features())

    @property
    def control(self) -> NoReturn:
        """Raise Unsupported."""
        raise Unsupported("a kernel's device-mapper", "this is the model backend", _HINT)

    def create(self, name: str, uuid: str, table: Table, devices: Mapping[str, str] | None) -> DmModel:
        """Create a dm device, load its table and resume it."""
        with self.devices.lock:
            return DmModel.create(self.devices, name, uuid, table, devices)

    def attach(self, backing: Path, *, block_size: int, readonly: bool, direct_io: bool) -> LoopModel:
        """Make a disk of a file."""
        del direct_io
        if block_size > 4096:
            raise SpecError("block_size", block_size, "must be a power of two in 512..4096")
        return LoopModel(self.devices, backing, block_size=block_size, readonly=readonly)

    def bound(self, loop: Loop) -> bool:
        """Whether the disk is there."""
        return loop.ref.name in self.devices

    def node(self, disk: Disk) -> NoReturn:
        """Raise Unsupported."""
        del disk
        have = "the model backend has none; read(), write(), flush() ... of the device itself work everywhere"
        raise Unsupported("a block device node (path)", have, _HINT)

    def open(self, disk: Disk, *, direct: bool, readonly: bool, synchronous: bool) -> ModelFile:
        """Open a disk."""
        word = disk.ref.name
        return ModelFile(
            self.devices, word, disk.name, direct=direct, readonly=readonly, synchronous=synchronous
        )

    def device_word(self, name: str, device: Ref | str | Path) -> str:
        """Return the word of a device of this machine."""
        word = device.name if isinstance(device, Ref) else str(device)
        if word not in self.devices:
            raise SpecError(name, word, "no device of this test; name it in devices=")
        return word

    def require(self, need: Requirement) -> None:
        """Raise Unsupported for a target without a model."""
        self.target_version(need.target)

    def require_mounts(self) -> NoReturn:
        """Raise Unsupported."""
        raise Unsupported("a file system on a device", "the model backend has no mounts", _HINT)

    def check_unmounted(self, disk: Disk) -> None:
        """Do nothing: nothing is mounted."""

    def left(self, names: set[str], mountpoints: set[Path]) -> list[str]:
        """Return which of these dm devices are there."""
        del mountpoints
        return [f"device {name}" for name in sorted(names & self.devices.names)]

    def features(self, *kinds: type[Target]) -> Features:
        """Return all features of these kinds of targets (all without any)."""
        if not kinds:
            return self.devices.features
        return frozenset(name for kind in kinds for name in kind.features)

    def target_version(self, name: str) -> tuple[int, int, int]:
        """Return 0.0.0 for a target that has a model."""
        if name not in modelled():
            have = f"the model backend has {', '.join(modelled())}"
            raise Unsupported(f"the target {name}", have, _HINT)
        return 0, 0, 0

    def settle(self) -> None:
        """Do the background work of every device."""
        with self.devices.lock:
            self.devices.settle()

    def times_of_log(self, device: LogWrites) -> Sequence[tuple[int, int]]:
        """Return the model's own list."""
        from dmcore.model.targets.log_writes import MODEL  # noqa: PLC0415 - models are loaded as they are used

        bare = device.device
        assert isinstance(bare, DmModel)
        (target,) = bare.model.targets
        assert isinstance(target, MODEL)
        return target.times

    def monotonic(self) -> float:
        """Return the virtual time in seconds."""
        return self.devices.clock.now / 1000

    def sleep(self, seconds: float) -> None:
        """Let virtual time pass."""
        with self.devices.lock:
            self.devices.clock.advance(round(seconds * 1000))
