"""From the states that failed to what one is told: what is really wrong, its smallest proof, in words."""

from __future__ import annotations

import multiprocessing
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dmcore.crash.checkers import NoFileSystem
from dmcore.crash.epochs import timeline
from dmcore.crash.images import ImageIds
from dmcore.crash.materialise import write_image
from dmcore.crash.minimise import Minimal, Minimiser
from dmcore.crash.states import State
from dmcore.crash.tester import Tester
from dmcore.crash.words import say
from dmcore.crash.workers import Job, run
from dmcore.errors import DmError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from multiprocessing.connection import Connection
    from pathlib import Path

    from dmcore.crash.checkers import Checker, FileSystem
    from dmcore.crash.epochs import Timeline, Write
    from dmcore.crash.explore import Finding
    from dmcore.crash.log import CrashLog

__all__ = ["Proof", "as_found", "both_orders", "proof_of", "prove"]

_CLASSES = 12
_NO_FILE = "a block of no file"


@dataclass(frozen=True, slots=True)
class Proof:
    """The smallest proof of a class of failures.

    Attributes:
        finding: The earliest state that failed so.
        minimal: What became of it.
        words: What happened, line by line.
        purposes: What the pending writes of its epoch were for, "" where that is not known; empty if nothing is.
    """

    finding: Finding
    minimal: Minimal
    words: tuple[str, ...]
    purposes: tuple[str, ...] = ()


def both_orders(
    log: CrashLog,
    line: Timeline,
    findings: list[Finding],
    *,
    make: Callable[[], Checker],
    folder: Path,
    torn_size: int,
    workers: int,
) -> tuple[list[Finding], str]:
    """Return the findings that fail in either order of writes whose order the log leaves open, and a warning about the others.

    A kernel logs FUA writes of an epoch before ordinary ones. Where both write the same blocks, replaying the log puts the ordinary
    one on top, though the disk may have got them the other way round.
    """
    if not line.ambiguous or not findings:
        return findings, ""
    other = timeline(log, line.level, fua_last=True)
    begin = min(pair.ordinary for pair in line.ambiguous)
    jobs = [
        Job(finding.state, finding.marks, finding.image)
        for finding in findings
        if line.epochs[finding.state.epoch].position > begin
    ]

    def tester(name: str) -> Tester:
        return Tester(log, other, make(), folder, torn_size=torn_size, name=f"order-{name}")

    sound = {
        result.job.image
        for result in run(iter(jobs), tester, workers=workers)
        if result is not None and result.problem is None and not result.error
    }
    if not sound:
        return findings, ""
    pair = line.ambiguous[0]
    warning = (
        f"{len(sound)} failing states are no findings: they fail only if an ordinary write (entry {pair.ordinary}, of "
        f"{len(line.ambiguous)} such) came after the FUA write of the same blocks that is logged before it (entry {pair.fua}); the "
        "log does not say which came last"
    )
    return [finding for finding in findings if finding.image not in sound], warning


def prove(
    log: CrashLog,
    line: Timeline,
    findings: Sequence[Finding],
    *,
    make: Callable[[], Checker],
    filesystem: FileSystem,
    folder: Path,
    torn_size: int,
    isolated: bool,
    max_seconds: float = 30,
) -> tuple[list[Proof], list[str]]:
    """Return the smallest proof of each class of failures (kind, torn or not), and warnings.

    Args:
        log: The log.
        line: Its epochs.
        findings: States that failed, by time.
        make: Makes what judges.
        filesystem: Says what blocks are for.
        folder: For images.
        torn_size: Bytes of a sector that torn states write whole or not.
        isolated: Whether to judge in a process of its own, for what crashes the one that judges.
        max_seconds: For each class.
    """
    firsts: dict[tuple[str, bool], Finding] = {}
    for finding in findings:
        firsts.setdefault((finding.problem.kind, finding.torn), finding)
    chosen = list(firsts.values())[:_CLASSES]
    if not chosen:
        return [], []

    def work() -> list[Minimal]:
        ids = ImageIds(log, line, torn_size or log.sector_size)
        with Tester(log, line, make(), folder, torn_size=torn_size, name="minimise") as tester:
            minimiser = Minimiser(line, tester.test, ids, max_seconds=max_seconds)
            return [minimiser.minimise(finding.state, finding.problem) for finding in chosen]

    minimals = _in_child(work, max_seconds * (len(chosen) + 1) + 60) if isolated else work()
    notes: list[str] = []
    if minimals is None:
        notes.append("the process that looked for the smallest proof died; states are as they were found")
        minimals = [as_found(line, finding) for finding in chosen]
    proofs: list[Proof] = []
    seen: set[tuple[str, State]] = set()
    told: dict[int, list[str]] = {}
    for finding, minimal in zip(chosen, minimals, strict=True):
        if (finding.problem.kind, minimal.state) in seen:
            continue  # torn states that fail without tearing too
        seen.add((finding.problem.kind, minimal.state))
        epoch = minimal.state.epoch
        if epoch not in told:
            told[epoch] = _purposes(log, line, epoch, filesystem=filesystem, folder=folder, notes=notes)
        purposes = told[epoch]
        words = say(log, line, minimal, torn_size=torn_size, purposes=purposes)
        proofs.append(Proof(finding, minimal, tuple(words), tuple(purposes)))
    return proofs, list(dict.fromkeys(notes))


