"""What an exploration found, as JSON."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dmcore.crash.states import units
from dmcore.formats.log_writes import LogFlag

if TYPE_CHECKING:
    from dmcore.crash.conclude import Proof
    from dmcore.crash.explore import Exploration, Finding
    from dmcore.crash.log import CrashLog
    from dmcore.crash.states import State

__all__ = ["failure", "missing", "to_json"]


def missing(log: CrashLog, found: Exploration, state: State) -> list[dict[str, object]]:
    """Return the pending writes of which a state lacks something: entry, bytes of the device, flags, what is there of torn ones."""
    epoch = found.timeline.epochs[state.epoch]
    torn = {tear.write: tear for tear in state.torn}
    rows: list[dict[str, object]] = []
    for number, write in enumerate(epoch.pending):
        tear = torn.get(number)
        if state.present >> number & 1 and tear is None:
            continue
        offset, length = log.index.extent_of(write.entry)
        names = [flag.name or "" for flag in LogFlag if write.flags & flag]
        row: dict[str, object] = {
            "entry": write.entry,
            "offset": offset,
            "length": length,
            "flags": names,
            "torn": tear is not None,
        }
        if tear is not None:
            cut = units(write, found.torn_size)
            row["present"] = [[p.offset, p.length] for at, p in enumerate(cut) if tear.holds(at, len(cut))]
        rows.append(row)
    return rows


def _finding(log: CrashLog, found: Exploration, finding: Finding) -> dict[str, object]:
    epoch = found.timeline.epochs[finding.state.epoch]
    return {
        "id": str(finding.state),
        "kind": finding.problem.kind,
        "reason": finding.problem.reason,
        "torn": finding.torn,
        "epoch": epoch.index,
        "position": epoch.position,
        "pending": len(epoch.pending),
        "missing": missing(log, found, finding.state),
        "acknowledged": list(finding.acknowledged),
        "started": list(log.started(finding.marks)),
    }


def _proof(log: CrashLog, found: Exploration, proof: Proof) -> dict[str, object]:
    minimal = proof.minimal
    pending = found.timeline.epochs[minimal.state.epoch].pending
    return {
        "id": str(minimal.state),
        "kind": minimal.problem.kind,
        "reason": minimal.problem.reason,
        "torn": bool(minimal.state.torn),
        "from": str(minimal.start),
        "pending": len(pending),
        "missing": missing(log, found, minimal.state),
        "present": [pending[number].entry for number in minimal.present],
        "causes": [pending[number].entry for number in minimal.causes],
        "prefix": minimal.prefix,
        "checks": minimal.checks,
        "smallest": minimal.done,
        "words": list(proof.words),
    }


def to_json(log: CrashLog, found: Exploration) -> dict[str, object]:
    """Return all that an exploration found, in values that JSON knows.

    `violations` holds one object for each distinct image that failed, in order of time: `id`, `kind`, `reason`, `torn`, `missing`
    (the writes that are not there, or in part), `acknowledged`, `started`. The counts are of all states, but `violating` is of
    those without torn writes, and `violating_torn` of those with. `set_apart` is like `violations`, of torn states at which the file
    system itself fails, where tearing was not asked for by name; it counts nowhere.
    """
    findings = [_finding(log, found, finding) for finding in found.findings]
    torn = sum(finding.torn for finding in found.findings)
    return {
        "log": log.path,
        "level": str(found.timeline.level),
        "seed": found.seed,
        "torn_size": found.torn_size,
        "first_epoch": found.first,
        "epochs": len(found.timeline.epochs),
        "entries": len(log.index),
        "marks": len(log.marks),
        "generated": found.generated,
        "distinct": found.distinct,
        "checked": found.checked,
        "violating": len(findings) - torn,
        "violating_torn": torn,
        "exhaustive": found.exhaustive,
        "truncated": found.truncated,
        "seconds": round(found.seconds, 3),
        "violations": findings,
        "minimal": [_proof(log, found, proof) for proof in found.proofs],
        "set_apart": [_finding(log, found, finding) for finding in found.set_apart],
        "warnings": found.warnings,
        "errors": found.errors,
        "error": found.errors[0] if found.errors else None,
    }


def failure(log: str, error: str) -> dict[str, object]:
    """Return the same for an exploration that could not be made."""
    counts = dict.fromkeys(("generated", "distinct", "checked", "violating", "violating_torn"), 0)
    return {
        "log": log,
        **counts,
        "violations": [],
        "minimal": [],
        "set_apart": [],
        "warnings": [],
        "errors": [error],
        "error": error,
    }
