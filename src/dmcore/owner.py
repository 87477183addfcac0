"""Who made a device: every name, uuid and backing file of ours says so, so that leftovers can be told from live ones."""

from __future__ import annotations

import itertools
import os
import re
from dataclasses import dataclass
from pathlib import Path

from dmcore.errors import SpecError

__all__ = ["PREFIX", "UUID_PREFIX", "Owner"]

PREFIX = "pytest-dm"
"""Start of every device name and backing folder of ours."""

UUID_PREFIX = "PYTESTDM-"
"""Start of every device uuid of ours."""

_TAG = re.compile(r"(?P<boot>[0-9a-f]{12})-(?P<space>[0-9]+)-(?P<pid>[0-9]+)-(?P<start>[0-9]+)")
_LABEL = re.compile(r"[A-Za-z0-9_.+-]+")
_counter = itertools.count(1)


def _start_time(pid: int) -> int | None:
    """Return the process's start in clock ticks since boot (field 22 of /proc/PID/stat), None if it is gone."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return None
    return int(stat.rpartition(")")[2].split()[19])


def _pid_space() -> int:
    """Return the inode of this process's pid namespace: containers on one kernel have the same pids, not the same one."""
    return Path("/proc/self/ns/pid").stat().st_ino


def _boot_id() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").replace("-", "")[:12]


@dataclass(frozen=True, slots=True)
class Owner:
    """One process of one boot.

    Attributes:
        boot: First 12 hex digits of the kernel's boot id.
        space: Inode of the pid namespace that `pid` is of.
        pid: Process id.
        start: The process's start, clock ticks since boot; with `pid` it names a process for good.
    """

    boot: str
    space: int
    pid: int
    start: int

    @classmethod
    def current(cls) -> Owner:
        """Return the owner that this process is."""
        pid = os.getpid()
        start = _start_time(pid)
        assert start is not None, "a running process has a start time"
        return cls(_boot_id(), _pid_space(), pid, start)

    @classmethod
    def of_this_boot(cls, space: int, pid: int, start: int) -> Owner:
        """Return the owner that these numbers name."""
        return cls(_boot_id(), space, pid, start)

    @classmethod
    def find(cls, text: str) -> Owner | None:
        """Return the owner named in a uuid, device name or path of ours; None if there is none."""
        match = _TAG.search(text)
        if match is None:
            return None
        return cls(match["boot"], int(match["space"]), int(match["pid"]), int(match["start"]))

    @property
    def tag(self) -> str:
        """The text that stands in uuids and backing folders."""
        return f"{self.boot}-{self.space}-{self.pid}-{self.start}"

    def alive(self) -> bool:
        """Whether that very process still runs, or may run: one in another container on this kernel cannot be seen."""
        if self.boot != _boot_id():
            return False
        return self.space != _pid_space() or _start_time(self.pid) == self.start

    def name(self, label: str) -> tuple[str, str]:
        """Return a fresh device name and uuid for a device described by `label`.

        Raises:
            SpecError: A label with characters that udev would mangle, or too long for the kernel's 127 bytes.
        """
        if not _LABEL.fullmatch(label):
            raise SpecError("label", label, "use letters, digits and _ . + - only")
        number = next(_counter)
        name = f"{PREFIX}-{self.pid}-{number}-{label}"
        if len(name) > 127:
            raise SpecError(
                "label", label, f"the device name {name!r} would be longer than the kernel's 127 bytes"
            )
        return name, f"{UUID_PREFIX}{self.tag}-{number}"
