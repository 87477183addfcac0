"""A table: which target serves which sectors. Text as `dmsetup` reads and prints it, both ways.

Sources: drivers/md/dm-table.c (dm_table_add_target, dm_table_create), drivers/md/dm-ioctl.c (populate_table), and
lvm2's libdm/dm-tools/dmsetup.c (_parse_line) for the text.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from dmcore import registry, validate
from dmcore.abi.dm import TableLine
from dmcore.errors import ParseError, SpecError
from dmcore.params import Tokens, masked
from dmcore.ref import Ref
from dmcore.target import Target
from dmcore.targets._raw import Raw

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from dmcore.target import Features, Lookup, Requirement, Resolve

__all__ = ["MAX_LINES", "MAX_SECTORS", "Line", "Table"]

MAX_SECTORS = 2**54 - 1
"""Most sectors a device can have: 2^63-1 bytes."""

MAX_LINES = 1_048_576
"""Most lines of a table (DM_MAX_TARGETS)."""

_NUMBER = r"[0-9]{1,4000}"
_LINE = re.compile(
    rf"(?P<start>{_NUMBER})\s+(?P<length>{_NUMBER})\s+(?P<type>\S+)(?P<params>(?:\s.*)?)", re.ASCII
)
_HAS_KEYS = re.compile(r"crypt|integrity|hash")
_KEY_LIKE = re.compile(r"[0-9a-fA-F]{24,}")
"""What might be a key in a line of which nothing else is known."""
_COMMENT = re.compile(r"(?:^|\s)#.*", re.ASCII)
_WORDS = ("the start sector", "the length in sectors", "a target's name")


@dataclass(frozen=True, slots=True)
class Line:
    """One target and the sectors of the device that it serves.

    Attributes:
        start: First sector of the device, 0..2^54-2.
        length: Sectors, at least 1; `start + length` is at most 2^54-1.
        target: What serves them.

    Raises:
        SpecError: A value out of range, or one the target cannot serve (`Target.check`).
    """

    start: int
    length: int
    target: Target

    def __post_init__(self) -> None:
        validate.integer("start", self.start, 0, MAX_SECTORS - 1, "sectors")
        validate.integer("length", self.length, 1, MAX_SECTORS, "sectors")
        if self.start + self.length > MAX_SECTORS:
            raise SpecError("length", self.length, f"start + length is more than {MAX_SECTORS} sectors")
        validate.instance("target", self.target, Target, "targets.Zero()")
        self.target.check(self.start, self.length)

    @property
    def end(self) -> int:
        """The first sector after the line."""
        return self.start + self.length

    def encode(self, resolve: Resolve) -> TableLine:
        """Return the line as the kernel's records hold it, each device as the word that `resolve` gives."""
        return TableLine(self.start, self.length, self.target.kernel_type, self.target.encode(resolve))

    def __str__(self) -> str:
        kind = self.target.kernel_type
        return f"{self.start} {self.length} {kind} {masked(kind, self.target.encode(str))}".rstrip()


