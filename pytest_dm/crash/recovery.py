"""A power cut during the recovery from a power cut: the mount of a crash state is recorded in turn, and explored."""

from __future__ import annotations

import random
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

from dmcore.crash.log import CrashLog
from dmcore.crash.materialise import write_image
from dmcore.crash.states import State
from pytest_dm.crash import recording
from pytest_dm.crash.checking import Checked

if TYPE_CHECKING:
    from collections.abc import Generator

    from dmcore.crash.checkers import CrashState, Problem
    from dmcore.crash.epochs import Timeline
    from pytest_dm.crash.recording import Recording
    from pytest_dm.factory import Dm

__all__ = ["Again", "chosen", "recorded"]


def chosen(line: Timeline, count: int, seed: int) -> list[State]:
    """Return up to `count` states to recover from: of epochs all over the log, with all or half of what was pending."""
    rng = random.Random(f"{seed}:recovery")  # noqa: S311 - reproducible choice
    epochs = sorted(rng.sample(range(len(line.epochs)), min(count, len(line.epochs))))
    states: list[State] = []
    for epoch in epochs:
        pending = len(line.epochs[epoch].pending)
        full = (1 << pending) - 1
        states.append(State(epoch, rng.choice((full, rng.getrandbits(pending) if pending else 0))))
    return states


@contextmanager
def recorded(dm: Dm, outer: Recording, log: CrashLog, line: Timeline, state: State) -> Generator[CrashLog]:
    """Give the log of the recovery from a state, whose base is that state.

    Raises:
        IoctlError: The state cannot be mounted.
    """
    assert outer.filesystem is not None
    base = dm.runtime.folder / "recovery-base.img"
    base.unlink(missing_ok=True)
    write_image(log, line, state, base, log.sector_size)
    try:
        with dm.scope() as scope:
            made = recording.record_mount(
                scope, base, outer.filesystem, outer.mount_options, block_size=outer.block_size
            )
            with CrashLog(made, base=base, size=outer.size) as inner:
                yield inner
    finally:
        base.unlink()


class Again(Checked):
    """Judges states of a recovery: what was acknowledged is that of the state it recovers from.

    Attributes:
        outer: That state's id.
        acknowledged: Its acknowledged operations.
        started: Its operations under way.
    """

    outer: str = ""
    acknowledged: tuple[str, ...] = ()
    started: tuple[str, ...] = ()

    def check(self, state: CrashState, /) -> Problem | None:
        """Judge a state; see `Checker`."""
        return super().check(
            replace(
                state, id=f"{self.outer}/{state.id}", acknowledged=self.acknowledged, started=self.started
            )
        )
