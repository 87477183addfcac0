"""ext2, ext3 and ext4: recovery and verdict by e2fsprogs, without a mount and without root.

`e2fsck -n` on a file system with a journal to replay does not replay it and finds errors that are none; `e2fsck -y`
returns 1 for healthy ones, whose free counts in the super block lag. So the journal is replayed first (`-E journal_only`),
and what is there then is checked read-only (`-fn`), where every complaint counts. Files that were deleted while open are on
the list of orphans, which a mount clears after the journal; `e2fsck -p` does that.

Sources: e2fsck(8), e2fsprogs 1.47.0 (e2fsck/unix.c, e2fsck/super.c); fs/ext4/super.c (ext4_orphan_cleanup).
"""

from __future__ import annotations

import os
import re
import struct
import subprocess
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING

from dmcore.crash.checkers import Masked, Problem
from dmcore.crash.ext_journal import Foresight, journal_ranges
from dmcore.crash.ext_layout import Layout
from dmcore.crash.tools import find_tool
from dmcore.errors import Unsupported

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

__all__ = ["Ext"]

_SUPER = 1024
_MAGIC = 0xEF53
_NEEDS_RECOVERY = 4
_HAS_JOURNAL = 4
_FAST_COMMIT = 0x400
_ORPHAN_PRESENT = 0x10000
_STATIC_FIELDS = (
    (0x0C, 8), (0x2C, 8), (0x34, 2), (0x40, 4), (0x158, 4), (0x178, 8), (0x274, 6), (0x3FC, 4),
)  # fmt: skip
"""Fields of the super block that say when and how often, not what: free counts (lag), times, mounts, bytes written,
checksum (struct ext4_super_block)."""
_NOISE = re.compile(
    r"^(e2fsck [0-9.]+ \(|Pass [0-9]|$|.*\*+ WARNING: Filesystem still has errors|.*recovering journal)"
)


class Ext:
    """One of the family.

    Args:
        name: "ext4", "ext3" or "ext2". A file system without a journal has errors after a crash by design: of such a one
            only what `e2fsck -y` cannot repair is a finding.
        timeout: Seconds for one run of a tool; one that takes longer is a finding.

    Raises:
        Unsupported: e2fsck is not there. From `recover`: a file system with fast commits, which e2fsck 1.47 replays to one
            with wrong file sizes and a super block it refuses itself.
    """

    def __init__(self, name: str = "ext4", *, timeout: float = 120) -> None:
        self.name = name
        self.atomic: Sequence[tuple[int, int]] = ((_SUPER, 2 * _SUPER),)
        self.wrote = False
        self._timeout = timeout
        self._e2fsck = find_tool("e2fsck", "e2fsprogs")
        self._journalled = True
        self._foresight: Foresight | None = None
        self._environment = {**os.environ, "E2FSCK_CONFIG": os.devnull, "LC_ALL": "C"}

    def recover(self, image: Path, /) -> Problem | None:
        """Replay the journal and clear orphans; repair what has no journal."""
        self.wrote = False
        fields = _super_block(image)
        if fields is None:
            return Problem("fs", f"no {self.name} file system: the super block's magic number is not there")
        compat, incompat, _ = fields
        self._journalled = bool(compat & _HAS_JOURNAL)
        if not self._journalled:
            return self._repair(image)
        if compat & _FAST_COMMIT:
            raise Unsupported(
                "a kernel that mounts ext4 with fast_commit",
                "e2fsck does not replay fast commits as the kernel does",
                "pytest-dm explore --kernel NAME, which mounts it in a guest, or the dm_crash fixture",
            )
        if incompat & _NEEDS_RECOVERY:
            status, text = self._run("-E", "journal_only", "-y", image)
            if status not in (0, 1):
                return Problem("fs", f"the journal cannot be replayed: {_complaint(text, status)}")
            fields = _super_block(image)
            if fields is None:
                return Problem("fs", "replaying the journal destroyed the super block")
        if fields[2]:
            status, text = self._run("-p", image)
            if status not in (0, 1):
                return Problem("fs", f"orphans cannot be cleared: {_complaint(text, status)}")
        return None

    def _repair(self, image: Path) -> Problem | None:
        status, text = self._run("-fy", image)
        if status & ~1:
            return Problem("fs", f"cannot be repaired: {_complaint(text, status)}")
        return None

    def verify(self, image: Path, /) -> Problem | None:
        """Run `e2fsck -fn`: every complaint counts."""
        status, text = self._run("-fn", image)
        if status == 0:
            return None
        return Problem("fs", _complaint(text, status))

    def masked(self, image: Path, /) -> Sequence[Masked]:
        """Return the super block's counters and times, and the journal, which is empty after recovery."""
        masked = [Masked(_SUPER + offset, length) for offset, length in _STATIC_FIELDS]
        if not self._journalled:
            return masked
        ranges = journal_ranges(image)
        self._foresight = Foresight(image, ranges)
        size = self._foresight.block_size
        return [*masked, *(Masked(one.first * size, (one.last - one.first + 1) * size) for one in ranges)]

    def foresee(self, image: Path, /) -> Sequence[tuple[int, bytes]] | None:
        """Return what replaying the journal will write; see `Foresight`."""
        return None if self._foresight is None else self._foresight.writes(image)

    def explain(self, image: Path, writes: Sequence[tuple[int, bytes]], /) -> list[str]:
        """Say what blocks are for, by debugfs and dumpe2fs."""
        return Layout(image, timeout=self._timeout).explain(writes)

    def opened(self, _image: Path, /) -> AbstractContextManager[None]:
        """There is nothing to mount: oracles read the image, as with debugfs."""
        return nullcontext()

    def _run(self, *words: str | Path) -> tuple[int, str]:
        self.wrote |= "-fn" not in words
        try:
            done = subprocess.run(
                [self._e2fsck, *words],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                env=self._environment,
                timeout=self._timeout,
                check=False,
                close_fds=False,
            )
        except subprocess.TimeoutExpired:
            return 8, f"{' '.join(map(str, words[:-1]))} took longer than {self._timeout:g} s"
        return done.returncode, done.stdout.decode(errors="replace")


def _super_block(image: Path) -> tuple[int, int, bool] | None:
    """Return features (compatible, incompatible) and whether there are orphans; None where there is no super block."""
    fd = os.open(image, os.O_RDONLY | os.O_CLOEXEC)
    try:
        data = os.pread(fd, 1024, _SUPER)
    finally:
        os.close(fd)
    if len(data) < 1024 or struct.unpack_from("<H", data, 0x38)[0] != _MAGIC:
        return None
    compat, incompat, read_only = struct.unpack_from("<III", data, 0x5C)
    (last_orphan,) = struct.unpack_from("<I", data, 0xE8)
    return compat, incompat, bool(last_orphan or read_only & _ORPHAN_PRESENT)


def _complaint(text: str, status: int) -> str:
    lines = [line.strip() for line in text.splitlines() if not _NOISE.match(line)]
    if status < 0:
        return f"e2fsck was killed by signal {-status}: {lines[0] if lines else 'no word'}"
    return lines[0] if lines else f"e2fsck exited with {status} and no word"
