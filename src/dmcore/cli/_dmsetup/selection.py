"""-S: which devices a report or a verb is about. Source: lvm2, libdm/libdm-report.c (_parse_or_ex and others)."""

from __future__ import annotations

import operator
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from dmcore.cli._dmsetup.failed import Failed
from dmcore.cli._dmsetup.report import column_help

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from dmcore.cli._dmsetup.columns import Column, Shown
    from dmcore.cli._dmsetup.report import Form

    Values = Mapping[Column, str | int | Shown]

__all__ = ["HELP", "Selection", "parse"]

HELP = """\
Selection
---------
  FIELD OPERATOR VALUE, joined by && or , (all must match), || or # (one must), with ( ) around and ! before ( ).
  =~ and !~   - Whether a regular expression is found in a field of text, or is not.
  = and !=    - Whether field and value are equal, or are not.
  >= > <= <   - For numbers.
  A value may stand in quotes, ' or "; a regular expression also in ( ), [ ] or { }.
\x20
"""

_FIELD = re.compile(r"\s*(?P<name>[0-9A-Za-z_-]+|\?)", re.ASCII)
_OPERATOR = re.compile(r"\s*(=~|!~|!=|=|>=|>|<=|<|since|after|until|before)", re.ASCII)
_AND, _OR = re.compile(r"\s*(?:&&|,)"), re.compile(r"\s*(?:\|\||#)")
_OPEN, _CLOSE, _NOT = re.compile(r"\s*\("), re.compile(r"\s*\)"), re.compile(r"\s*!")
_STOP = re.compile(r"&&|,|\|\||#|\)| ")
_NUMBER = re.compile(r"[0-9.]+", re.ASCII)
_BRACKETS = {"(": ")", "{": "}", "[": "]", '"': '"', "'": "'"}
_TIME = frozenset({"since", "after", "until", "before"})


class Term(Protocol):
    """A condition."""

    def accepts(self, values: Values) -> bool:
        """Whether a row with these values meets it."""
        ...


@dataclass(frozen=True, slots=True)
class _Matches:
    """A regular expression is found in a field of text, or is not."""

    column: Column
    pattern: re.Pattern[str]
    found: bool

    def accepts(self, values: Values) -> bool:
        return (self.pattern.search(str(values[self.column])) is not None) == self.found


@dataclass(frozen=True, slots=True)
class _Equals:
    """A field of text is equal, or is not."""

    column: Column
    text: str
    equal: bool

    def accepts(self, values: Values) -> bool:
        return (str(values[self.column]) == self.text) == self.equal


