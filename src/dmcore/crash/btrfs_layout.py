"""What a block of a btrfs file system on one device is for: super block, which tree, which file.

Sources: btrfs-inspect-internal(8) of btrfs-progs (dump-tree); Documentation/dev/On-disk-format.
"""

from __future__ import annotations

import re
import subprocess
import threading
from typing import TYPE_CHECKING, NamedTuple

from dmcore.crash.tools import C_LOCALE, find_tool

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

__all__ = ["explain"]

_SUPERS = (64 << 10, 64 << 20, 256 << 30)
_SUPER_BYTES = 4096
_BLOCK = re.compile(r"^(?:leaf|node) ([0-9]+) .*\bowner (\w+)")
_ITEM = re.compile(r"^\titem [0-9]+ key \((\w+) (\w+) ([0-9]+)\)")
_LENGTH = re.compile(r"^\t\tlength ([0-9]+) ")
_STRIPE = re.compile(r"^\t\t\tstripe [0-9]+ devid [0-9]+ offset ([0-9]+)")
_NAME = re.compile(r"^\t\tindex [0-9]+ namelen [0-9]+ name: (.*)")
_EXTENT = re.compile(r"^\t\textent data disk byte ([0-9]+) nr ([0-9]+)")
_PART = re.compile(r"^\t\textent data offset ([0-9]+) nr ([0-9]+)")
_ROOT = "256"


class _Chunk(NamedTuple):
    physical: int
    length: int
    logical: int


class _Extent(NamedTuple):
    first: int
    length: int
    tree: str
    inode: str
    offset: int


def explain(image: Path, writes: Sequence[tuple[int, bytes]], *, timeout: float = 60) -> list[str]:
    """Return what each write was for, "" if unknown.

    Raises:
        Unsupported: btrfs-progs are not there.
    """
    layout = _Layout()
    with subprocess.Popen(
        [find_tool("btrfs", "btrfs-progs"), "inspect-internal", "dump-tree", image],
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=C_LOCALE,
        text=True, errors="replace",
    ) as process:  # fmt: skip
        timer = threading.Timer(timeout, process.kill)
        timer.start()
        try:
            assert process.stdout is not None
            layout.take(process.stdout)
        finally:
            timer.cancel()
    return [layout.what(offset) for offset, _ in writes]


class _Layout:
    """What the trees say."""

    def __init__(self) -> None:
        self._chunks: list[_Chunk] = []
        self._owners: dict[int, str] = {}
        self._names: dict[tuple[str, str], tuple[str, str]] = {}
        self._extents: list[_Extent] = []

    def take(self, lines: Iterable[str]) -> None:
        """Take what dump-tree prints."""
        tree = kind = inode = ""
        offset = length = first = 0
        for line in lines:
            if found := _BLOCK.match(line):
                tree = found[2]
                self._owners[int(found[1])] = tree
            elif found := _ITEM.match(line):
                inode, kind, offset = found[1], found[2], int(found[3])
            elif kind == "CHUNK_ITEM" and (found := _LENGTH.match(line)):
                length = int(found[1])
            elif kind == "CHUNK_ITEM" and (found := _STRIPE.match(line)):
                self._chunks.append(_Chunk(int(found[1]), length, offset))
            elif kind == "INODE_REF" and (found := _NAME.match(line)):
                self._names.setdefault((tree, inode), (str(offset), found[1].rstrip("\n")))
            elif kind == "EXTENT_DATA" and (found := _EXTENT.match(line)):
                first = int(found[1])
            elif kind == "EXTENT_DATA" and first and (found := _PART.match(line)):
                self._extents.append(_Extent(first + int(found[1]), int(found[2]), tree, inode, offset))

    def what(self, offset: int) -> str:
        """Return what a byte of the device is for."""
        if any(at <= offset < at + _SUPER_BYTES for at in _SUPERS):
            return "super block"
        for chunk in self._chunks:
            if chunk.physical <= offset < chunk.physical + chunk.length:
                logical = chunk.logical + offset - chunk.physical
                break
        else:
            return ""
        if logical in self._owners:
            return (
                f"block of the {self._owners[logical].removesuffix('_TREE').lower().replace('_', ' ')} tree"
            )
        for extent in self._extents:
            if extent.first <= logical < extent.first + extent.length:
                return f"{self._name(extent)}, from byte {extent.offset + logical - extent.first}"
        return "a block of no file"

    def _name(self, extent: _Extent) -> str:
        parts: list[str] = []
        inode = extent.inode
        while inode != _ROOT and len(parts) < 100:
            known = self._names.get((extent.tree, inode))
            if known is None:
                return f"inode {extent.inode}"
            inode, name = known
            parts.insert(0, name)
        within = "" if extent.tree == "FS_TREE" else f" of subvolume {extent.tree}"
        return f"file /{'/'.join(parts)}{within}"
