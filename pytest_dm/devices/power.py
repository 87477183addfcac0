"""A power cut, and the way back."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dmcore.errors import SpecError
from dmcore.table import Line, Table
from dmcore.targets import Delay, Dust, Error, Flakey, Linear, LogWrites, Zero

if TYPE_CHECKING:
    from types import TracebackType
    from typing import Self

    from pytest_dm.devices.base import DmDevice
    from pytest_dm.devices.mount import Mount

__all__ = ["PowerCut", "place"]


def place(line: Line) -> Line:
    """Return a linear, zero or error line for where the data of `line` lies.

    Raises:
        SpecError: The target does not keep sector n of the device at a sector of one device below.
    """
    target = line.target
    if isinstance(target, Linear | Zero | Error):
        return line
    if isinstance(target, Flakey | Dust):
        return Line(line.start, line.length, Linear(dev=target.dev, offset=target.offset))
    if isinstance(target, LogWrites):
        return Line(line.start, line.length, Linear(dev=target.dev, offset=line.start))
    if isinstance(target, Delay):
        write = target.write or target.read
        if (target.read.dev, target.read.offset) == (write.dev, write.offset):
            return Line(line.start, line.length, Linear(dev=write.dev, offset=write.offset))
    reason = "its data cannot be held back from here; put dm.linear(device) above it and cut the power there"
    raise SpecError("power_cut", target.kernel_name, reason)


def _without_power(line: Line) -> Line:
    if not isinstance(line.target, Linear):
        return line
    dev, offset = line.target.dev, line.target.offset
    return Line(line.start, line.length, Flakey(dev=dev, offset=offset, up=0, down=1, drop_writes=True))


class PowerCut:
    """A device without power; `restore` brings it back. As a `with` block, it restores at the end.

    While it is off, stop what runs above: close files, kill the program. `restore` then does what a machine does that
    comes up again: our mounts of the device that are still there are unmounted (what they write goes nowhere), the
    node's page cache is dropped, the device gets back the table it had, and those mounts are mounted again, so that the
    file system recovers. A mount that you unmounted inside the block stays unmounted, for a look with fsck first.

    Nothing that was written after the cut is ever seen on the device. If something above cannot be stopped (a mount
    with open files, somebody else's mount), `restore` fails and the device stays off.
    """

    def __init__(self, device: DmDevice) -> None:
        self.device = device
        self._off = True
        device.cut_off(Table(_without_power(line) for line in device.places()))

    def restore(self) -> None:
        """Bring the power back; a second call does nothing.

        Raises:
            IoctlError: A mount of ours is busy: files on it are open.
            DmError: Somebody else has mounted the device.
        """
        if not self._off:
            return
        again: list[Mount] = [mount for mount in self.device.mounts if mount.mounted]
        for mount in reversed(again):
            mount.unmount()
        self.device.runtime.check_unmounted(self.device)
        with self.device.open(direct=False) as file:
            file.drop_caches()
        self.device.bring_back()
        self._off = False
        for mount in again:
            mount.mount()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.restore()
