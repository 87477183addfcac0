"""DmCrash: the value of the fixture `dm_crash`."""

from __future__ import annotations

from contextlib import contextmanager
from enum import Enum
from typing import TYPE_CHECKING, Final

from dmcore.crash.epochs import Level, read_times
from dmcore.crash.explore import explore
from dmcore.crash.log import CrashLog
from dmcore.errors import DmError, SpecError
from pytest_dm.crash import recording
from pytest_dm.crash.checking import Checked

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Sequence
    from typing import Any

    from dmcore.crash.explore import Exploration

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

    def explore(
        self,
        check: Callable[[Any], object] | None = None,
        *,
        level: str | None = None,
        max_states: int | None = None,
        max_seconds: float | None = None,
        seed: int | None = None,
        torn: int | None = None,
        timeout: float = 30.0,
        workers: int | None = None,
    ) -> Exploration:
        """Visit states that a power cut could have left of the recording, and return what was found.

        Each distinct state is made, recovered by the kernel that runs the test, checked by the file system's own tool, and
        shown to `check`.
        """
        recorded = self._recorded()
        if level is None:
            level = "L1" if recorded.times is None else "L2"
        made: list[Checked] = []

        def checker() -> Checked:
            made.append(Checked(self._dm.runtime, recorded, check, timeout))
            return made[-1]

        try:
            with CrashLog(recorded.log, base=recorded.base, size=recorded.size) as log:
                times = None
                if level == Level.L2 and recorded.times is not None:
                    times = read_times(recorded.times, len(log.index))
                return explore(
                    log, level=level, filesystem=None, checker=checker, max_states=max_states, max_seconds=max_seconds,
                    seed=seed or 0, torn=torn, first=0, times=times, workers=0, folder=self._dm.runtime.folder,
                )  # fmt: skip
        finally:
            for one in made:
                one.close()

    def _recorded(self) -> Recording:
        if self.recording is None:
            message = "nothing is recorded: use 'with dm_crash.record() as disk:' first"
            raise DmError(message)
        return self.recording
