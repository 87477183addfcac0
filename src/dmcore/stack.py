"""Stack: several tables with names, each of which may stand on others; up in order, down in reverse.

The text is what `dmsetup table` prints for many devices: `NAME: START LENGTH TARGET [PARAMETERS]`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from pathlib import PurePosixPath
from types import MappingProxyType
from typing import TYPE_CHECKING

from dmcore.errors import ParseError, SpecError
from dmcore.ref import Ref
from dmcore.table import Table

if TYPE_CHECKING:
    from collections.abc import Mapping

    from dmcore.target import Lookup

__all__ = ["Stack"]

_NAMED = re.compile(r"(?P<name>[^\s:]+):\s+(?P<line>[0-9]+\s+[0-9]+\s+\S.*)", re.ASCII)
_MAPPER = PurePosixPath("/dev/mapper")


@dataclass(frozen=True, slots=True)
class Stack:
    """Tables by name. A table stands on another if it names it, as "NAME" or "/dev/mapper/NAME".

    Attributes:
        tables: At least one, in the order that was given.
        top: The one that stands on all the others by default: the last.

    Raises:
        SpecError: No table, or tables that stand on each other.
    """

    tables: Mapping[str, Table]

    def __init__(self, tables: Mapping[str, Table]) -> None:
        object.__setattr__(self, "tables", MappingProxyType(dict(tables)))
        if not tables:
            raise SpecError("tables", {}, "a stack has at least one table")
        self.order()

    @classmethod
    def parse(cls, text: str, lookup: Lookup = Ref) -> Stack:
        """Read one table, or a stack: lines of one device that follow each other are one table.

        Lines without a name before them belong to a table called "" (a file with just one table needs no name).

        Raises:
            ParseError, SpecError: As `Table.parse`; a device that comes twice, or lines with and without names.
        """
        texts: dict[str, list[str]] = {}
        last: str | None = None
        for raw in text.splitlines():
            line = raw.strip()
            if not line or line.startswith("#"):
                continue
            match = _NAMED.fullmatch(line)
            name, params = (match["name"], match["line"]) if match else ("", line)
            if name != last and name in texts:
                raise ParseError(line, 0, f"{name}:", "all lines of a device one after the other")
            texts.setdefault(name, []).append(params)
            last = name
        if "" in texts and len(texts) > 1:
            raise ParseError(
                texts[""][0], 0, texts[""][0].split()[0], "a device's name, as the other lines have"
            )
        return cls({name: Table.parse("\n".join(lines), lookup) for name, lines in texts.items()})

    @property
    def top(self) -> str:
        """Name of the last table."""
        return list(self.tables)[-1]

    def below(self, ref: Ref) -> str | None:
        """Return the name of the table that `ref` means, None if it is a device of somebody else."""
        if ref.name in self.tables:
            return ref.name
        path = PurePosixPath(ref.name)
        return path.name if path.parent == _MAPPER and path.name in self.tables else None

    def _before(self, name: str) -> set[str]:
        """Return the tables that one stands on, and those it serves."""
        table = self.tables[name]
        found = {below for ref in table.refs() if (below := self.below(ref)) is not None}
        for other, its in self.tables.items():
            pairs = ((line.target, served.target) for line in table.lines for served in its.lines)
            if other != name and any(target.serves(served) for target, served in pairs):
                found.add(other)
        return found

    def order(self) -> tuple[str, ...]:
        """Return the names in an order in which each stands on earlier ones only.

        Raises:
            SpecError: There is none: tables stand on each other.
        """
        try:
            return tuple(TopologicalSorter({name: self._before(name) for name in self.tables}).static_order())
        except CycleError as error:
            raise SpecError(
                "tables", " -> ".join(error.args[1]), "these tables stand on each other"
            ) from None

    def needed(self, top: str) -> tuple[str, ...]:
        """Return the names that `top` stands on or serves, and itself at the end, in order.

        Raises:
            SpecError: There is no such table.
        """
        if top not in self.tables:
            raise SpecError("top", top, f"the stack has {', '.join(self.tables)}")
        wanted = {top}
        for name in reversed(self.order()):
            if name in wanted:
                wanted |= self._before(name)
        return tuple(name for name in self.order() if name in wanted)

    def outside(self, top: str | None = None) -> tuple[Ref, ...]:
        """Return the devices that the stack (or what `top` needs of it) names but does not hold, each once."""
        names = self.order() if top is None else self.needed(top)
        found = (ref for name in names for ref in self.tables[name].refs() if self.below(ref) is None)
        return tuple(dict.fromkeys(found))

    def __str__(self) -> str:
        return "\n".join(
            f"{name}: {line}" if name else line
            for name, table in self.tables.items()
            for line in str(table).splitlines()
        )
