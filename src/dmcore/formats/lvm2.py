"""LVM2 on a disk: the label, and the text that describes a volume group.

Sources: LVM2's lib/format_text/layout.h, lib/label/label.h, lib/config/config.c, man lvm.conf(5) for the grammar. Read only.
"""

from __future__ import annotations

import re
import struct
import zlib
from typing import TYPE_CHECKING, NamedTuple, Protocol, TypeAlias

from dmcore.errors import FormatError
from dmcore.units import SECTOR

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["PhysicalVolume", "Section", "Value", "parse_text"]

Value: TypeAlias = "int | float | str | list[Value] | Section"
Section: TypeAlias = "dict[str, Value]"

_LABEL_SECTORS = 4
_LABEL = struct.Struct("<8sQII8s")
_AREA = struct.Struct("<QQ")
_MDA_HEADER = struct.Struct("<I16sIQQ")
_LOCATION = struct.Struct("<QQII")
_MDA_MAGIC = b" LVM2 x[5A%r0N*>"
_MDA_HEADER_SIZE = 512
_CRC_INITIAL = 0xF597A6CF
_MOST_TEXT = 1 << 26
_DEEPEST = 32
_IGNORED = 1

_TOKEN = re.compile(
    r'\s+|#[^\n]*|(?P<string>"(?:[^"\\]|\\.)*")|(?P<number>-?[0-9]+(?:\.[0-9]+)?)(?![\w.+-])|(?P<word>[\w.+-]+)|(?P<sign>[{}\[\]=,])',
    re.ASCII,
)


class _Disk(Protocol):
    sectors: int

    def read(self, sector: int, count: int) -> bytearray: ...


def _crc(data: bytes | bytearray | memoryview) -> int:
    """Return LVM2's checksum: CRC-32 with another beginning and nothing done at the end."""
    return zlib.crc32(data, _CRC_INITIAL ^ 0xFFFFFFFF) ^ 0xFFFFFFFF


