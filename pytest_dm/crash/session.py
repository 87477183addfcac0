"""DmCrash: the value of the fixture `dm_crash`."""

from __future__ import annotations

from contextlib import contextmanager
from enum import Enum
from typing import TYPE_CHECKING, Final

from pytest_dm.crash import recording

if TYPE_CHECKING:
    from collections.abc import Generator, Sequence

    from pytest_dm.crash.recording import CrashDisk, Recording
    from pytest_dm.factory import Dm, Size

__all__ = ["DmCrash"]


class _Marker(Enum):
    """Stands for "as the test's marker says"."""

    SAYS = "the marker's"


_MARKER: Final = _Marker.SAYS


class DmCrash:
    """Records what a workload writes, and explores what a power cut could have left of it.

    Attributes:
        recording: What the last `record` block wrote; None before.
    """

    def __init__(self, dm: Dm) -> None:
        self._dm = dm
        self.recording: Recording | None = None

    @contextmanager
    def record(
        self,
        *,
        size: Size | None = None,
        filesystem: str | _Marker | None = _MARKER,
        mkfs_options: Sequence[str] = (),
        mount_options: str = "",
        block_size: int | None = None,
        log_size: Size | None = None,
    ) -> Generator[CrashDisk]:
        """Give a disk whose every write is recorded until the end of the block.

        Args:
            size: Of the disk; by default the marker's.
            filesystem: Made on it and mounted at `disk.mountpoint`: ext2 ext3 ext4 xfs btrfs f2fs vfat; None for a bare
                disk; by default the marker's.
            mkfs_options: More arguments of mkfs.
            mount_options: As for mount(8) -o.
            block_size: Logical block size in bytes, a power of two in 512..4096; by default the marker's.
            log_size: Room for the log, which takes memory only as it fills; by default four times the size.

        Raises:
            SpecError: DAX (such writes bypass the log), options of a file system for a bare disk, bad sizes.
            Unsupported: No log-writes target, no mkfs.
            DmError: The log filled up or stopped: nothing can be said of such a recording.
        """
        self.recording = None
        wants = self._dm.wants
        with recording.record(
            self._dm,
            size=wants.size if size is None else size,
            filesystem=wants.filesystem if isinstance(filesystem, _Marker) else filesystem,
            mkfs_options=tuple(mkfs_options),
            mount_options=mount_options,
            block_size=wants.block_size if block_size is None else block_size,
            log_size=log_size,
        ) as disk:
            yield disk
        self.recording = disk.recording
