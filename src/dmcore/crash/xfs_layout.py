"""What a block of an xfs file system is for: headers, trees, inodes, log, which file.

Sources: xfs_db(8) of xfsprogs (blockget, blockuse, bmap).
"""

from __future__ import annotations

import re
import subprocess
from typing import TYPE_CHECKING, NamedTuple

from dmcore.crash.tools import C_LOCALE, find_tool

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

__all__ = ["explain"]

_SECTOR = 512
_AT_ONCE = 300
_HEADERS = ("super block", "free space header", "inode header", "free list")
_TYPES = {
    "attr": "extended attributes", "bmap": "extent tree", "btbno": "free space tree", "btcnt": "free space tree",
    "btino": "inode tree", "btfino": "free inode tree", "btrmap": "reverse mapping tree", "btrefc": "reference count tree",
    "dir": "directory", "log": "log", "inode": "inodes", "free1": "", "free2": "", "freelist": "free list",
    "sb": "super block", "rtbitmap": "realtime bitmap", "rtsum": "realtime summary", "symlink": "symbolic link",
}  # fmt: skip
_USE = re.compile(
    r"^block [0-9]+ \(([0-9]+)/([0-9]+)\) type (\w+)(?: inode ([0-9]+)(?: (.*))?)?$", re.MULTILINE
)
_EXTENT = re.compile(
    r"^data offset ([0-9]+) startblock [0-9]+ \(([0-9]+)/([0-9]+)\) count ([0-9]+)", re.MULTILINE
)


def explain(image: Path, writes: Sequence[tuple[int, bytes]], *, timeout: float = 60) -> list[str]:
    """Return what each write was for, "" if unknown; the log of the image should be empty.

    Raises:
        Unsupported: xfs_db is not there.
    """
    sizes = dict(
        re.findall(
            r"^(\w+) = ([0-9]+)$", _ask(image, ["sb 0", "p blocksize agblocks"], timeout), re.MULTILINE
        )
    )
    if not {"blocksize", "agblocks"} <= sizes.keys():
        return [""] * len(writes)
    layout = _Layout(image, int(sizes["blocksize"]), int(sizes["agblocks"]), timeout)
    return layout.explain([offset for offset, _ in writes])


def _ask(image: Path, commands: Sequence[str], timeout: float) -> str:
    words = [find_tool("xfs_db", "xfsprogs"), "-r"]
    for command in commands:
        words += ["-c", command]
    try:
        done = subprocess.run(
            [*words, image], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
            check=False, timeout=timeout, env=C_LOCALE,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return ""
    return done.stdout.decode(errors="replace")


class _Use(NamedTuple):
    kind: str
    inode: str
    name: str


class _Layout:
    def __init__(self, image: Path, block_size: int, per_group: int, timeout: float) -> None:
        self._image = image
        self._size = block_size
        self._per_group = per_group
        self._timeout = timeout

    def explain(self, offsets: Sequence[int]) -> list[str]:
        blocks = sorted({offset // self._size for offset in offsets})
        uses = dict(self._uses(blocks))
        inodes = {use.inode for use in uses.values() if use.kind == "data"}
        maps = {inode: list(self._map(inode)) for inode in inodes}
        unknown = _Use("", "", "")
        return [self._explain(offset, uses.get(offset // self._size, unknown), maps) for offset in offsets]

    def _uses(self, blocks: Sequence[int]) -> Iterator[tuple[int, _Use]]:
        """Yield each block that has a use, and that."""
        for at in range(0, len(blocks), _AT_ONCE):
            commands = ["blockget -n"]
            for block in blocks[at : at + _AT_ONCE]:
                commands += [f"daddr {block * self._size // _SECTOR}", "blockuse -n"]
            for group, number, *use in _USE.findall(_ask(self._image, commands, self._timeout)):
                yield int(group) * self._per_group + int(number), _Use(*use)

    def _map(self, inode: str) -> Iterator[tuple[int, int, int]]:
        """Yield where an inode's blocks are: first block of the file, first of the device, how many."""
        for start, group, number, count in _EXTENT.findall(
            _ask(self._image, [f"inode {inode}", "bmap"], self._timeout)
        ):
            yield int(start), int(group) * self._per_group + int(number), int(count)

    def _explain(self, offset: int, use: _Use, maps: dict[str, list[tuple[int, int, int]]]) -> str:
        if use.kind == "sb":
            sector = offset % self._size // _SECTOR
            return _HEADERS[sector] if sector < len(_HEADERS) else "free space tree"
        what = f"/{use.name}" if use.name else f"inode {use.inode}"
        if use.kind == "dir":
            return f"directory {what}"
        if use.kind == "data":
            block = offset // self._size
            for start, first, count in maps[use.inode]:
                if first <= block < first + count:
                    at = (start + block - first) * self._size + offset % self._size
                    return f"file {what}, from byte {at}"
            return f"file {what}"
        return _TYPES.get(use.kind, use.kind) or "a block of no file" if use.kind else ""
