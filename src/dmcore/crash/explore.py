"""Exploration: the states of a log, made, deduplicated and judged on all cores, within a budget.

The one function is `explore`; what it returns says what was looked at, what failed, and with which smallest states.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from dmcore.crash.checkers import NoFileSystem, Pipeline
from dmcore.crash.conclude import Proof, as_found, both_orders, proof_of, prove
from dmcore.crash.epochs import Level, timeline
from dmcore.crash.families import Families
from dmcore.crash.findings import Exploration, Finding, Progress
from dmcore.crash.images import ImageIds
from dmcore.crash.tester import Tester
from dmcore.crash.workers import Job, run
from dmcore.errors import SpecError
from dmcore.owner import PREFIX, Owner

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator, Sequence

    from dmcore.crash.checkers import Checker, FileSystem, Oracle, Problem
    from dmcore.crash.epochs import Timeline, Times
    from dmcore.crash.log import CrashLog
    from dmcore.crash.states import State
    from dmcore.crash.workers import Result

__all__ = ["Exploration", "Finding", "Progress", "explore", "first_sound", "replay", "scratch_folder"]

_SHARED = 16
"""Distinct states in a row that one of several machines judges: neighbours often recover to the same image."""


def scratch_folder() -> Path:
    """Make a folder for images: in memory where there is a tmpfs, else where temporary files go.

    Its name says who made it, so that `pytest-dm clean` finds it once this process was killed.
    """
    memory = Path("/dev/shm")  # noqa: S108 - with a name of its own below
    usable = memory.is_dir() and os.access(memory, os.W_OK) and "TMPDIR" not in os.environ
    return Path(
        tempfile.mkdtemp(prefix=f"{PREFIX}-{Owner.current().tag}-crash-", dir=memory if usable else None)
    )


def explore(
    log: CrashLog,
    *,
    level: Level | str = Level.L1,
    filesystem: FileSystem | None = None,
    oracle: Oracle | None = None,
    checker: Callable[[], Checker] | None = None,
    max_states: int | None = None,
    max_seconds: float | None = None,
    stop_after: int | None = None,
    seed: int = 0,
    torn: int | None = None,
    first: int | None = None,
    times: Sequence[Times] | None = None,
    window: int = 6,
    workers: int | None = None,
    share: tuple[int, int] = (0, 1),
    known: Exploration | None = None,
    folder: str | os.PathLike[str] | None = None,
    minimise: bool = True,
    progress: Callable[[Progress], None] | None = None,
) -> Exploration:
    """Visit crash states of a log and judge each distinct one.

    Args:
        log: The log.
        level: How much order is assumed; see `dmcore.crash.epochs`.
        filesystem: What recovers each state and judges the recovery; None for a raw device.
        oracle: What judges the recovered state; None for the file system's verdict alone.
        checker: Instead of both: makes what judges, called once in each worker.
        max_states: How many states to visit at most; None for all of the families.
        max_seconds: When to stop; what is being judged then is waited for.
        stop_after: How many images that fail are enough; None to visit all states.
        seed: Of the random choices; the same seed and budget of states visits the same states.
        torn: Bytes of a sector that the disk writes whole or not; a power of two, not below the log's sector size. 0 for no torn
            states; None for that sector size, and then without those that a file system is known not to stand.
        first: Number of the epoch to begin with. None finds where the file system begins to be there: the first epoch whose
            durable part is a sound one, since before mkfs is done there is nothing to be sound.
        times: For L2: of each entry.
        window: For L3: how many flushes back a write may be lost.
        workers: Processes; None for one per core that this one may use, 0 for none.
        share: Which part of the distinct states to judge, from 0, of how many: explorations with the same arguments on several
            machines judge each state on one of them.
        known: An earlier exploration of this log with what judges now, as with another seed: what it found sound is neither judged
            nor counted again.
        folder: Where images go; None for one that is made and removed.
        minimise: Whether to look for the smallest proofs.
        progress: Called a few times a second, and at the end.

    Raises:
        SpecError: A value that means nothing, or no epoch with a sound file system.
        OSError: Images could not be made.
    """
    line = timeline(log, level, times=times, window=window)
    torn_size = _torn_size(torn, log.sector_size)
    _check_budget(max_states, max_seconds, workers, share)
    fs = filesystem or NoFileSystem()
    make = checker or (lambda: Pipeline(fs, oracle))
    began = time.monotonic()
    count = len(os.sched_getaffinity(0)) if workers is None else workers
    with _images(folder) as home:
        if first is None:
            first = 0 if isinstance(fs, NoFileSystem) else first_sound(log, line, fs, home)
        found = Exploration(
            timeline=line, seed=seed, torn_size=torn_size, first=first, warnings=list(log.warnings),
            sound={} if known is None else dict(known.sound),
        )  # fmt: skip
        atomic = fs.atomic if torn is None else ()
        families = Families(line, torn_size, seed, max_states, first, atomic)
        run_ = _Run(
            log, found, families, max_seconds, progress, apart=torn is None, stop_after=stop_after, share=share,
        )  # fmt: skip

        def tester(name: str) -> Tester:
            return Tester(log, line, make(), home, torn_size=torn_size, name=name)

        results = run(run_.jobs(), tester, workers=count)
        try:
            run_.collect(results)
        finally:
            results.close()
        found.findings, warning = both_orders(
            log, line, found.findings, make=make, folder=home, torn_size=torn_size, workers=count
        )
        if warning:
            found.warnings.append(warning)
        if minimise:
            found.proofs, notes = prove(
                log, line, found.findings, make=make, filesystem=fs, folder=home, torn_size=torn_size,
                isolated=count > 0,
            )  # fmt: skip
            found.warnings += notes
        found.seconds = time.monotonic() - began
    return found


@contextmanager
def _images(folder: str | os.PathLike[str] | None) -> Generator[Path]:
    """Give the folder for images: the one that is given, or one that goes at the end."""
    if folder is not None:
        yield Path(folder)
        return
    home = scratch_folder()
    try:
        yield home
    finally:
        shutil.rmtree(home, ignore_errors=True)


def _check_budget(
    max_states: int | None, max_seconds: float | None, workers: int | None, share: tuple[int, int]
) -> None:
    if max_states is not None and max_states < 1:
        raise SpecError("max_states", max_states, "must be at least 1")
    if max_seconds is not None and not max_seconds > 0:
        raise SpecError("max_seconds", max_seconds, "must be more than 0")
    if workers is not None and workers < 0:
        raise SpecError("workers", workers, "must be at least 0")
    if not 0 <= share[0] < share[1]:
        raise SpecError("share", share, "is a number from 0, and of how many")


def _torn_size(torn: int | None, sector_size: int) -> int:
    size = sector_size if torn is None else torn
    if size and (size < sector_size or size & (size - 1)):
        raise SpecError(
            "torn", torn, f"a power of two, and not below the log's sector size of {sector_size} bytes"
        )
    return size


def first_sound(log: CrashLog, line: Timeline, filesystem: FileSystem, folder: Path) -> int:
    """Return the first epoch whose durable part has a sound file system.

    Raises:
        SpecError: There is none.
    """
    from dmcore.crash.states import State  # noqa: PLC0415

    problem: Problem | None = None
    if not log.size:
        raise SpecError("fs", filesystem.name, f"{log.path} writes nothing, and there is no base")
    with Tester(log, line, Pipeline(filesystem), folder, torn_size=0, name="first") as tester:
        for epoch in line.epochs:
            problem = tester.test(State(epoch.index, 0))
            if problem is None:
                return epoch.index
    reason = "; ".join([problem.reason if problem else "the log is empty", *log.warnings])
    raise SpecError("fs", filesystem.name, f"there is no sound file system at any flush of the log: {reason}")


def replay(
    log: CrashLog,
    line: Timeline,
    state: State,
    *,
    filesystem: FileSystem | None = None,
    oracle: Oracle | None = None,
    checker: Callable[[], Checker] | None = None,
    torn_size: int,
    folder: str | os.PathLike[str] | None = None,
) -> Proof | None:
    """Judge one state alone, in this process.

    Args:
        log: The log.
        line: Its epochs, at the level that the state's id was made at.
        state: The state; `dmcore.crash.states.parse_state` reads an id.
        filesystem: As of `explore`.
        oracle: As of `explore`.
        checker: As of `explore`.
        torn_size: Bytes of a sector that torn states write whole or not, as when the id was made.
        folder: Where images go; None for one that is made and removed.

    Returns:
        What is wrong, in words; None if nothing is.

    Raises:
        OracleFailed: It could not be judged.
    """
    fs = filesystem or NoFileSystem()
    make = checker or (lambda: Pipeline(fs, oracle))
    with _images(folder) as home:
        with Tester(log, line, make(), home, torn_size=torn_size) as tester:
            problem = tester.test(state)
        if problem is None:
            return None
        marks = line.epochs[state.epoch].marks
        finding = Finding(state, problem, marks, log.acknowledged(marks), 0)
        minimal = as_found(line, finding)
        return proof_of(log, line, finding, minimal, filesystem=fs, folder=home, torn_size=torn_size)


class _Run:
    """The state of an exploration."""

    def __init__(
        self,
        log: CrashLog,
        found: Exploration,
        families: Families,
        max_seconds: float | None,
        progress: Callable[[Progress], None] | None,
        *,
        apart: bool,
        stop_after: int | None,
        share: tuple[int, int],
    ) -> None:
        self._log = log
        self._found = found
        self._families = families
        self._ids = ImageIds(log, found.timeline, found.torn_size or log.sector_size)
        self._began = time.monotonic()
        self._max_seconds = max_seconds
        self._stop_after = stop_after
        self._late = False
        self._progress = progress
        self._told = 0.0
        self._family = ""
        self._apart = apart
        self._share, self._shares = share
        self._seen = dict(found.sound)
        self._others: set[int] = set()
        self._judged: set[int] = set()
        self._failed: dict[int, Finding] = {}
        self._stopped = False

    def _over(self) -> bool:
        if self._max_seconds is not None and time.monotonic() - self._began > self._max_seconds:
            self._stopped = self._late = True
        if self._stop_after is not None and len(self._failed) >= self._stop_after:
            self._stopped = True
        return self._stopped

    def jobs(self) -> Iterator[Job]:
        """Yield the states to judge: each image once, with the most marks that it is known with."""
        epochs = self._found.timeline.epochs
        boundaries: dict[int, Job] | None = {}
        for family, state in self._families:
            if boundaries is not None and family != "boundary":
                yield from self._kept(boundaries)
                boundaries = None
            self._family = family
            if self._over():
                return
            self._found.generated += 1
            self._ids.goto(state.epoch)
            job = Job(state, epochs[state.epoch].marks, self._ids.of(state))
            if not self._news(job):
                continue
            if boundaries is not None:
                boundaries.pop(job.image, None)
                boundaries[job.image] = job
            elif job.image not in self._failed:
                yield job
        if boundaries is not None:
            yield from self._kept(boundaries)

    def _news(self, job: Job) -> bool:
        """Whether a state, of those that are this exploration's share, says more than those before it; note that it was seen."""
        known = self._seen.get(job.image)
        if known is None:
            if self._found.distinct // _SHARED % self._shares != self._share:
                self._others.add(job.image)
            self._found.distinct += 1
        elif known >= job.marks:
            return False
        self._seen[job.image] = job.marks
        return job.image not in self._others

    def _kept(self, jobs: dict[int, Job]) -> Iterator[Job]:
        for job in jobs.values():
            if self._over():
                return
            yield job

    def collect(self, results: Iterator[Result | None]) -> None:
        """Take results until there are no more."""
        for result in results:
            if result is not None:
                self._take(result)
            self._tell()
        found = self._found
        found.findings = sorted(self._failed.values(), key=_by_time)
        found.set_apart.sort(key=_by_time)
        found.checked = len(self._judged)
        found.truncated = self._families.truncated or self._stopped
        found.exhaustive = self._families.exhaustive and not self._stopped
        if self._late:
            found.warnings.append(f"stopped after {self._max_seconds:g} s; not every state was visited")
        self._tell(force=True)

    def _take(self, result: Result) -> None:
        job, problem, error = result
        if error:
            self._found.errors.append(error)
            return
        self._judged.add(job.image)
        if problem is None:
            self._found.sound[job.image] = max(job.marks, self._found.sound.get(job.image, 0))
            return
        finding = Finding(job.state, problem, job.marks, self._log.acknowledged(job.marks), job.image)
        if self._apart and finding.torn and problem.kind == "fs":
            self._found.set_apart.append(finding)
        else:
            self._failed.setdefault(job.image, finding)

    def _tell(self, *, force: bool = False) -> None:
        now = time.monotonic()
        if self._progress is None or (now - self._told < 0.25 and not force):
            return
        self._told = now
        seconds, found = now - self._began, self._found
        limit, left = self._families.max_states, self._max_seconds
        self._progress(
            Progress(
                found.generated,
                found.distinct,
                len(self._judged),
                len(self._failed),
                seconds,
                None if limit is None else limit - found.generated,
                None if left is None else max(0.0, left - seconds),
                self._family,
            )
        )


def _by_time(finding: Finding) -> tuple[int, int, int, str]:
    return finding.state.epoch, len(finding.state.torn), finding.state.present, str(finding.state)