class PhysicalVolume(NamedTuple):
    """A disk of a volume group.

    Attributes:
        uuid: Its id, as the text has it.
        text: The volume group's description; "" on a disk without metadata areas in use.
    """

    uuid: str
    text: str

    @classmethod
    def read(cls, disk: _Disk) -> PhysicalVolume:
        """Read the label of a disk, and the text from the first metadata area that is in order.

        Raises:
            FormatError: There is no label, or no area is in order.
        """
        head = disk.read(0, min(_LABEL_SECTORS, disk.sectors))
        for sector in range(len(head) // SECTOR):
            label = memoryview(head)[sector * SECTOR : (sector + 1) * SECTOR]
            magic, number, checksum, first, kind = _LABEL.unpack_from(label)
            if (magic, number, kind) == (b"LABELONE", sector, b"LVM2 001"):
                if checksum != _crc(label[20:]):
                    raise FormatError("the checksum of the LVM2 label is wrong", sector * SECTOR)
                return cls._of_label(disk, label, first, sector * SECTOR)
        raise FormatError("there is no LVM2 label", 0)

    @classmethod
    def _of_label(cls, disk: _Disk, label: memoryview, first: int, where: int) -> PhysicalVolume:
        raw = bytes(label[first : first + 32]).decode("ascii", "replace")
        data = sum(1 for _ in _areas(label, first + 40, where))
        found: FormatError | None = None
        for offset, size in _areas(label, first + 40 + _AREA.size * (data + 1), where):
            try:
                return cls(raw, _read_text(disk, offset, size))
            except FormatError as error:
                found = error
        if found is not None:
            raise found
        return cls(raw, "")


def _areas(label: memoryview, at: int, where: int) -> Iterator[tuple[int, int]]:
    """Yield `(offset, size)` in bytes of a list that ends with a zero offset."""
    while at + _AREA.size <= len(label):
        offset, size = _AREA.unpack_from(label, at)
        if not offset:
            return
        yield offset, size
        at += _AREA.size
    raise FormatError("a list of areas has no end in the LVM2 label", where)


def _bytes(disk: _Disk, offset: int, size: int) -> bytearray:
    first, end = offset // SECTOR, -(-(offset + size) // SECTOR)
    if end > disk.sectors:
        raise FormatError("LVM2 metadata would end behind the disk", offset)
    return disk.read(first, end - first)[offset % SECTOR : offset % SECTOR + size]


def _read_text(disk: _Disk, offset: int, size: int) -> str:
    header = _bytes(disk, offset, _MDA_HEADER_SIZE)
    checksum, magic, version, start, length = _MDA_HEADER.unpack_from(header)
    if (magic, version, start) != (_MDA_MAGIC, 1, offset) or checksum != _crc(memoryview(header)[4:]):
        raise FormatError("the header of an LVM2 metadata area is damaged", offset)
    at, count, text_sum, flags = _LOCATION.unpack_from(header, _MDA_HEADER.size)
    if not at or flags & _IGNORED:
        return ""
    length = min(length, size)
    if not _MDA_HEADER_SIZE <= at < length or not 0 < count <= min(length - _MDA_HEADER_SIZE, _MOST_TEXT):
        raise FormatError(f"LVM2 metadata of {count} bytes at {at} do not lie in their area", offset)
    here = min(count, length - at)
    data = _bytes(disk, offset + at, here)
    if here < count:
        data += _bytes(disk, offset + _MDA_HEADER_SIZE, count - here)
    if text_sum != _crc(data):
        raise FormatError("the checksum of the LVM2 metadata is wrong", offset + at)
    return data.rstrip(b"\0").decode("utf-8", "replace")


class _Words:
    """The words of a text, and where each begins."""

    def __init__(self, text: str) -> None:
        self._found: list[tuple[str, str, int]] = []
        self._next = 0
        at = 0
        while at < len(text):
            match = _TOKEN.match(text, at)
            if match is None:
                raise FormatError(f"LVM2 metadata with {text[at : at + 10]!r}", at)
            if match.lastgroup is not None:
                self._found.append((match.lastgroup, match[match.lastgroup], at))
            at = match.end()
        self._end = at

    def next(self) -> tuple[str, str]:
        """Take the next word: its kind, and itself; ("", "") at the end."""
        if self._next >= len(self._found):
            return "", ""
        kind, word, _ = self._found[self._next]
        self._next += 1
        return kind, word

    def peek(self) -> str:
        """Return the next word without taking it."""
        return self._found[self._next][1] if self._next < len(self._found) else ""

    def error(self, what: str) -> FormatError:
        """Return an error at the word taken last."""
        at = self._found[self._next - 1][2] if self._next and self._found else 0
        return FormatError(f"LVM2 metadata: {what}", at)


def parse_text(text: str) -> Section:
    """Read sections and values.

    Raises:
        FormatError: The text is not in LVM2's grammar.
    """
    words = _Words(text)
    found = _section(words, 0)
    if words.peek():
        words.next()
        raise words.error("a bracket too many")
    return found


def _section(words: _Words, depth: int) -> Section:
    found: Section = {}
    if depth > _DEEPEST:
        raise words.error("too many sections in each other")
    while words.peek() not in {"", "}"}:
        kind, name = words.next()
        if kind == "sign":
            raise words.error(f"{name!r} where a name should be")
        _, sign = words.next()
        if sign == "{":
            found[name] = _section(words, depth + 1)
            if words.next()[1] != "}":
                raise words.error(f"section {name} has no end")
        elif sign == "=":
            found[name] = _value(words)
        else:
            raise words.error(f"{sign!r} behind the name {name}")
    return found


def _value(words: _Words) -> Value:
    kind, word = words.next()
    if word == "[":
        return _array(words)
    if kind == "string":
        return re.sub(r"\\(.)", r"\1", word[1:-1])
    if kind == "number":
        return float(word) if "." in word else int(word)
    raise words.error(f"{word!r} where a value should be")


def _array(words: _Words) -> list[Value]:
    found: list[Value] = []
    while words.peek() != "]":
        if not words.peek() or words.peek() == "[":
            raise words.error("an array has no end")
        found.append(_value(words))
        if words.peek() == ",":
            words.next()
    words.next()
    return found
