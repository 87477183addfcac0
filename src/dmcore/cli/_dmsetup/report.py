"""Reports: columns of many devices, sorted, aligned, selected. Source: lvm2, libdm/libdm-report.c."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from dmcore.abi.dm import encode_text
from dmcore.cli._dmsetup.columns import COLUMNS, GROUPS, SPECIAL, Column, Item
from dmcore.cli._dmsetup.failed import Failed
from dmcore.cli._dmsetup.session import Reply

if TYPE_CHECKING:
    from collections.abc import Callable

    from dmcore.cli._dmsetup.columns import Shown, SplitName
    from dmcore.cli._dmsetup.selection import Selection
    from dmcore.cli._dmsetup.session import Session
    from dmcore.cli._dmsetup.stats_columns import Row

    Value = str | int | Shown

__all__ = ["INFO", "SPLITNAME", "Form", "Report", "column_help"]


@dataclass(frozen=True, slots=True)
class Form:
    """What a verb's report can show.

    Attributes:
        default: The columns without -o.
        columns: Those that there are.
        prefix: The group that "all" stands for, and that names need not begin with; "" for every group.
        every: Without a prefix, the groups that "all" stands for; none for every group.
    """

    default: str
    columns: tuple[Column, ...] = COLUMNS
    prefix: str = ""
    every: tuple[str, ...] = ()

    def find(self, name: str) -> Column | None:
        """Return the column of a name: underscores and case do not count; None if there is none."""
        wanted = {_canonical(name), self.prefix + _canonical(name)}
        return next((one for one in (*SPECIAL, *self.columns) if _canonical(one.name) in wanted), None)

    def group(self, name: str) -> list[Column]:
        """Return the columns of `all`, or of `GROUP_all`."""
        word = _canonical(name)
        if word != "all":
            return [one for one in self.columns if word == f"{one.group}all"]
        groups = (self.prefix,) if self.prefix else self.every
        return [one for one in self.columns if not groups or one.group in groups]


INFO = Form("name,major,minor,attr,open,segments,events,uuid")
SPLITNAME = Form("vg_name,lv_name,lv_layer", prefix="splitname")


def _canonical(name: str) -> str:
    return name.replace("_", "").lower()


def column_help(columns: tuple[Column, ...] = COLUMNS, *, types: bool = False, groups: bool = True) -> str:
    """Return the list of columns for people."""
    wide = max(len(one.name) for one in columns)
    blocks: list[str] = []
    about = ""
    for one in (*columns, *SPECIAL):
        if GROUPS[one.group] != about:
            about = GROUPS[one.group]
            title = f"{about} Fields"
            blocks.append(f"{' ' if blocks else ''}\n{title}\n{'-' * len(title)}".lstrip("\n"))
            if groups and one.group != "special":
                blocks.append(f"  {one.group + '_all':<{wide}} - All fields in this section.")
        kind = f" [{'size' if one.size else 'number' if one.number else 'string'}]" if types else ""
        blocks.append(f"  {one.name:<{wide}} - {one.about}{kind}")
    return "\n".join(blocks) + "\n \n"


@dataclass(slots=True)
class _Row:
    """The values of one item."""

    values: dict[Column, Value]
    selected: bool

    def text(self, one: Column) -> str:
        return str(int(self.selected)) if one.name == "selected" else str(self.values[one])


@dataclass(frozen=True, slots=True)
class _Key:
    """A column to sort by."""

    column: Column
    descending: bool


class Report:
    """Rows and how they are printed.

    Args:
        session: The run.
        form: What it can show.

    Attributes:
        quiet: Only help was asked for.
        instead: What is done with the name of each device that is selected, in place of a row.

    Raises:
        Failed: A column that there is not.
    """

    def __init__(self, session: Session, form: Form = INFO) -> None:
        options = session.options
        self.session = session
        self.quiet = False
        self.instead: Callable[[str], None] | None = None
        self.form = form
        asked = options.value("options")
        if asked is not None and asked.startswith("+"):
            asked = f"{form.default},{asked[1:]}"
        self.columns = self._columns(form.default if asked is None else asked)
        self.keys = self._keys(options.value("sort") or "")
        self.rows: list[_Row] = []
        self.selection = self._selection(options.value("select") or "")
        self._layout()
        if any(one.name in {"help", "?"} for one in self.columns):
            sys.stderr.write(column_help(form.columns))
            self.quiet = True

    @property
    def wanted(self) -> list[Column]:
        """The columns whose values are needed: to show, to sort by, to select by."""
        wanted = [*self.columns, *(key.column for key in self.keys)]
        return [*wanted, *(self.selection.columns if self.selection else [])]

    def _layout(self) -> None:
        given = self.session.options.has
        self.as_rows, self.prefixes, self.quoted = given("rows"), given("nameprefixes"), not given("unquoted")
        separator = self.session.options.value("separator")
        self.headings = not given("noheadings")
        self.separator = separator or (":" if not self.headings else " ")
        self.aligned = self.headings and not self.prefixes and not separator and not self.as_rows
        self.buffered = not given("unbuffered") or bool(self.keys) or self.as_rows
        self._headed = False

    def _columns(self, text: str) -> list[Column]:
        found: list[Column] = []
        for word in filter(None, text.split(",")):
            one = self.form.find(word)
            several = [one] if one is not None else self.form.group(word)
            if not several:
                raise Failed(*column_help(self.form.columns).splitlines(), f"Unrecognised field: {word}")
            found += several
        return found

    def _keys(self, text: str) -> list[_Key]:
        keys: list[_Key] = []
        for word in filter(None, text.split(",")):
            name = word.removeprefix("-") if word.startswith("-") else word.removeprefix("+")
            if not name:
                raise Failed("dm_report: Missing sort field name")
            one = self.form.find(name)
            if one is None:
                lines = column_help(self.form.columns).splitlines()
                raise Failed(*lines, f"dm_report: Unrecognised field: {word}")
            if any(key.column is one for key in keys):
                sys.stderr.write(f"dm_report: Ignoring duplicate sort field: {one.name}.\n")
                continue
            keys.append(_Key(one, word.startswith("-")))
        return keys

    def _selection(self, text: str) -> Selection | None:
        if not text or text.lower() == "all":
            return None
        from dmcore.cli._dmsetup import selection  # noqa: PLC0415 - only for -S

        if text.lower() in {"help", "?"}:
            sys.stderr.write(column_help(self.form.columns, types=True, groups=False) + selection.HELP)
            self.quiet = True
            return None
        return selection.parse(text, self.form)

    def _evaluate(self, session: Session, subject: Reply | SplitName | Row) -> _Row:
        """Return the row of a subject, and whether it is selected."""
        item = Item(session, subject)
        values = {one: _value(one, item) for one in dict.fromkeys(self.wanted)}
        return _Row(values, self.selection.accepts(values) if self.selection else True)

    def add(self, session: Session, subject: Reply | SplitName | Row) -> None:
        """Add a row; print it at once if the report is not to be buffered."""
        if self.quiet:
            return
        row = self._evaluate(session, subject)
        if self.instead is not None:
            if row.selected and isinstance(subject, Reply):
                self.instead(session.shown(subject.header.name))
            return
        if row.selected or any(one.name == "selected" for one in self.columns):
            self.rows.append(row)
        if not self.buffered and self.rows:
            self._print()

    def output(self) -> None:
        """Print what there is, and be ready for the next turn."""
        if self.rows:
            self._headed = False
            self._print()

    def _print(self) -> None:
        if self.buffered:
            for key in reversed(self.keys):
                self.rows.sort(key=partial(_order, one=key.column), reverse=key.descending)
        lines = self._as_rows() if self.as_rows else self._as_columns()
        sys.stdout.write("".join(f"{line}\n" for line in lines))
        self.rows.clear()

    def _as_rows(self) -> list[str]:
        lines: list[str] = []
        for one in self.columns:
            head = f"{one.heading}{self.separator}" if self.headings else ""
            lines.append(head + self.separator.join(self._cell(row, one, 0) for row in self.rows))
        return lines

    def _as_columns(self) -> list[str]:
        widths = [
            max([one.width, *(len(encode_text(row.text(one))) for row in self.rows)]) for one in self.columns
        ]
        lines: list[str] = []
        if self.headings and not self._headed:
            lines.append(self.separator.join(map(self._heading, self.columns, widths)))
        self._headed = True
        for row in self.rows:
            cells = (self._cell(row, one, width) for one, width in zip(self.columns, widths, strict=True))
            lines.append(self.separator.join(cells))
        return lines

    def _heading(self, one: Column, width: int) -> str:
        return f"{one.heading[:width]:<{width}}" if self.aligned else one.heading

    def _cell(self, row: _Row, one: Column, width: int) -> str:
        text = row.text(one)
        if self.prefixes:
            quote = "'" if self.quoted else ""
            return f"DM_{one.name.upper()}={quote}{text}{quote}"
        if not self.aligned:
            return text
        padding = " " * (width - len(encode_text(text)))
        return padding + text if one.number else text + padding


def _value(one: Column, item: Item) -> Value:
    try:
        return one.value(item)
    except Failed as error:
        raise Failed(
            *error.lines, f"_do_report_object: report function failed for field {one.name}"
        ) from None


def _order(row: _Row, one: Column) -> tuple[float, bytes]:
    """Return what a row is sorted by: numbers as unsigned 64 bits, text by its bytes."""
    if one.name == "selected":
        return int(row.selected), b""
    value = row.values[one]
    if isinstance(value, str):
        return 0, encode_text(value)
    return (value % (1 << 64) if isinstance(value, int) else value.number), b""
