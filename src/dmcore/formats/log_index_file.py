"""A saved index of a log-writes log: a file beside the log, so that the log is not scanned again.

It is 25 bytes for each entry, of a log whose entries have 512 bytes at least, and is good for as long as the log has the
size, the time of change and the super block that it had then. A file that is none, or of another log, is no error: the log is
scanned as if it were not there.

All numbers are little-endian: magic, size of the log, its time of change in nanoseconds, number of entries, extent, length of a
JSON text with the log's super block, marks and warnings; then that text, and of all entries sectors, counts, offsets (8 bytes
each) and flags (1 byte each); last blake2b of all that, 16 bytes.
"""

from __future__ import annotations

import os
import stat
import struct
import sys
from array import array
from contextlib import suppress
from typing import Literal, NamedTuple

from dmcore.errors import SpecError

__all__ = ["SUFFIX", "Saved", "recall", "save"]

SUFFIX = ".index"
"""What the name of the file has more than the log's."""

_MAGIC = b"pytest-dm index1"
_HEAD = struct.Struct("<16sQQQQQ")
_DIGEST = 16
_BYTES_OF_AN_ENTRY = 25


class Saved(NamedTuple):
    """What is known of a log's entries; columns as of `LogIndex`.

    Attributes:
        super_block: The log's super block: version, number of entries, sector size.
        extent: First byte of the device behind all that is written.
        complete: Whether the log ends with the target's end mark.
        marks: Entry number to text.
        warnings: What is odd about the log.
        sectors: Of each entry.
        counts: Of each entry.
        offsets: Of each entry.
        flags: Of each entry.
    """

    super_block: tuple[int, int, int]
    extent: int
    complete: bool
    marks: dict[int, str]
    warnings: list[str]
    sectors: array[int]
    counts: array[int]
    offsets: array[int]
    flags: array[int]


def _bytes(column: array[int]) -> bytes:
    if sys.byteorder == "big":
        column = array(column.typecode, column)
        column.byteswap()
    return column.tobytes()


def _column(code: Literal["Q", "B"], data: memoryview) -> array[int]:
    column: array[int] = array(code)
    column.frombytes(data)
    if sys.byteorder == "big":
        column.byteswap()
    return column


def save(log: str, status: os.stat_result, saved: Saved) -> str:
    """Write the index of a log beside it, in place of an older one; return its path.

    Args:
        log: The log's path.
        status: Of the log, from before it was scanned.
        saved: The index.

    Raises:
        SpecError: The log is no file: when a device was written is not known.
        OSError: The file cannot be written; an older one is left.
    """
    import json  # noqa: PLC0415 - with hashlib these take longer to load than many a log to scan
    from hashlib import blake2b  # noqa: PLC0415 - the same

    if not stat.S_ISREG(status.st_mode):
        raise SpecError(
            "save", log, "only the index of a file can be saved: a device does not say when it was written"
        )
    text = json.dumps({
        "super_block": saved.super_block, "complete": saved.complete, "warnings": saved.warnings,
        "marks": [[number, mark] for number, mark in saved.marks.items()],
    }).encode()  # fmt: skip
    head = _HEAD.pack(_MAGIC, status.st_size, status.st_mtime_ns, len(saved.flags), saved.extent, len(text))
    columns = (saved.sectors, saved.counts, saved.offsets, saved.flags)
    data = b"".join((head, text, *map(_bytes, columns)))
    path = log + SUFFIX
    temporary = f"{path}.{os.getpid()}"
    try:
        with open(temporary, "wb") as file:  # noqa: PTH123 - pathlib, too
            file.write(data + blake2b(data, digest_size=_DIGEST).digest())
        os.replace(temporary, path)  # noqa: PTH105 - the same
    except BaseException:
        with suppress(FileNotFoundError):
            os.unlink(temporary)  # noqa: PTH108 - the same
        raise
    return path


def recall(log: str, status: os.stat_result, super_block: tuple[int, int, int]) -> Saved | None:
    """Return the saved index of a log; None where there is none, or one of another state of the log."""
    if not stat.S_ISREG(status.st_mode) or not os.path.exists(log + SUFFIX):  # noqa: PTH110 - pathlib, too
        return None
    return _read(log + SUFFIX, status, super_block)


def _read(path: str, status: os.stat_result, super_block: tuple[int, int, int]) -> Saved | None:
    import json  # noqa: PLC0415 - with hashlib these take longer to load than many a log to scan
    from hashlib import blake2b  # noqa: PLC0415 - the same

    try:
        with open(path, "rb") as file:  # noqa: PTH123 - pathlib, too
            data = file.read()
    except OSError:
        return None
    if len(data) < _HEAD.size + _DIGEST:
        return None
    magic, size, changed, count, extent, length = _HEAD.unpack_from(data)
    view = memoryview(data)[:-_DIGEST]
    begin = _HEAD.size + length
    if (
        (magic, size, changed) != (_MAGIC, status.st_size, status.st_mtime_ns)
        or begin + count * _BYTES_OF_AN_ENTRY != len(view)
        or blake2b(view, digest_size=_DIGEST).digest() != data[-_DIGEST:]
    ):
        return None
    text = json.loads(bytes(view[_HEAD.size : begin]))
    if tuple(text["super_block"]) != super_block:
        return None
    sectors, counts, offsets = (
        _column("Q", view[begin + at * count * 8 : begin + (at + 1) * count * 8]) for at in range(3)
    )
    return Saved(
        super_block, extent, text["complete"], dict(text["marks"]), text["warnings"],
        sectors, counts, offsets, _column("B", view[begin + 3 * count * 8 :]),
    )  # fmt: skip
