"""Tables as dmsetup reads and prints them. Source: lvm2, libdm/dm-tools/dmsetup.c (_parse_line, _create_concise, hide_key).

Nothing looks at a target's words here but for the keys: the kernel does, so that any target can be loaded.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from dmcore.abi.dm import TYPE_MAX, TableLine, encode_text
from dmcore.cli._dmsetup.failed import Failed

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["Entry", "concise_entries", "holds_key", "parse", "quoted", "read", "without_keys"]

_LINE = re.compile(
    r"(?P<start>[+-]?[0-9]++)\s*(?P<length>[+-]?[0-9]++)\s*(?P<type>\S+)\s*(?P<params>.*)",
    re.ASCII | re.DOTALL,
)
_SECRET = frozenset({"crypt", "integrity", "inlinecrypt"})
_INTEGRITY_KEYS = ("internal_hash:", "journal_crypt:", "journal_mac:")
_U64 = 1 << 64
_SHORT = 8
"""Longest word that is shown where a table may stand by mistake."""
_BLANK = " \t\n\v\f\r"


def _unsigned(word: str) -> int:
    """Return what scanf's %llu makes of a number: too large is the largest, negative wraps."""
    value = int(word[:40])
    if abs(value) >= _U64:
        return _U64 - 1
    return value % _U64


def _parse_line(text: str, number: int, source: str) -> TableLine | None:
    stripped = text.strip(_BLANK)
    if not stripped or stripped.startswith("#"):
        return None
    match = _LINE.match(stripped)
    if match is None:
        raise Failed(f"Invalid format on line {number} of table {source}.")
    if len(encode_text(match["type"])) > TYPE_MAX:
        raise Failed(f"Target type name {match['type']} is too long.")
    params = match["params"].partition("#")[0].replace("\\", "\\\\")
    return TableLine(_unsigned(match["start"]), _unsigned(match["length"]), match["type"], params)


def parse(text: str, source: str = "") -> list[TableLine]:
    r"""Return the lines of a table, comments and empty ones left out.

    Backslashes reach the target as they stand: the kernel's splitter takes `\\` for one.

    Args:
        text: START LENGTH TARGET [PARAMETERS] in each line.
        source: Where it is from, for errors, which do not show the text: it may hold a key.

    Raises:
        Failed: A line that is none.
    """
    lines = (_parse_line(line, number, source) for number, line in enumerate(text.split("\n"), 1))
    return [line for line in lines if line is not None]


def read(table: str | None, file: str | None) -> list[TableLine]:
    """Return the table of --table, else of a file, else of standard input.

    Raises:
        Failed: It cannot be read, or a line is none.
    """
    if table is not None:
        return parse(table)
    if file is None:
        return parse(sys.stdin.read().partition("\0")[0], "on stdin")
    try:
        text = Path(file).read_text(encoding="utf-8", errors="surrogateescape")
    except OSError:
        raise Failed(f"Couldn't open '{file}' for reading.") from None
    return parse(text.partition("\0")[0], file)


def holds_key(lines: list[TableLine]) -> bool:
    """Whether a line may hold a key, so that the kernel should wipe the request."""
    return any(line.type in _SECRET for line in lines)


def _hide(word: str, params: str) -> str:
    """Return `params` with the optional key after the first `word` and its algorithm as zeros."""
    start = params.find(word)
    if start < 0:
        return params
    match = re.compile(r"[^ :]*:([^ ]*)").match(params, start + len(word))
    if match is None:
        return params
    return f"{params[: match.start(1)]}{'0' * len(match[1])}{params[match.end(1) :]}"


def without_keys(line: TableLine) -> str:
    """Return the line's parameters with keys as zeros, of the same length; names of keys in a keyring stay."""
    params = line.params
    if line.type in {"crypt", "inlinecrypt"}:
        cipher, blank, rest = params.partition(" ")
        key, gap, last = rest.partition(" ")
        if blank and not key.startswith(":"):
            return f"{cipher} {'0' * len(key)}{gap}{last}"
    if line.type == "integrity":
        for word in _INTEGRITY_KEYS:
            params = _hide(word, params)
    return params


def quoted(text: str) -> str:
    """Return `text` as a field of a concise specification."""
    return re.sub(r"[,;\\]", r"\\\g<0>", text)


class Entry(NamedTuple):
    """A device of a concise specification.

    Attributes:
        name: Its name.
        uuid: Its uuid, "" for none.
        minor: Its minor number as text, "" for any.
        flags: "ro", "rw" or "".
        table: Its table, a line for each target.
    """

    name: str
    uuid: str
    minor: str
    flags: str
    table: str


def _incomplete(fields: list[str], first: str) -> Failed:
    """Return the error for an entry; its fields are not shown, since a table may stand in any of them by mistake."""
    return Failed(first, f"Parsed {len(fields)} fields")


def _pieces(text: str) -> Iterator[tuple[str, bool]]:
    """Give each character of the text, and whether a backslash quoted it; "" with True for one without its character."""
    index = 0
    while index < len(text):
        if text[index] == "\\":
            yield text[index + 1 : index + 2], True
            index += 2
        else:
            yield text[index], False
            index += 1


def concise_entries(text: str) -> Iterator[Entry]:
    """Give the devices of `name,uuid,minor,flags,table[,table line ...][;...]` one after the other.

    Raises:
        Failed: An entry with another number of fields, after those before it were given.
    """
    fields = [""]
    skipping = False
    for character, literal in _pieces(text):
        if literal and not character:
            raise _incomplete(fields, "Backslash must be followed by another character at end of string.")
        if skipping and not literal and character in _BLANK:
            continue
        skipping = False
        if literal or character not in ",;":
            fields[-1] += character
        elif character == ";":
            yield _entry(fields)
            fields, skipping = [""], True
        elif len(fields) < 5:
            fields.append("")
            skipping = True
        else:
            fields[-1] += "\n"
    if fields == [""]:
        return
    yield _entry(fields)


def _entry(fields: list[str]) -> Entry:
    if len(fields) != 5:
        raise _incomplete(fields, "Five comma-separated fields are required for each device")
    if fields[3] not in {"", "ro", "rw"}:
        shown = fields[3] if len(fields[3]) <= _SHORT else "(not shown)"
        raise Failed(f"Invalid flags parameter '{shown}' must be 'ro' or 'rw' or empty.")
    return Entry(*fields)
