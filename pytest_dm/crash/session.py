"""DmCrash: the value of the fixture `dm_crash`."""

from __future__ import annotations

import gc
import re
import subprocess
import sys
from contextlib import contextmanager
from dataclasses import replace
from enum import Enum
from typing import TYPE_CHECKING, Final

from dmcore.crash.checkers import Problem
from dmcore.crash.conclude import Proof
from dmcore.crash.epochs import Level, read_times, timeline
from dmcore.crash.explore import Exploration, Finding, explore
from dmcore.crash.log import CrashLog
from dmcore.crash.minimise import Minimal
from dmcore.crash.states import parse_state
from dmcore.crash.tester import Tester
from dmcore.crash.words import say
from dmcore.errors import DmError, SpecError
from pytest_dm.crash import failure, recording
from pytest_dm.crash.checking import Checked
from pytest_dm.crash.checking import State as CheckedState
from pytest_dm.crash.failure import CrashFailure
from pytest_dm.crash.isolate import Outcome
from pytest_dm.crash.keep import keep, load
from pytest_dm.crash.recovery import Again, chosen, recorded
from pytest_dm.progress import Meter

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Sequence
    from pathlib import Path
    from typing import Any

    from dmcore.crash.checkers import CrashState
    from dmcore.crash.epochs import Timeline, Times
    from dmcore.crash.states import State
    from pytest_dm.below import Size
    from pytest_dm.crash.failure import Case
    from pytest_dm.crash.recording import CrashDisk, Recording
    from pytest_dm.factory import Dm
    from pytest_dm.options import CrashOptions

__all__ = ["DmCrash"]

_UNSAFE = re.compile(r"[^A-Za-z0-9_.-]+")
_SECONDS = 30.0
_FINDINGS = 50
_RECOVERY_STATES = 100
_CHECK_SECONDS = 30.0


class _Marker(Enum):
    """Stands for "as the test's marker says"."""

    SAYS = "the marker's"


_MARKER: Final = _Marker.SAYS


