"""What a failing crash check says: each kind of failure with its smallest proof, in words and as a picture."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from dmcore.formats.log_writes import LogFlag
from pytest_dm.crash.picture import Picture, size, svg, text

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from dmcore.crash.conclude import Proof
    from dmcore.crash.epochs import Epoch
    from dmcore.crash.explore import Exploration
    from dmcore.crash.log import CrashLog
    from dmcore.crash.states import State
    from pytest_dm.crash.isolate import Outcome

__all__ = ["Case", "CrashFailure", "Row", "case", "render", "summary"]

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
        words: What is lost and what is there, a line each.
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
    words: tuple[str, ...]
    rows: tuple[Row, ...]
    others: int
    picture: str
    drawing: str

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        return asdict(self)


def case(log: CrashLog, found: Exploration, proof: Proof, outcome: Outcome | None) -> Case:
    """Return the smallest proof of a failure in words.

    Args:
        log: The log.
        found: The exploration.
        proof: The proof.
        outcome: What the check says of its state, asked once more; None if it has no word on it.
    """
    line, state, problem = found.timeline, proof.minimal.state, proof.minimal.problem
    epoch = line.epochs[state.epoch]
    same = [
        one for one in found.findings if one.problem.kind == problem.kind and one.torn == bool(state.torn)
    ]
    reason, details = problem.reason, ""
    if outcome is not None and outcome.sound:
        reason += "\n(once more on the same state, the check was content: it is not deterministic)"
    elif outcome is not None:
        reason, details = outcome.reason, outcome.details
    purposes = dict(zip((write.entry for write in epoch.pending), proof.purposes, strict=False))
    picture = Picture.of(log, line, state, purposes)
    marks = [mark.text for mark in log.marks]
    return Case(
        kind=problem.kind,
        reason=reason,
        details=details,
        state=str(state),
        torn=bool(state.torn),
        position=epoch.position,
        entries=len(log.index),
        after=marks[epoch.marks - 1] if epoch.marks else "",
        before=marks[epoch.marks] if epoch.marks < len(marks) else "",
        acknowledged=log.acknowledged(epoch.marks),
        started=log.started(epoch.marks),
        words=proof.words[2:],
        rows=tuple(_rows(log, epoch, state, purposes)),
        others=max(0, len(same) - 1),
        picture=svg(picture),
        drawing=text(picture),
    )


def _rows(log: CrashLog, epoch: Epoch, state: State, purposes: Mapping[int, str]) -> list[Row]:
    torn = {tear.write for tear in state.torn}
    rows: list[Row] = []
    for number, write in enumerate(epoch.pending):
        offset, length = log.index.extent_of(write.entry)
        there = state.present >> number & 1
        fate = "torn" if number in torn else "present" if there else "missing"
        kind = (
            "discard"
            if write.flags & LogFlag.DISCARD
            else "FUA write"
            if write.flags & LogFlag.FUA
            else "write"
        )
        metadata = ", metadata" if write.flags & LogFlag.METADATA else ""
        purpose = f": {known}" if (known := purposes.get(write.entry)) else ""
        rows.append(Row(write.entry, fate, f"{kind} of {size(length)} at byte {offset}{metadata}{purpose}"))
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
    lines = [
        one.reason,
        f"  power cut     before entry {one.position} of {one.entries}, {where}",
        f"  acknowledged  {_listed(one.acknowledged)}",
        f"  under way     {_listed(one.started)}",
    ]
    for words in one.words:
        term, colon, rest = words.partition(": ")
        if colon and len(term) < 13:
            lines.append(f"  {term:<13} {rest}")
        else:
            lines.append(f"  {'':<13} {words}")
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