@dataclass(frozen=True, slots=True)
class Table:
    """Lines that cover a device from sector 0 to its end, each sector once.

    Attributes:
        lines: At least one, at most 2^20, in order.

    Raises:
        SpecError: No line, too many, a target among others that must be alone, or the first line that leaves a gap or
            overlaps, as `lines[2].start`.
    """

    lines: tuple[Line, ...]

    def __init__(self, lines: Iterable[Line]) -> None:
        object.__setattr__(self, "lines", tuple(lines))
        if not 1 <= len(self.lines) <= MAX_LINES:
            raise SpecError("lines", len(self.lines), f"a table has 1..{MAX_LINES} lines")
        end = 0
        for index, line in enumerate(self.lines):
            validate.instance(f"lines[{index}]", line, Line, "Line(0, 8, targets.Zero())")
            if line.start != end:
                wrong = "leaves a gap after" if line.start > end else "overlaps"
                where = f"the line before, which ends at {end}" if index else "the device's first sector, 0"
                raise SpecError(f"lines[{index}].start", line.start, f"{wrong} {where}")
            end = line.end
            if line.target.singleton and len(self.lines) > 1:
                only = f"{line.target.kernel_type} must be the only line of its table"
                raise SpecError("lines", len(self.lines), only)

    @classmethod
    def of(cls, target: Target, length: int) -> Table:
        """Return the table of one target that serves all of `length` sectors."""
        return cls((Line(0, length, target),))

    @classmethod
    def parse(cls, text: str, lookup: Lookup = Ref) -> Table:
        """Read a table as `dmsetup` does.

        One line per target: `START LENGTH TARGET [PARAMETERS]`. Empty lines do not count, and what stands behind a
        `#` at the beginning of a word is a comment. (`dmsetup` cuts at a `#` inside a word too; device names may
        have one, so that here it belongs to the word.) A target that the library has no file for becomes `Raw`.

        Args:
            text: The table; a kernel's own line, with its trailing blanks, reads just as well.
            lookup: Gives the `Ref` for a device's word; by default the word is the name.

        Raises:
            ParseError: A line that is none, or parameters the kernel's constructor would not understand.
            SpecError: Values it would refuse, gaps and overlaps; the field begins with the line, as `lines[2].`
        """
        return cls(_parsed(text, lookup))

    @classmethod
    def from_lines(cls, lines: Iterable[TableLine], lookup: Lookup = Ref) -> Table:
        """Return the table for the records that the kernel gave; errors are those of `parse`."""
        return cls(_decoded(index, line, lookup) for index, line in enumerate(lines))

    @property
    def length(self) -> int:
        """Sectors of the device."""
        return self.lines[-1].end

    def refs(self) -> tuple[Ref, ...]:
        """Return the devices below, each once, in the order the table names them first."""
        return tuple(dict.fromkeys(ref for line in self.lines for ref in line.target.refs()))

    @property
    def readonly(self) -> bool:
        """Whether a target can only be loaded read-only: pass it to `Control.load`; `Device` looks by itself."""
        return any(line.target.readonly for line in self.lines)

    @property
    def secret(self) -> bool:
        """Whether a line holds a key: pass it as `secure` to `Control.load`; `Device` looks by itself."""
        return any(line.target.secret for line in self.lines)

    def needs(self) -> tuple[Requirement, ...]:
        """Return what a kernel must offer to load the table, each requirement once."""
        return tuple(dict.fromkeys(line.target.needs() for line in self.lines))

    def readback(self, features: Features) -> Table:
        """Return the table that a kernel with `features` reports after loading this one."""
        return Table(Line(line.start, line.length, line.target.readback(features)) for line in self.lines)

    def encode(self, resolve: Resolve) -> list[TableLine]:
        """Return the lines as the kernel's records hold them, each device as the word that `resolve` gives.

        Keys are in them; `str(table)`, and `str` and `repr` of each record, show `<32-byte-key>` instead.
        """
        return [line.encode(resolve) for line in self.lines]

    def __str__(self) -> str:
        return "\n".join(map(str, self.lines))


def _parsed(text: str, lookup: Lookup) -> Iterator[Line]:
    stripped = (_COMMENT.sub("", line).strip() for line in text.split("\n"))
    for index, line in enumerate(line for line in stripped if line):
        match = _LINE.fullmatch(line)
        if match is None:
            raise _not_a_line(line)
        start, length = int(match["start"]), int(match["length"])
        yield _decoded(index, _Fields(start, length, match["type"], match["params"].strip()), lookup)


class _Fields(NamedTuple):
    """A line as text has it: `TableLine` before its fields are known to fit the kernel's records."""

    start: int
    length: int
    type: str
    params: str


def _not_a_line(line: str) -> ParseError:
    line = line if _HAS_KEYS.search(line) is None else _KEY_LIKE.sub("<key>", line)
    words = line.split()
    for index, expected in enumerate(_WORDS):
        word = words[index] if index < len(words) else None
        if word is None or (index < 2 and not re.fullmatch(_NUMBER, word)):
            return ParseError(line, index, word, expected)
    return ParseError(line, 2, words[2], _WORDS[2])


def _decoded(index: int, line: TableLine | _Fields, lookup: Lookup) -> Line:
    """Decode one line; errors get the line's number, and word positions count from the line's first word."""
    kind = registry.find(line.type)
    try:
        if kind is None:
            return Line(line.start, line.length, Raw(line.type, line.params))
        target = kind.decode(Tokens(line.params, target=line.type), lookup)
        return Line(line.start, line.length, target)
    except ParseError as error:
        text = f"{line.start} {line.length} {line.type} {masked(line.type, line.params)}"
        raise ParseError(text, error.index + 3, error.word, error.expected, line.type) from None
    except SpecError as error:
        raise SpecError(f"lines[{index}].{error.field}", error.value, error.reason) from None
