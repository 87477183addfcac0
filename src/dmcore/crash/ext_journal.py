"""What recovery will make of an image of ext3 or ext4, known without running it.

Most crash states differ in what recovery throws away or writes anew: journal blocks of a transaction that was not committed,
blocks that the journal has too. They recover to the same file system, and one recovery for all of them is enough. `Foresight` says
what replaying the journal writes; everything else that recovery does follows from the outcome.

It speaks only of healthy images: features, checksums of the super block, of the journal and all its live records are looked at, and
whatever is out of the ordinary is left to the real thing (None).

Sources: debugfs(8); fs/ext4/ext4.h (struct ext4_super_block), fs/ext4/super.c (ext4_load_journal); `dmcore.formats.jbd2`.
"""

from __future__ import annotations

import os
import re
import struct
import subprocess
from typing import TYPE_CHECKING, NamedTuple

from dmcore.crash.tools import find_tool
from dmcore.formats.crc32c import crc32c
from dmcore.formats.jbd2 import Replay

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

__all__ = ["Foresight", "JournalRange", "journal_ranges"]

_SUPER, _SUPER_BYTES, _CHECKSUM = 1024, 1024, 0x3FC
_MAGIC = 0xEF53
_HAS_JOURNAL, _FAST_COMMIT = 4, 0x400
_NEEDS_RECOVERY, _JOURNAL_DEVICE = 4, 8
_METADATA_CHECKSUMS = 0x400
_RANGE = re.compile(r"\(([^)]*)\):([0-9]+)(?:-([0-9]+))?")


class JournalRange(NamedTuple):
    """Where a part of the journal is.

    Attributes:
        at: Number of its first block in the journal; -1: it is no part of that, but says where the parts are.
        first: Its first block on the device.
        last: Its last.
    """

    at: int
    first: int
    last: int


def journal_ranges(image: Path) -> list[JournalRange]:
    """Return where the journal is, by debugfs; nothing if that cannot be had: then more images count as distinct."""
    done = subprocess.run(
        [find_tool("debugfs", "e2fsprogs"), "-R", "stat <8>", image],
        stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace", check=False, timeout=60,
        env={**os.environ, "DEBUGFS_PAGER": "cat", "PAGER": "cat", "LC_ALL": "C"},
    )  # fmt: skip
    found = done.stdout.partition("EXTENTS:")[2] or done.stdout.partition("BLOCKS:")[2]
    ranges: list[JournalRange] = []
    for label, first, last in _RANGE.findall(found):
        start = label.partition("-")[0]
        ranges.append(JournalRange(int(start) if start.isdigit() else -1, int(first), int(last or first)))
    return ranges


class Foresight:
    """Says what replaying the journal of an image will write.

    Args:
        image: One of the images: says how large blocks are.
        ranges: Where the journal is in all of them.
    """

    def __init__(self, image: Path, ranges: Sequence[JournalRange]) -> None:
        with image.open("rb") as file:
            file.seek(_SUPER + 0x18)
            (shift,) = struct.unpack("<I", file.read(4))
        self.block_size = 1024 << min(shift, 6)
        self._places: dict[int, int] = {}
        for at, first, last in ranges:
            if at >= 0:
                self._places.update(
                    zip(range(at, at + last - first + 1), range(first, last + 1), strict=True)
                )
        self._fd = -1
        self._replay = Replay(self._read)
        self._sound_super = b""
        self._blocks: dict[int, bytes] = {}
        self._writes: list[tuple[int, bytes]] = []

    def writes(self, image: Path) -> list[tuple[int, bytes]] | None:
        """Return what recovery writes to the image from its journal: first byte and data; None if only recovery itself can tell.

        The same list as the last time if it would be equal, but for images whose journals are clean.
        """
        self._fd = os.open(image, os.O_RDONLY | os.O_CLOEXEC)
        try:
            dirty = self._needs_replay()
            if dirty is None:
                return None
            blocks = self._replay.blocks()
        except KeyError:  # the journal says that it is longer than it is
            return None
        finally:
            os.close(self._fd)
        if blocks is None or (self._replay.live and not dirty):
            return None
        if blocks is not self._blocks:
            self._blocks = blocks
            self._writes = [(block * self.block_size, data) for block, data in sorted(blocks.items())]
        return self._writes

    def _needs_replay(self) -> bool | None:
        """Return whether the super block says that the journal is to be replayed; None for one that is out of the ordinary."""
        data = os.pread(self._fd, _SUPER_BYTES, _SUPER)
        if len(data) < _SUPER_BYTES or struct.unpack_from("<H", data, 0x38)[0] != _MAGIC:
            return None
        compat, incompat, read_only = struct.unpack_from("<III", data, 0x5C)
        if not compat & _HAS_JOURNAL or compat & _FAST_COMMIT or incompat & _JOURNAL_DEVICE:
            return None
        if read_only & _METADATA_CHECKSUMS and data != self._sound_super:
            if crc32c(data[:_CHECKSUM]) != int.from_bytes(data[_CHECKSUM:], "little"):
                return None
            self._sound_super = data
        return bool(incompat & _NEEDS_RECOVERY)

    def _read(self, number: int, count: int) -> bytes:
        """Return blocks of the journal; KeyError behind its end."""
        size = self.block_size
        first = self._places[number]
        if self._places[number + count - 1] == first + count - 1:
            data = os.pread(self._fd, count * size, first * size)
        else:
            data = b"".join(
                os.pread(self._fd, size, self._places[at] * size) for at in range(number, number + count)
            )
        return data + bytes(count * size - len(data))
