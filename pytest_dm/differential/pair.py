"""Pair: runs scripts on a kernel and on the models. What of it is compared: see `pytest_dm.differential.session`."""

from __future__ import annotations

import os
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from dmcore.targets import Error, Linear
from dmcore.volume import open_volume
from pytest_dm.differential.divergence import Divergence
from pytest_dm.differential.profiles import SHRINK_SECONDS, ShrinkLimit, make_settings
from pytest_dm.differential.session import Session, Tally
from pytest_dm.differential.setup import Disk, Setup
from pytest_dm.differential.sides import Legs
from pytest_dm.differential.watch import Overdue, Watch

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable, Mapping

    from hypothesis import settings

    from dmcore.table import Table
    from dmcore.target import Features, Target
    from dmcore.volume import Volume
    from pytest_dm.differential.machine import Machine
    from pytest_dm.differential.steps import Step
    from pytest_dm.runtime import Runtime

__all__ = ["MACHINE_STEPS", "Pair"]

MACHINE_STEPS = 20
"""Most rules that a run of a state machine applies."""


class Pair:
    """The same stack on the kernel and on the models. Made by the fixture `dm_pair`; works inside `@given`.

    Attributes:
        runtime: The kernel.
        examples: How many examples `settings` asks for.
        tally: How much was compared so far.
        watch: Ends an example that takes too long.
        opener: Opens the stack of models; a test of the framework puts a wrong one there.
    """

    def __init__(self, runtime: Runtime, *, examples: int = 20, root: Path | None = None) -> None:
        self.runtime = runtime
        self.examples = examples
        self._root = root or Path.cwd()
        self._failed: dict[str, float] = {}
        self.legs = Legs(runtime)
        self.tally = Tally()
        self.watch = Watch()
        self._limit = ShrinkLimit()
        self.opener: Callable[..., Volume] = open_volume

    def settings(self, share: float = 1.0) -> settings:
        """Return hypothesis' settings for the session's profile.

        Args:
            share: Of its examples, for properties that are dearer than others.
        """
        return make_settings(max(1, round(self.examples * share)), self._root)

    def features(self, tables: Iterable[Table]) -> Features:
        """Return the features that the kernel has of the targets in `tables`."""
        kinds: set[type[Target]] = {type(line.target) for table in tables for line in table.lines}
        return self.runtime.features(Linear, Error, *kinds)

    @contextmanager
    def session(self, setup: Setup) -> Generator[Session]:
        """Make the stack on both sides, to do steps one by one; at the end of the block all is compared and removed.

        Raises:
            Divergence: Kernel and model differ.
            Overdue: It took longer than `watch.seconds`.
            Unsupported: The kernel lacks a target.
        """
        made: list[Session] = []

        def describe() -> str:
            return made[0].describe() if made else str(setup)

        def release() -> None:
            for each in made:
                each.release()

        try:
            with self.watch.over(describe, release):
                session = Session(self, setup)
                made.append(session)
                try:
                    yield session
                except BaseException:
                    session.abandon()
                    raise
                session.finish()
        except (Divergence, Overdue):
            self._limit.set()
            raise
        self.tally.ended(session.kinds())

    def run(
        self,
        stack: Setup | str,
        script: Iterable[Step] = (),
        *,
        disks: Mapping[str, Disk | int] | None = None,
    ) -> None:
        """Run a script on both sides.

        Args:
            stack: A setup, or a stack's text for which `disks` are given.
            script: The steps.
            disks: What the text names; a number is the sectors of a disk filled with a pattern.

        Raises:
            Divergence: Kernel and model differ; it names the first step that does.
            Unsupported: The kernel lacks a target.
        """
        setup = Setup.of(stack, disks or {}) if isinstance(stack, str) else stack
        steps_of = tuple(script)
        example = f"{setup}\n{steps_of}"
        if self._shrunk_long_enough(example):
            return
        try:
            with self.session(setup) as session:
                for step in steps_of:
                    session.do(step)
        except (Divergence, Overdue):
            self._failed.setdefault(example, time.monotonic())
            raise

    def explore(self, machine: type[Machine]) -> None:
        """Let hypothesis run a state machine, for as many examples as the profile says.

        Raises:
            Divergence: Kernel and model differ; the rules that lead there are in its notes.
        """
        from hypothesis import settings
        from hypothesis.stateful import run_state_machine_as_test

        mine = type(machine.__name__, (machine,), {"pair": self, "__module__": machine.__module__})
        bounded = settings(self.settings(), stateful_step_count=MACHINE_STEPS)
        run_state_machine_as_test(mine, settings=bounded)

    def _shrunk_long_enough(self, example: str) -> bool:
        """Whether an example need not be tried, because hypothesis has been shrinking another for `SHRINK_SECONDS`.

        A guest is lost when a test takes too long, and the Divergence with it.
        """
        begun = next(iter(self._failed.values()), None)
        return begun is not None and example not in self._failed and time.monotonic() - begun > SHRINK_SECONDS

    def describe(self) -> str:
        """Return what it is, for a failure report."""
        return self.legs.describe()

    def properties(self) -> list[tuple[str, int | str]]:
        """Return what was compared, and on which kernel, as properties of a test's report (`dm_pair_*`)."""
        found = self.tally.properties()
        return [*found, ("dm_pair_kernel", os.uname().release)] if found else []

    def close(self) -> None:
        """Remove the disks below."""
        self._limit.reset()
        self.watch.close()
        self.legs.close()
