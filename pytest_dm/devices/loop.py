"""Loop: a plain disk of a test, a sparse file behind a loop device."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from pytest_dm.devices.base import Disk

if TYPE_CHECKING:
    from dmcore.ref import Ref
    from pytest_dm.runtime import BareLoop, Runtime

__all__ = ["Loop"]


class Loop(Disk):
    """A loop device on a file of ours.

    Attributes:
        backing: The file; reading it shows what the disk holds.
        direct_io: Whether the driver does direct I/O to it (a hint that kernels may drop).
    """

    def __init__(
        self, runtime: Runtime, backing: Path, *, block_size: int, readonly: bool, direct_io: bool
    ) -> None:
        super().__init__(runtime)
        self.loop = runtime.attach(backing, block_size=block_size, readonly=readonly, direct_io=direct_io)
        self.backing = backing
        self.direct_io = self.loop.direct_io
        path = getattr(self.loop, "path", None)
        self.name = path.name if isinstance(path, Path) else f"loop{self.loop.ref.name.partition(':')[2]}"

    @property
    def bare(self) -> BareLoop:
        """The loop device without verbs."""
        return self.loop

    @property
    def ref(self) -> Ref:
        """The device as a table names it: "7:N"."""
        return self.loop.ref

    @property
    def size(self) -> int:
        """Bytes."""
        return self.loop.size

    @property
    def block_size(self) -> int:
        """Logical block size in bytes."""
        return self.loop.block_size

    @property
    def bound(self) -> bool:
        """Whether this loop device is still on our file, whoever holds it."""
        return self.runtime.bound(self)

    def describe(self) -> str:
        """Return name, size and backing file."""
        mode = "direct" if self.direct_io else "buffered"
        return (
            f"{self.name}: {self.size // 512} sectors of {self.block_size} bytes on {self.backing} ({mode})"
        )

    def close(self) -> None:
        """Free the loop device and remove the file."""
        try:
            self.loop.detach()
        finally:
            self.backing.unlink(missing_ok=True)