def proof_of(
    log: CrashLog,
    line: Timeline,
    finding: Finding,
    minimal: Minimal,
    *,
    filesystem: FileSystem,
    folder: Path,
    torn_size: int,
) -> Proof:
    """Return the proof of a finding, in words; what blocks are for is left out where it cannot be told."""
    purposes = _purposes(log, line, minimal.state.epoch, filesystem=filesystem, folder=folder, notes=[])
    words = say(log, line, minimal, torn_size=torn_size, purposes=purposes)
    return Proof(finding, minimal, tuple(words), tuple(purposes))


def as_found(line: Timeline, finding: Finding) -> Minimal:
    """Return a state that failed as if nothing smaller did."""
    state = finding.state
    count = len(line.epochs[state.epoch].pending)
    present = tuple(i for i in range(count) if state.present >> i & 1)
    return Minimal(
        state, finding.problem, state, state.missing(count), present, (), prefix=False, checks=0, done=False
    )


def _in_child(work: Callable[[], list[Minimal]], seconds: float) -> list[Minimal] | None:
    """Do it in a process of its own; None if that dies or hangs."""
    mine, its = multiprocessing.Pipe(duplex=False)
    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore", DeprecationWarning
        )  # forking beside xdist's threads; the child starts none
        process = multiprocessing.get_context("fork").Process(target=_child, args=(its, work), daemon=True)
        process.start()
    its.close()
    try:
        if not mine.poll(seconds):
            process.kill()
            return None
        answer: list[Minimal]
        error: str
        answer, error = mine.recv()
    except EOFError:
        return None
    finally:
        mine.close()
        process.join(10)
    if error:
        raise RuntimeError(error)
    return answer


def _child(line: Connection, work: Callable[[], list[Minimal]]) -> None:
    try:
        line.send((work(), ""))
    except Exception as error:  # noqa: BLE001 - told to the parent, which raises it
        line.send(([], f"{type(error).__name__}: {error}"))


def _purposes(
    log: CrashLog, line: Timeline, epoch: int, *, filesystem: FileSystem, folder: Path, notes: list[str]
) -> list[str]:
    """Return what the pending writes of an epoch were for; nothing, and a note, where that cannot be told."""
    try:
        return _explained(log, line, epoch, filesystem, folder)
    except (DmError, OSError) as error:
        notes.append(f"what the blocks are for is not known: {error}")
        return []


def _explained(log: CrashLog, line: Timeline, epoch: int, filesystem: FileSystem, folder: Path) -> list[str]:
    """Return what writes were for, as seen at the end of their epoch, else at the end of the log."""
    if isinstance(filesystem, NoFileSystem):
        return []
    writes = [_sample(log, write) for write in line.epochs[epoch].pending]
    purposes: list[str] = []
    for at in (epoch, len(line.epochs) - 1):
        whole = State(at, (1 << len(line.epochs[at].pending)) - 1)
        path = folder / "explain.img"
        try:
            write_image(log, line, whole, path, log.sector_size)
            filesystem.recover(path)
            said = filesystem.explain(path, writes)
        finally:
            path.unlink(missing_ok=True)
        known = purposes or said
        purposes = [new if old in ("", _NO_FILE) else old for old, new in zip(known, said, strict=True)]
    return purposes


def _sample(log: CrashLog, write: Write) -> tuple[int, bytes]:
    offset, length = log.index.extent_of(write.entry)
    source = log.index.data_offset(write.entry)
    return offset, b"" if source < 0 else log.index.read(source, min(length, 65536))