_COMPARE: dict[str, Callable[[float, float], bool]] = {
    "=": operator.eq, "!=": operator.ne, ">": operator.gt, ">=": operator.ge, "<": operator.lt, "<=": operator.le,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class _Compares:
    """A number is equal, less or more; negative ones count as unsigned of 64 bits."""

    column: Column
    compare: Callable[[float, float], bool]
    number: float

    def accepts(self, values: Values) -> bool:
        value = values[self.column]
        if isinstance(value, str | int):
            return self.compare(int(value) % (1 << 64), self.number)
        return self.compare(value.number, self.number)


@dataclass(frozen=True, slots=True)
class _Several:
    terms: tuple[Term, ...]
    every: bool

    def accepts(self, values: Values) -> bool:
        met = (term.accepts(values) for term in self.terms)
        return all(met) if self.every else any(met)


@dataclass(frozen=True, slots=True)
class _Negated:
    term: Term

    def accepts(self, values: Values) -> bool:
        return not self.term.accepts(values)


@dataclass(frozen=True, slots=True)
class Selection:
    """A whole -S.

    Attributes:
        term: Its condition.
        columns: The columns that it compares.
    """

    term: Term
    columns: list[Column]

    def accepts(self, values: Values) -> bool:
        """Whether a row with these values is selected."""
        return self.term.accepts(values)


class _Parser:
    """Reads a selection from left to right."""

    def __init__(self, text: str, form: Form) -> None:
        self.text = text
        self.form = form
        self.place = 0
        self.columns: list[Column] = []

    def take(self, pattern: re.Pattern[str]) -> re.Match[str] | None:
        match = pattern.match(self.text, self.place)
        if match is not None:
            self.place = match.end()
        return match

    def rest(self) -> str:
        return self.text[self.place :].lstrip()

    def wrong(self, *lines: str, at: str) -> Failed:
        return Failed(
            *lines, f"Selection syntax error at '{at}'.", "Use 'help' for selection to get more help."
        )

    def either(self) -> Term:
        """One of several."""
        terms = [self.every()]
        while self.take(_OR):
            terms.append(self.every())
        return terms[0] if len(terms) == 1 else _Several(tuple(terms), every=False)

    def every(self) -> Term:
        """All of several."""
        terms = [self.single()]
        while self.take(_AND):
            terms.append(self.single())
        return terms[0] if len(terms) == 1 else _Several(tuple(terms), every=True)

    def single(self) -> Term:
        """A comparison, or something in parentheses."""
        negated = self.take(_NOT) is not None
        if not self.take(_OPEN):
            if negated:
                raise Failed(f"Syntax error: left parenthesis expected at '{self.rest()}'")
            return self.comparison()
        term = self.either()
        if not self.take(_CLOSE):
            raise Failed(f"Syntax error: right parenthesis expected at '{self.rest()}'")
        return _Negated(term) if negated else term

    def comparison(self) -> Term:
        start = self.rest()
        match = self.take(_FIELD)
        if match is None:
            raise self.wrong("Expecting field name", at=start)
        one = self.form.find(match["name"])
        if one is None:
            lines = column_help(self.form.columns, types=True, groups=False).splitlines()
            raise self.wrong(*lines, f"Unrecognised selection field: {match['name']}", at=start)
        if one.name in {"help", "?", "selected"}:
            raise self.wrong(f"Selection field is uncomparable: {match['name']}.", at=start)
        compared = self.take(_OPERATOR)
        if compared is None:
            raise self.wrong(f"Unrecognised comparison operator: {self.rest()}", at=start)
        self.columns.append(one)
        return self._compared(one, compared[1], start)

    def _compared(self, one: Column, sign: str, start: str) -> Term:
        blank = re.compile(r"\s*", re.ASCII)
        self.take(blank)
        if sign in {"=~", "!~"}:
            if one.number:
                raise Failed(f"dm_report: incompatible comparison type for selection field {one.name}")
            return _Matches(one, self._regex(one, start), sign == "=~")
        if sign in _TIME:
            raise self.wrong(f"Operator can be used only with time fields: {start}", at=start)
        if not one.number:
            if sign not in {"=", "!="}:
                text = f"Operator can be used only with number, size, time or percent fields: {start}"
                raise self.wrong(text, at=start)
            return _Equals(one, self._string(one, _quote(self.rest()), start), sign == "=")
        match = self.take(_NUMBER)
        if match is None:
            raise self.wrong(f"Failed to parse numeric value for selection field {one.name}.", at=start)
        if one.size:
            return _Compares(one, _COMPARE[sign], self._sectors(match[0]))
        digits = match[0].partition(".")[0]
        return _Compares(one, _COMPARE[sign], min(int(digits[:40] or "0"), (1 << 64) - 1))

    def _sectors(self, digits: str) -> float:
        """Return the sectors of a size, which counts mebibytes if no unit stands behind it."""
        from dmcore.cli._dmsetup.stats_units import take_factor  # noqa: PLC0415 - only `stats` has sizes

        unit = take_factor(self.text[self.place :])
        self.place += unit[2] if unit else 0
        whole, _, part = digits.partition(".")
        return float(f"{whole or 0}.{part.partition('.')[0] or 0}") * (unit[0] if unit else 1 << 20) / 512

    def _string(self, one: Column, end: str, start: str) -> str:
        """Return the value here: up to `end` if it is quoted, else up to an operator or a blank."""
        if not end:
            match = _STOP.search(self.text, self.place)
            stop = match.start() if match else len(self.text)
            value, self.place = self.text[self.place : stop], stop
            return value
        stop = self.text.find(end, self.place + 1)
        if stop < 0:
            what = f"Failed to parse string value for selection field {one.name}."
            raise self.wrong("Missing end quote.", what, at=start)
        value, self.place = self.text[self.place + 1 : stop], stop + 1
        return value

    def _regex(self, one: Column, start: str) -> re.Pattern[str]:
        if not self.rest():
            raise self.wrong(f"Regular expression expected for selection field {one.name}", at=start)
        text = self._string(one, _BRACKETS.get(self.text[self.place], ""), start)
        try:
            return re.compile(text)
        except re.error:
            raise self.wrong(
                f"dm_report: failed to create regex matcher for selection field {one.name}", at=start
            ) from None


def _quote(text: str) -> str:
    return text[0] if text[:1] in {'"', "'"} else ""


def parse(text: str, form: Form) -> Selection:
    """Return the selection that -S says.

    Args:
        text: What it says.
        form: The columns that there are.

    Raises:
        Failed: Where it makes no sense.
    """
    parser = _Parser(text, form)
    term = parser.either()
    if rest := parser.rest():
        raise parser.wrong("Expecting logical operator", at=rest)
    return Selection(term, parser.columns)
