"""What a block of an ext2, ext3 or ext4 file system is for: super block, bitmap, inode table, journal, which file.

Sources: debugfs(8), dumpe2fs(8) of e2fsprogs; Documentation/filesystems/ext4/journal.rst for the journal's records.
"""

from __future__ import annotations

import os
import re
import struct
import subprocess
from bisect import bisect_right
from typing import TYPE_CHECKING, NamedTuple

from dmcore.crash.tools import find_tool

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

__all__ = ["Layout"]

_JOURNAL_INODE = 8
_JBD2_MAGIC = 0xC03B3998
_RECORDS = {1: "descriptor", 2: "commit record", 3: "super block", 4: "super block", 5: "revocation"}
_RESERVED = {1: "bad blocks", 2: "directory /", 7: "reserved group descriptors", 8: "journal"}
_RANGE = re.compile(r"\(([^)]*)\):([0-9]+)(?:-([0-9]+))?")
_GROUP = re.compile(r"Group ([0-9]+): \(Blocks ([0-9]+)-([0-9]+)\)")
_PLACES = (
    ("block bitmap of group", re.compile(r"Block bitmap at ([0-9]+)")),
    ("inode bitmap of group", re.compile(r"Inode bitmap at ([0-9]+)")),
)
_TABLE = re.compile(r"Inode table at ([0-9]+)-([0-9]+)")
_DESCRIPTORS = re.compile(r"Group descriptors at ([0-9]+)-([0-9]+)")
_SUPER = re.compile(r"(Primary|Backup) superblock at ([0-9]+)")


class _Range(NamedTuple):
    first: int
    last: int
    what: str


class Layout:
    """Says what blocks are for.

    Args:
        image: An image of the file system, recovered or not; the later, the more files it knows.
        timeout: Seconds for one run of a tool.

    Raises:
        Unsupported: The tools are missing.
    """

    def __init__(self, image: Path, *, timeout: float = 60) -> None:
        self._image = image
        self._timeout = timeout
        self._debugfs = find_tool("debugfs", "e2fsprogs")
        text = self._run(find_tool("dumpe2fs", "e2fsprogs"), image)
        size = re.search(r"Block size: *([0-9]+)", text)
        self.block_size = int(size[1]) if size else 4096
        per_group = re.search(r"Inodes per group: *([0-9]+)", text)
        self._inodes_per_group = int(per_group[1]) if per_group else 0
        self._fixed = sorted(self._places(text))

    def _run(self, *words: str | Path) -> str:
        try:
            done = subprocess.run(
                words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=False,
                timeout=self._timeout, env={**os.environ, "LC_ALL": "C", "DEBUGFS_PAGER": "cat", "PAGER": "cat"},
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            return ""
        return done.stdout.decode(errors="replace")

    def _places(self, text: str) -> Iterable[_Range]:
        group = 0
        for line in text.splitlines():
            if found := _GROUP.search(line):
                group = int(found[1])
            for what, pattern in _PLACES:
                if found := pattern.search(line):
                    yield _Range(int(found[1]), int(found[1]), f"{what} {group}")
            if found := _TABLE.search(line):
                yield _Range(int(found[1]), int(found[2]), f"inode table of group {group}")
            if found := _DESCRIPTORS.search(line):
                yield _Range(int(found[1]), int(found[2]), "group descriptors")
            if found := _SUPER.search(line):
                kind = "super block" if found[1] == "Primary" else "backup super block"
                yield _Range(int(found[2]), int(found[2]), kind)

    def explain(self, writes: Sequence[tuple[int, bytes]]) -> list[str]:
        """Return what each write is for: its first byte on the device, and its data (that of journal records is looked at)."""
        blocks = {offset // self.block_size for offset, _ in writes}
        owners = self._owners(sorted(block for block in blocks if not self._at(block)))
        names = self._names(sorted(set(owners.values()) - _RESERVED.keys()))
        maps = {inode: self._map(inode) for inode in set(owners.values())}
        return [self._explain(offset, data, owners, names, maps) for offset, data in writes]

    def _at(self, block: int) -> _Range | None:
        at = bisect_right(self._fixed, (block, 1 << 62, "")) - 1
        if at >= 0 and self._fixed[at].first <= block <= self._fixed[at].last:
            return self._fixed[at]
        return None

    def _explain(
        self,
        offset: int,
        data: bytes,
        owners: dict[int, int],
        names: dict[int, str],
        maps: dict[int, list[tuple[int, int, int]]],
    ) -> str:
        block = offset // self.block_size
        fixed = self._at(block)
        if fixed:
            if fixed.what.startswith("inode table") and self._inodes_per_group:
                return f"{fixed.what}{self._inodes(fixed, offset, len(data))}"
            return fixed.what
        inode = owners.get(block)
        if inode is None:
            return "a block of no file"
        if inode == _JOURNAL_INODE:
            return _journal(data)
        what = _RESERVED.get(inode) or names.get(inode) or f"inode {inode}"
        where = next(
            (start + block - first for start, first, last in maps[inode] if first <= block <= last), None
        )
        at = "" if where is None else f", from byte {where * self.block_size + offset % self.block_size}"
        return f"{what}{at}"

    def _inodes(self, table: _Range, offset: int, length: int) -> str:
        per_block = self._inodes_per_group // (table.last - table.first + 1)
        group = int(table.what.rsplit(" ", 1)[1])
        first = group * self._inodes_per_group + (offset // self.block_size - table.first) * per_block + 1
        last = first + max(1, length // self.block_size) * per_block - 1
        return f", inodes {first} to {last}"

    def _owners(self, blocks: list[int]) -> dict[int, int]:
        """Return the inode of each block that has one."""
        owners: dict[int, int] = {}
        for at in range(0, len(blocks), 500):
            text = self._run(
                self._debugfs, "-R", f"icheck {' '.join(map(str, blocks[at : at + 500]))}", self._image
            )
            owners |= {int(b): int(i) for b, i in re.findall(r"^([0-9]+)\t([0-9]+)$", text, re.MULTILINE)}
        return owners

    def _names(self, inodes: list[int]) -> dict[int, str]:
        names: dict[int, str] = {}
        for at in range(0, len(inodes), 500):
            text = self._run(
                self._debugfs, "-R", f"ncheck {' '.join(map(str, inodes[at : at + 500]))}", self._image
            )
            for inode, name in re.findall(r"^([0-9]+)\t(.+)$", text, re.MULTILINE):
                names.setdefault(int(inode), f"file {'/' + name.lstrip('/')}")
        return names

    def _map(self, inode: int) -> list[tuple[int, int, int]]:
        """Return where an inode's blocks are: first block of the file, first and last of the device."""
        text = self._run(self._debugfs, "-R", f"stat <{inode}>", self._image)
        found = text.partition("EXTENTS:")[2] or text.partition("BLOCKS:")[2]
        rows: list[tuple[int, int, int]] = []
        for label, first, last in _RANGE.findall(found):
            start = label.partition("-")[0]
            if start.isdigit():
                rows.append((int(start), int(first), int(last or first)))
        return rows


def _journal(data: bytes) -> str:
    if len(data) >= 12:
        magic, kind, sequence = struct.unpack_from(">III", data)
        if magic == _JBD2_MAGIC:
            of = "" if kind in (3, 4) else f" of transaction {sequence}"
            return f"journal: {_RECORDS.get(kind, 'record')}{of}"
    return "journal: a block of a transaction"
