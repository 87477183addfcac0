"""What a failing crash check says: each kind of failure with its smallest proof, in words and as a picture."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from dmcore.formats.log_writes import LogFlag
from pytest_dm.crash.picture import Picture, size, svg, text

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dmcore.crash.epochs import Epoch, Timeline
    from dmcore.crash.explore import Exploration, Finding
    from dmcore.crash.log import CrashLog

__all__ = ["Case", "CrashFailure", "Row", "case", "pick", "render", "summary"]

_ROWS = 12
_NAMES = 8


class CrashFailure(AssertionError):
    """Some state that a power cut could have left is not sound.

    Attributes:
        cases: Each kind of failure, with the smallest state that shows it.
        exploration: All that was found.
    """

    def __init__(self, message: str, cases: Sequence[Case], exploration: Exploration) -> None:
        super().__init__(message)
        self.cases = tuple(cases)
        self.exploration = exploration


@dataclass(frozen=True, slots=True)
class Row:
    """A write that was pending when the power went.

    Attributes:
        entry: Its number in the log.
        fate: "present", "missing" or "torn".
        words: What it is.
    """

    entry: int
    fate: str
    words: str


@dataclass(frozen=True, slots=True)
class Case:
    """One kind of failure. All values are plain: a case travels between processes as JSON.

    Attributes:
        kind: "fs", "durability", "integrity", or what else the check says.
        reason: In words.
        details: The check's traceback.
        state: Id of the smallest state that shows it.
        torn: Whether that state has a write of which only a part is there.
        position: Log entries before this one had been logged when the power went.
        entries: Entries of the log.
        after: The mark before the crash; "" for none.
        before: The mark behind it.
        acknowledged: Operations that must have lasted.
        started: Operations that were under way.
        rows: The pending writes.
        others: How many more distinct states failed in that way.
        picture: The timeline as SVG.
        drawing: The timeline as text.
    """

    kind: str
    reason: str
    details: str
    state: str
    torn: bool
    position: int
    entries: int
    after: str
    before: str
    acknowledged: tuple[str, ...]
    started: tuple[str, ...]
    rows: tuple[Row, ...]
    others: int
    picture: str
    drawing: str

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        return asdict(self)


def pick(findings: Sequence[Finding], line: Timeline) -> list[tuple[Finding, int]]:
    """Return of each kind of failure, torn ones apart, the earliest and least state, and how many others there are."""

    def least(finding: Finding) -> tuple[int, int, int]:
        epoch = line.epochs[finding.state.epoch]
        missing = len(finding.state.missing(len(epoch.pending)))
        return finding.state.epoch, len(finding.state.torn), missing

    kinds: dict[tuple[str, bool], list[Finding]] = {}
    for finding in findings:
        kinds.setdefault((finding.problem.kind, finding.torn), []).append(finding)
    whole = {kind for kind, torn in kinds if not torn}
    return [
        (min(group, key=least), len(group) - 1)
        for (kind, torn), group in kinds.items()
        if not torn or kind not in whole
    ]


def case(log: CrashLog, line: Timeline, finding: Finding, *, reason: str, details: str, others: int) -> Case:
    """Return a finding in words."""
    epoch = line.epochs[finding.state.epoch]
    picture = Picture.of(log, line, finding.state)
    marks = [mark.text for mark in log.marks]
    return Case(
        kind=finding.problem.kind,
        reason=reason,
        details=details,
        state=str(finding.state),
        torn=finding.torn,
        position=epoch.position,
        entries=len(log.index),
        after=marks[finding.marks - 1] if finding.marks else "",
        before=marks[finding.marks] if finding.marks < len(marks) else "",
        acknowledged=finding.acknowledged,
        started=log.started(finding.marks),
        rows=tuple(_rows(log, epoch, finding)),
        others=others,
        picture=svg(picture),
        drawing=text(picture),
    )


def _rows(log: CrashLog, epoch: Epoch, finding: Finding) -> list[Row]:
    torn = {tear.write for tear in finding.state.torn}
    rows: list[Row] = []
    for number, write in enumerate(epoch.pending):
        offset, length = log.index.extent_of(write.entry)
        there = finding.state.present >> number & 1
        fate = "torn" if number in torn else "present" if there else "missing"
        kind = (
            "discard"
            if write.flags & LogFlag.DISCARD
            else "FUA write"
            if write.flags & LogFlag.FUA
            else "write"
        )
        metadata = ", metadata" if write.flags & LogFlag.METADATA else ""
        rows.append(Row(write.entry, fate, f"{kind} of {size(length)} at byte {offset}{metadata}"))
    return rows


def summary(found: Exploration, level_note: str = "") -> str:
    """Return the numbers of an exploration in one line."""
    how = "all" if found.exhaustive else "some"
    rate = found.checked / found.seconds if found.seconds else 0.0
    torn = f", torn at {found.torn_size} bytes" if found.torn_size else ""
    return (
        f"{found.timeline.level}{level_note}{torn}, seed {found.seed}: {found.generated} states, {found.distinct} distinct, "
        f"{found.checked} checked ({how}), {found.violating} fail; {found.seconds:.1f} s, {rate:.0f} states/s"
    )


def _listed(names: Sequence[str]) -> str:
    if len(names) <= _NAMES:
        return ", ".join(names) or "nothing"
    return f"{len(names)} of them, the last: {', '.join(names[-_NAMES:])}"


def _paragraph(one: Case, hint: str) -> list[str]:
    where = {
        (True, True): f"between the marks {one.after!r} and {one.before!r}",
        (True, False): f"after the mark {one.after!r}",
        (False, True): f"before the mark {one.before!r}",
        (False, False): "there are no marks",
    }[bool(one.after), bool(one.before)]
    lost = [row for row in one.rows if row.fate != "present"]
    there = len(one.rows) - len(lost)
    lines = [
        one.reason,
        f"  power cut     before entry {one.position} of {one.entries}, {where}",
        f"  acknowledged  {_listed(one.acknowledged)}",
        f"  under way     {_listed(one.started)}",
    ]
    if not one.rows:
        lines.append(
            "  lost          no write: everything written by then is there; the write that matters came later or never"
        )
    else:
        words = {"missing": "", "torn": " (in part)"}
        lines += [
            f"  {'lost' if not at else '':<13} entry {row.entry}: {row.words}{words[row.fate]}"
            for at, row in enumerate(lost[:_ROWS])
        ]
        if len(lost) > _ROWS:
            lines.append(f"                and {len(lost) - _ROWS} more")
        lines.append(f"  there         {there} of {len(one.rows)} pending writes, and all that was durable")
    if one.others:
        lines.append(f"  besides       {one.others} more distinct states fail in this way")
    lines += [
        f"  state         {one.state}    again: {hint}{one.state}",
        "",
        *(f"  {row}" for row in one.drawing.splitlines()),
    ]
    if one.details:
        lines += ["", "  the check said:", *(f"    {row}" for row in one.details.splitlines())]
    return lines


def render(cases: Sequence[Case], numbers: str, hint: str, notes: Sequence[str] = ()) -> str:
    """Return the whole report."""
    kinds = ", ".join(f"{one.kind}{' (torn write)' if one.torn else ''}" for one in cases)
    lines = [
        f"a power cut can leave this unsound: {kinds}",
        f"  {numbers}",
        *(f"  note: {note}" for note in notes),
    ]
    for one in cases:
        lines += ["", *_paragraph(one, hint)]
    return "\n".join(lines)
