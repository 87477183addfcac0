"""Multipath: one disk behind several paths that fail and come back."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dmcore import targets
from dmcore.errors import SpecError
from dmcore.kernel.control import probe_paths
from dmcore.table import Table
from dmcore.targets.multipath import (
    DisableGroup,
    EnableGroup,
    FailIfNoPath,
    FailPath,
    Group,
    MultipathStatus,
    Path,
    QueueIfNoPath,
    QueueMode,
    ReinstatePath,
    Selector,
    SwitchGroup,
)
from dmcore.units import SECTOR
from pytest_dm.devices.base import DmDevice
from pytest_dm.devices.waiting import kernel_word, state_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pytest_dm.devices.base import Disk
    from pytest_dm.devices.flakey import Flakey
    from pytest_dm.factory import Dm

__all__ = ["Multipath"]


class Multipath(DmDevice):
    """A disk with several ways to it: `paths[n].fail()` breaks one, and the kernel finds out at the next request.

    Attributes:
        lower: The disk behind the paths.
        paths: The ways, healthy at first, with the verbs of `flakey`; groups after groups.
    """

    def __init__(
        self,
        maker: Dm,
        lower: Disk,
        groups: Sequence[Sequence[Flakey]],
        *,
        selector: Selector | str,
        queue_if_no_path: bool,
    ) -> None:
        self.paths = tuple(path for group in groups for path in group)
        self._groups = len(groups)
        chooses = kernel_word("selector", Selector, selector)
        value = targets.Multipath(
            groups=tuple(Group(tuple(Path(path.ref) for path in group), chooses) for group in groups),
            queue_if_no_path=queue_if_no_path,
            queue_mode=QueueMode.BIO,
        )
        super().__init__(maker, Table.of(value, lower.size // SECTOR), label="multipath", lower=lower)

    @property
    def state(self) -> MultipathStatus:
        """What the kernel says of it: groups, paths, failures."""
        return state_of(self, MultipathStatus)

    @property
    def active(self) -> tuple[bool, ...]:
        """Whether the kernel takes each path for good, in the order of `paths`."""
        return tuple(path.active for path in self.state.paths)

    def fail_path(self, index: int) -> None:
        """Take a path out, as a path checker does; its I/O would still work."""
        self.device.send(FailPath(self._path(index).ref))

    def reinstate_path(self, index: int) -> None:
        """Take a path back in, as a path checker does; `paths[index].heal()` if it was broken."""
        self.device.send(ReinstatePath(self._path(index).ref))

    def queue_if_no_path(self, queue: bool = True) -> None:  # noqa: FBT001, FBT002 - it reads as the kernel's word
        """Let I/O wait while there is no path left, or (False) fail with EIO, what waits now included."""
        self.device.send(QueueIfNoPath() if queue else FailIfNoPath())

    def switch_group(self, number: int) -> None:
        """Use another group, numbered from 1, from the next request on."""
        self.device.send(SwitchGroup(self._group(number)))

    def disable_group(self, number: int) -> None:
        """Use a group, numbered from 1, only if there is no other."""
        self.device.send(DisableGroup(self._group(number)))

    def enable_group(self, number: int) -> None:
        """End `disable_group`."""
        self.device.send(EnableGroup(self._group(number)))

    def probe_paths(self) -> None:
        """Let the kernel read from every active path of the current group, and take out those that fail.

        Raises:
            IoctlError: ENOTCONN if none is left; ENOTTY or EINVAL from a kernel that cannot (before 6.16).
        """
        with self.open(readonly=True) as file:
            probe_paths(file.fileno())

    def close(self) -> None:
        """Remove the device; I/O that waits for a path fails first."""
        if not self._closed and any(
            line.split()[2] == "multipath" for line in self.device.table_text().splitlines()
        ):
            self.device.send(FailIfNoPath())
        super().close()

    def _path(self, index: int) -> Flakey:
        if not 0 <= index < len(self.paths):
            raise SpecError("index", index, f"there are paths 0..{len(self.paths) - 1}")
        return self.paths[index]

    def _group(self, number: int) -> int:
        if not 1 <= number <= self._groups:
            raise SpecError("number", number, f"there are groups 1..{self._groups}")
        return number
