"""A test's check of crash states: what it is handed, where it runs, and what its answers mean."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dmcore.crash.checkers import NoFileSystem, OracleFailed, Pipeline, Problem
from dmcore.errors import DmError, SpecError
from pytest_dm.crash.isolate import BadCheck, Outcome, Process
from pytest_dm.crash.mounted import MountedFileSystem

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from dmcore.crash.checkers import CrashState
    from pytest_dm.crash.recording import Recording
    from pytest_dm.runtime import Runtime

__all__ = ["Check", "Checked", "State"]


@dataclass(frozen=True, slots=True)
class State:
    """A crash state as a check sees it: recovered, and mounted if it has a file system.

    Attributes:
        id: Enough to make it again from the same recording.
        image: File with its content. Of a bare disk it may be changed; the file system's is mounted while the check runs.
        acknowledged: Names of the marks and finished operations that came before: they must have lasted.
        started: Names of operations that were under way: they may be there, in part if they are not atomic.
        torn: Whether some write is there in part only.
        mounted: Where its file system is mounted; None for a bare disk.
    """

    id: str
    image: Path
    acknowledged: tuple[str, ...]
    started: tuple[str, ...]
    torn: bool
    mounted: Path | None

    @property
    def mountpoint(self) -> Path:
        """Where its file system is mounted.

        Raises:
            DmError: It is a bare disk.
        """
        if self.mounted is None:
            message = "a state of a bare disk is not mounted: look at state.image"
            raise DmError(message)
        return self.mounted

    @classmethod
    def of(cls, state: CrashState) -> State:
        """Return what a check sees of a state."""
        return cls(state.id, state.image, state.acknowledged, state.started, state.torn, state.mountpoint)


class Check:
    """A test's check as an oracle of the exploration; runs it in a process of its own.

    Attributes:
        outcomes: What it said of states that it was not content with, by id; of those judged in this process.
    """

    def __init__(self, function: Callable[[Any], object], timeout: float) -> None:
        if not timeout > 0:
            raise SpecError("timeout", timeout, "is no time for a check: more than 0 seconds")
        self.process = Process(function, timeout)
        self.outcomes: dict[str, Outcome] = {}

    def __call__(self, state: CrashState, /) -> Problem | None:
        """Return what the check says of a state.

        Raises:
            OracleFailed: It gave an answer that is none.
        """
        try:
            outcome = self.process.run(State.of(state))
        except BadCheck as error:
            raise OracleFailed(str(error), state.id) from error
        if outcome.sound:
            return None
        self.outcomes[state.id] = outcome
        lines = outcome.reason.splitlines()
        return Problem(outcome.kind, lines[0] if lines else outcome.kind)


class Checked(Pipeline):
    """Recovery by the kernel, the file system's own check, then the test's."""

    def __init__(
        self, runtime: Runtime, recording: Recording, function: Callable[[Any], object] | None, timeout: float
    ) -> None:
        self._arguments = (runtime, recording, function, timeout)
        self.verdict = None if function is None else Check(function, timeout)
        self.mounted = (
            None
            if recording.filesystem is None
            else MountedFileSystem(
                runtime, recording.filesystem, recording.mount_options, recording.block_size
            )
        )
        super().__init__(self.mounted or NoFileSystem(), self.verdict)
        if self.mounted is not None and self.verdict is not None:
            self.mounted.evict = self.verdict.process.stop

    def again(self) -> Checked:
        """Return another of the same, which remembers no verdict."""
        return Checked(*self._arguments)

    def close(self) -> None:
        """End the check's process; free the loop device."""
        try:
            if self.verdict is not None:
                self.verdict.process.stop()
        finally:
            if self.mounted is not None:
                self.mounted.close()
