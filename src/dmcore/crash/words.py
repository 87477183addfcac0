"""A crash state in words: which writes it lacks, what they were for, and between which marks they were made."""

from __future__ import annotations

from bisect import bisect_left
from typing import TYPE_CHECKING

from dmcore.crash.states import units
from dmcore.formats.log_writes import LogFlag

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dmcore.crash.epochs import Timeline, Write
    from dmcore.crash.log import CrashLog
    from dmcore.crash.minimise import Minimal
    from dmcore.crash.states import State, Tear

__all__ = ["between", "name_write", "say"]

_NAMED = 12
_FEW = 3
_FLAGS = (LogFlag.FUA, LogFlag.METADATA)


def name_write(log: CrashLog, write: Write, purpose: str = "") -> str:
    """Return what a write is: its size, place, flags and entry, and what it was for if that is known."""
    offset, length = log.index.extent_of(write.entry)
    flags = [name for flag in _FLAGS if write.flags & flag and (name := flag.name)]
    verb = "discard" if write.flags & LogFlag.DISCARD else "write"
    what = f"{'+'.join(flags)} {verb}" if flags else verb
    of = f": {purpose}" if purpose else ""
    return f"{what} of {length} bytes at {offset} (entry {write.entry}){of}"


def between(log: CrashLog, entry: int) -> str:
    """Return between which marks an entry stands."""
    positions = [mark.position for mark in log.marks]
    at = bisect_left(positions, entry)
    before = f"after mark {log.marks[at - 1].text}" if at else "before any mark"
    behind = f"before {log.marks[at].text}" if at < len(log.marks) else "after which there is no mark"
    return f"{before}, {behind}" if log.marks else "the log has no marks"


def _torn(write: Write, tear: Tear, size: int) -> str:
    cut = units(write, size)
    kept = [at for at in range(len(cut)) if tear.holds(at, len(cut))]
    few = ", ".join(str(at) for at in kept[:8]) + (", ..." if len(kept) > 8 else "")
    return f"only {len(kept)} of its {len(cut)} sectors of {size} bytes (number {few})"


def say(
    log: CrashLog,
    line: Timeline,
    minimal: Minimal,
    *,
    torn_size: int,
    purposes: Sequence[str] = (),
) -> list[str]:
    """Return the lines that tell a minimal state.

    Args:
        log: The log.
        line: Its epochs.
        minimal: The state.
        torn_size: Bytes of a sector that torn states write whole or not.
        purposes: What each pending write of its epoch was for, as `FileSystem.explain` says; "" or nothing if unknown.
    """
    state = minimal.state
    epoch = line.epochs[state.epoch]
    count = len(epoch.pending)

    def name(number: int) -> str:
        write = epoch.pending[number]
        return name_write(log, write, purposes[number] if number < len(purposes) else "")

    lines = [minimal.problem.reason, _when(log, line, state)]
    torn = {tear.write: tear for tear in state.torn}
    for number, tear in torn.items():
        lines.append(f"torn: {name(number)}: {_torn(epoch.pending[number], tear, torn_size)}")
    there = [number for number in minimal.present if number not in torn]
    lost = minimal.missing
    if not count:
        lines.append("nothing was on its way: what is not there had not been written")
    elif not lost and not torn:
        lines.append("nothing is lost: what was on its way is there, what is not there had not been written")
    elif lost and not (there and minimal.by_presence):
        lines.extend(f"lost: {name(number)}" for number in lost[:_NAMED])
        lines += [f"lost: {len(lost) - _NAMED} more"] if len(lost) > _NAMED else []
        lines += [f"there: the other {len(there)} that were on their way"] if there else []
    else:
        lines.extend(f"there: {name(number)}" for number in there[:_NAMED])
        lines += [f"there: {len(there) - _NAMED} more"] if len(there) > _NAMED else []
        if len(lost) > _FEW:
            lines.append(f"lost: the other {len(lost)} that were on their way")
        else:
            lines.extend(f"lost: {name(number)}" for number in lost)
    lines.extend(
        f"enough by itself: {name(number)}" for number in minimal.causes[:8] if len(minimal.missing) > 1
    )
    return lines


def _when(log: CrashLog, line: Timeline, state: State) -> str:
    epoch = line.epochs[state.epoch]
    ends = {
        "flush": "a flush had not completed",
        "fua": "a FUA write had not completed",
        "end": "at the end of the log",
    }
    return f"power cut before entry {epoch.position} of the log ({ends[epoch.ends]}); {between(log, epoch.position)}"