class DmCrash:
    """Records what a workload writes, and explores what a power cut could have left of it.

    Attributes:
        recording: What the last `record` block wrote; None before.
        results: What `check` and `explore` found in this test, for reports.
    """

    def __init__(
        self,
        dm: Dm,
        nodeid: str,
        options: CrashOptions,
        *,
        artifacts: Path | None = None,
        shown: Path | None = None,
        tell: Callable[[str], None] = lambda _line: None,
    ) -> None:
        """Prepare.

        Args:
            dm: Makes the devices.
            nodeid: The test.
            options: What the command line says.
            artifacts: Where a failing check keeps its recording; None for nowhere.
            shown: Where that will be when the session is over.
            tell: Says a line to whoever watches the session.
        """
        self._dm = dm
        self._nodeid = nodeid
        self._options = options
        self._artifacts = artifacts
        self._shown = shown or artifacts
        self._say = tell
        self._disk: CrashDisk | None = None
        self.recording: Recording | None = None
        self.results: list[dict[str, Any]] = []
        self._explored: list[tuple[Exploration, Recording, Callable[[Any], object] | None]] = []

    @contextmanager
    def scope(self) -> Generator[DmCrash]:
        """Give a fresh one whose devices go at the end of the block, for use under hypothesis' `@given`."""
        with self._dm.scope() as dm:
            inner = DmCrash(
                dm, self._nodeid, self._options,
                artifacts=self._artifacts, shown=self._shown, tell=self._say,
            )  # fmt: skip
            inner.results = self.results
            yield inner

    @contextmanager
    def record(
        self,
        *,
        size: Size | None = None,
        filesystem: str | _Marker | None = _MARKER,
        mkfs_options: Sequence[str] = (),
        mount_options: str = "",
        block_size: int | None = None,
        log_size: Size | None = None,
    ) -> Generator[CrashDisk]:
        """Give a disk whose every write is recorded until the end of the block.

        Args:
            size: Of the disk; by default the marker's.
            filesystem: Made on it and mounted at `disk.mountpoint`: ext2 ext3 ext4 xfs btrfs f2fs vfat; None for a bare
                disk; by default the marker's.
            mkfs_options: More arguments of mkfs.
            mount_options: As for mount(8) -o.
            block_size: Logical block size in bytes, a power of two in 512..4096; by default the marker's.
            log_size: Room for the log, which takes memory only as it fills; by default four times the size.

        Raises:
            SpecError: DAX (such writes bypass the log), options of a file system for a bare disk, bad sizes.
            Unsupported: No log-writes target, no mkfs.
            DmError: The log filled up or stopped: nothing can be said of such a recording.
        """
        self.recording = None
        wants = self._dm.wants
        with recording.record(
            self._dm,
            size=wants.size if size is None else size,
            filesystem=wants.filesystem if isinstance(filesystem, _Marker) else filesystem,
            mkfs_options=tuple(mkfs_options),
            mount_options=mount_options,
            block_size=wants.block_size if block_size is None else block_size,
            log_size=log_size,
        ) as disk:
            yield disk
        self._disk = disk
        self.recording = disk.recording

    def explore(
        self,
        check: Callable[[Any], object] | None = None,
        *,
        level: str | None = None,
        max_states: int | None = None,
        max_seconds: float | None = _SECONDS,
        max_findings: int | None = None,
        seed: int = 0,
        torn: int | None = None,
        timeout: float = _CHECK_SECONDS,
        known: Exploration | None = None,
    ) -> Exploration:
        """Visit states that a power cut could have left of the recording, and return what was found.

        Each distinct state is made, recovered by the kernel that runs the test, checked by the file system's own tool, and
        shown to `check`.

        Args:
            check: Is called with a `State` (`mountpoint`, `image`, `acknowledged`, `started`, `id`) in a process of its own.
                None and True are content; False, a text, an exception, a hang and a crash are findings. None: only the
                file system's verdict.
            level: How much order is assumed: "L0" durable prefixes only, "L1" what the log proves, "L2" what the times
                prove, "L3" a disk that ignores flushes. By default L2 where the kernel told times, else L1.
            max_states: How many states to visit at most; None for all of the families.
            max_seconds: When to stop; None for never.
            max_findings: How many failing images are enough; None for all.
            seed: Of the random choices.
            torn: Bytes of a sector that the disk writes whole or not; 0 for no torn writes; by default the logical block
                size, and then without those that the file system is known not to stand.
            timeout: Seconds that `check` may take for one state.
            known: What `explore` returned of this recording with this check, as for another seed: what was found sound then is
                neither judged nor counted again.

        Raises:
            SpecError: A value that means nothing.
            DmError: Nothing is recorded; the recorded file system is still in use (btrfs); `check` gave an answer that is none.
        """
        with self._opened(level) as (log, line, times):
            found, made = self._run(
                log, line, times, check, timeout, max_states=max_states, max_seconds=max_seconds,
                max_findings=max_findings, seed=seed, torn=torn, minimise=False, known=self._of_now(known, check),
            )  # fmt: skip
            made.close()
            self._tell(found)
            self._explored.append((found, self._recorded(), check))
            return found

    def _of_now(self, known: Exploration | None, check: Callable[[Any], object] | None) -> Exploration | None:
        """Return an earlier exploration if it says something of this recording and check."""
        recorded = self._recorded()
        if known is None or any(
            known is found and recorded == of and check is by for found, of, by in self._explored
        ):
            return known
        raise SpecError("known", known, "is no exploration of this recording with this check")

    def check(
        self,
        check: Callable[[Any], object] | None = None,
        *,
        level: str | None = None,
        max_states: int | None = None,
        max_seconds: float | None = _SECONDS,
        seed: int = 0,
        torn: int | None = None,
        timeout: float = _CHECK_SECONDS,
        recovery: int = 0,
    ) -> Exploration:
        """Fail the test if a state is not sound: with the smallest proof of each kind of failure, in words.

        Arguments are those of `explore`. With `--dm-crash-state=ID` only that state is visited, and `check` runs in the
        test's own process, where a debugger reaches it.

        Args:
            recovery: From so many states the recovery is recorded in turn, and a power cut during it explored, too, in at most
                `max_states` or 100 states of each; these have ids like `e12:5/e0:1`.

        Raises:
            CrashFailure: With the report.
            SpecError, DmError: As `explore`.
        """
        __tracebackhide__ = True
        with self._opened(level) as (log, line, times):
            if self._options.state:
                return self._replay(log, line, check, torn)
            found, made = self._run(
                log, line, times, check, timeout, max_states=max_states, max_seconds=max_seconds,
                max_findings=_FINDINGS, seed=seed, torn=torn, minimise=True,
            )  # fmt: skip
            try:
                cases = self._cases(log, found, made)
            finally:
                made.close()
            self._tell(found, cases)
            for state in chosen(line, recovery, found.seed) if self._recorded().filesystem else ():
                cases += self._recovery(
                    log, line, state, check=check, timeout=timeout, torn=torn, max_states=max_states
                )
        if cases:
            text = failure.render(cases, failure.summary(found), self._kept(cases), self._notes(found))
            raise CrashFailure(text, cases, found)
        return found

    def _recovery(
        self,
        log: CrashLog,
        line: Timeline,
        state: State,
        *,
        check: Callable[[Any], object] | None,
        timeout: float,
        torn: int | None,
        max_states: int | None,
    ) -> list[Case]:
        """Explore a power cut during the recovery from a state; return the failures."""
        outer, folder = self._recorded(), self._dm.runtime.folder
        marks = line.epochs[state.epoch].marks
        made = Again(self._dm.runtime, outer, check, timeout)
        made.outer, made.acknowledged, made.started = str(state), log.acknowledged(marks), log.started(marks)
        with recorded(self._dm, outer, log, line, state) as inner:
            try:
                found = explore(
                    inner, level=Level.L1, filesystem=made.mounted, checker=lambda: made, max_states=min(max_states or _RECOVERY_STATES, _RECOVERY_STATES),
                    stop_after=_FINDINGS, torn=torn, first=0, workers=0, folder=folder,
                )  # fmt: skip
                cases = [failure.case(inner, found, proof, None) for proof in found.proofs]
            finally:
                made.close()  # its process has the loop devices open that go now
        cases = [
            replace(one, state=f"{state}/{one.state}", reason=f"{one.reason}\n  (a second power cut, during the recovery from {state})",
                    acknowledged=made.acknowledged, started=made.started)
            for one in cases
        ]  # fmt: skip
        self._tell(found, cases, f"recovery from {state}: ")
        return cases

    def _kept(self, cases: Sequence[Case]) -> str:
        """Keep the recording of a failed check; return how to see one of its states again."""
        if self._options.recording is not None:
            return f"--dm-crash-recording={self._options.recording} --dm-crash-state="
        if self._artifacts is None or self._shown is None:
            return "--dm-artifacts=DIR keeps the recording; --dm-crash-state="
        name = _UNSAFE.sub("-", self._nodeid)[-150:]
        keep(self._recorded(), self._artifacts / "crash" / name, [one.state for one in cases])
        return f"--dm-crash-recording={self._shown / 'crash' / name} --dm-crash-state="

    def _notes(self, found: Exploration) -> list[str]:
        notes = list(found.warnings)
        recorded = self._recorded()
        if found.timeline.level is Level.L1 and recorded.unordered:
            notes.append(f"no precise order (L2): {recorded.unordered}")
        if found.timeline.level is Level.L3:
            notes.append("L3 is a disk that ignores flushes, which is not what disks may do")
        return notes

    def _tell(self, found: Exploration, cases: Sequence[Case] = (), what: str = "") -> None:
        """Print the numbers, which pytest shows with a failure or -rP, and keep them for the session's report."""
        numbers = what + failure.summary(found)
        sys.stdout.write(f"dm_crash: {numbers}\n")
        notes = self._notes(found)
        for note in notes:
            sys.stdout.write(f"dm_crash: {note}\n")
        self.results.append({"numbers": numbers, "notes": notes, "cases": [one.to_json() for one in cases]})

    def _cases(self, log: CrashLog, found: Exploration, made: Checked) -> list[Case]:
        """Return each kind of failure; its state is judged once more, for the whole of what the check says."""
        cases: list[Case] = []
        for proof in found.proofs:
            state = proof.minimal.state
            again = made.again()
            try:
                with Tester(
                    log,
                    found.timeline,
                    again,
                    self._dm.runtime.folder,
                    torn_size=found.torn_size,
                    name="again",
                ) as tester:
                    problem = tester.test(state)
            finally:
                again.close()
            outcome = again.verdict.outcomes.get(str(state)) if again.verdict is not None else None
            cases.append(failure.case(log, found, proof, outcome if problem else Outcome(sound=True)))
        return cases

    @contextmanager
    def _opened(self, level: str | None) -> Generator[tuple[CrashLog, Timeline, list[Times] | None]]:
        recorded = self._recorded()
        chosen = level or ("L1" if recorded.times is None else "L2")
        if chosen == Level.L2 and recorded.times is None:
            raise SpecError("level", level, f"there are no times of this recording: {recorded.unordered}")
        self._free_identity()
        with CrashLog(recorded.log, base=recorded.base, size=recorded.size) as log:
            times = None
            if chosen == Level.L2 and recorded.times is not None:
                times = read_times(recorded.times, len(log.index))
            yield log, timeline(log, chosen, times=times), times

    def _run(
        self,
        log: CrashLog,
        line: Timeline,
        times: list[Times] | None,
        check: Callable[[Any], object] | None,
        timeout: float,
        *,
        max_states: int | None,
        max_seconds: float | None,
        max_findings: int | None,
        seed: int,
        torn: int | None,
        minimise: bool,
        known: Exploration | None = None,
    ) -> tuple[Exploration, Checked]:
        options = self._options
        made = Checked(self._dm.runtime, self._recorded(), check, timeout)
        try:
            found = explore(
                log, level=line.level, filesystem=made.mounted, checker=lambda: made, minimise=minimise, known=known,
                max_states=max_states if options.states is None else options.states,
                max_seconds=max_seconds if options.seconds is None else options.seconds,
                stop_after=max_findings, seed=seed if options.seed is None else options.seed, torn=torn, first=0,
                times=times, workers=0, folder=self._dm.runtime.folder, progress=Meter(self._say, self._nodeid),
            )  # fmt: skip
        except BaseException:
            made.close()
            raise
        if found.errors:
            made.close()
            raise DmError(found.errors[0])
        return found, made

    def _replay(
        self, log: CrashLog, line: Timeline, check: Callable[[Any], object] | None, torn: int | None
    ) -> Exploration:
        """Judge one state, with the check in this process."""
        __tracebackhide__ = True
        state = parse_state(self._options.state, line)
        torn_size = log.sector_size if torn is None else torn
        found = Exploration(timeline=line, seed=0, torn_size=torn_size, generated=1, distinct=1, checked=1)
        made = Checked(self._dm.runtime, self._recorded(), None, 0.0)
        made.oracle = None if check is None else _Here(check)
        made.writes = True
        try:
            with Tester(log, line, made, self._dm.runtime.folder, torn_size=torn_size) as tester:
                problem = tester.test(state)
        finally:
            made.close()
        marks = line.epochs[state.epoch].marks
        if problem is None:
            self._tell(found)
            return found
        finding = Finding(state, problem, marks, log.acknowledged(marks), 0)
        present = tuple(i for i in range(len(line.epochs[state.epoch].pending)) if state.present >> i & 1)
        missing = state.missing(len(line.epochs[state.epoch].pending))
        minimal = Minimal(state, problem, state, missing, present, (), prefix=False, checks=1, done=False)
        found.findings.append(finding)
        found.proofs = [Proof(finding, minimal, tuple(say(log, line, minimal, torn_size=torn_size)))]
        cases = [failure.case(log, found, proof, None) for proof in found.proofs]
        self._tell(found, cases)
        raise CrashFailure(
            failure.render(cases, failure.summary(found), self._kept(cases), self._notes(found)), cases, found
        )

    def _recorded(self) -> Recording:
        if self._options.recording is not None:
            return load(self._options.recording)
        if self.recording is None:
            message = "nothing is recorded: use 'with dm_crash.record() as disk:' first"
            raise DmError(message)
        return self.recording

    def _free_identity(self) -> None:
        """Unmount a recorded btrfs: the kernel would take a state of it for the same file system.

        Raises:
            IoctlError: It is still in use.
        """
        disk = self._disk
        if disk is not None and disk.filesystem == "btrfs" and disk.device.mounts:
            gc.collect()
            disk.device.unmount()
            forget = ["btrfs", "device", "scan", "--forget", str(disk.path)]
            subprocess.run(forget, check=False, capture_output=True, timeout=30)


class _Here:
    """A check in the test's own process, where a debugger reaches it; its exception is the test's."""

    def __init__(self, function: Callable[[Any], object]) -> None:
        self._function = function

    def __call__(self, state: CrashState, /) -> Problem | None:
        __tracebackhide__ = True
        answer = self._function(CheckedState.of(state))
        if answer is None or answer is True:
            return None
        return Problem("check", "the check returned False" if answer is False else str(answer))
