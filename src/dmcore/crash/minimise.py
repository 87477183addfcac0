"""The smallest proof: of a crash state that fails, as little as possible missing, untorn, as early as possible.

Sources: Zeller and Hildebrandt, "Simplifying and Isolating Failure-Inducing Input" (IEEE TSE 28(2), 2002), for ddmin.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dmcore.crash.checkers import OracleFailed
from dmcore.crash.states import State

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from dmcore.crash.checkers import Problem
    from dmcore.crash.epochs import Timeline
    from dmcore.crash.images import ImageIds

__all__ = ["Minimal", "Minimiser"]


@dataclass(frozen=True, slots=True)
class Minimal:
    """A state that fails in the same way with as little missing, or as little there, as could be found.

    Attributes:
        state: The state.
        problem: What is wrong with it.
        start: The state it was made from.
        missing: Numbers of the pending writes of which it lacks all.
        present: Numbers of those it has, whole or torn.
        causes: Those of the missing that alone make it fail in that way, with all others there.
        prefix: Whether it is what is left when the power goes between two writes that happen in order.
        checks: How many states were judged for this.
        done: Whether nothing smaller fails; False if time ran out.
    """

    state: State
    problem: Problem
    start: State
    missing: tuple[int, ...]
    present: tuple[int, ...]
    causes: tuple[int, ...]
    prefix: bool
    checks: int
    done: bool

    @property
    def by_presence(self) -> bool:
        """Whether it is said more shortly by what is there than by what is missing."""
        return len(self.present) < len(self.missing)


class _Spent(Exception):
    """The time or the number of checks is used up."""


class Minimiser:
    """Makes failing states smaller; the kind of the failure stays the same.

    Args:
        line: The epochs.
        judge: Returns what is wrong with a state.
        ids: Gives image ids, so that no image is judged twice.
        max_checks: How many states to judge for one failure at most.
        max_seconds: When to stop.
    """

    def __init__(
        self,
        line: Timeline,
        judge: Callable[[State], Problem | None],
        ids: ImageIds,
        *,
        max_checks: int = 400,
        max_seconds: float = 30,
    ) -> None:
        self._epochs = line.epochs
        self._judge = judge
        self._ids = ids
        self._max_checks = max_checks
        self._max_seconds = max_seconds
        self._known: dict[tuple[int, int], Problem | None] = {}
        self._checks = 0
        self._until = 0.0

    def minimise(self, state: State, problem: Problem) -> Minimal:
        """Return the smallest state of the same epoch that fails in the same way."""
        self._checks, self._until = 0, time.monotonic() + self._max_seconds
        best, done = state, True
        try:
            for better in (self._untear, self._fewer, self._untear):
                best = better(best, problem.kind)
        except _Spent as spent:
            best, done = spent.args[0] or best, False
        causes: tuple[int, ...] = ()
        count = len(self._epochs[best.epoch].pending)
        missing = best.missing(count)
        if done:
            try:
                causes = self._alone(best, problem.kind, count)
            except _Spent:
                done = False
        present = tuple(i for i in range(count) if best.present >> i & 1)
        last = self._known.get((best.epoch, self._id(best)))
        prefix = not best.torn and not best.present & best.present + 1
        return Minimal(best, last or problem, state, missing, present, causes, prefix, self._checks, done)

    def _id(self, state: State) -> int:
        self._ids.goto(state.epoch)
        return self._ids.of(state)

    def _fails(self, state: State, kind: str, best: State | None) -> bool:
        """Whether a state fails in that way; `_Spent` carries the best known when there is no more time."""
        key = (state.epoch, self._id(state))
        if key not in self._known:
            if self._checks >= self._max_checks or time.monotonic() > self._until:
                raise _Spent(best)
            self._checks += 1
            try:
                self._known[key] = self._judge(state)
            except OracleFailed:
                self._known[key] = None
        problem = self._known[key]
        return problem is not None and problem.kind == kind

    def _untear(self, state: State, kind: str) -> State:
        """Make torn writes absent, or whole, where it fails all the same."""
        best = state
        for tear in state.torn:
            rest = tuple(other for other in best.torn if other != tear)
            absent = State(best.epoch, best.present & ~(1 << tear.write), rest)
            whole = State(best.epoch, best.present, rest)
            best = next((one for one in (absent, whole) if self._fails(one, kind, best)), best)
        return best

    def _fewer(self, state: State, kind: str) -> State:
        """Fewest missing, or fewest there: what is said more shortly; missing if it is the same."""
        count = len(self._epochs[state.epoch].pending)
        torn = sum(1 << tear.write for tear in state.torn)
        full = (1 << count) - 1

        def lacks(missing: Sequence[int]) -> State:
            return State(state.epoch, full & ~sum(1 << i for i in missing) | torn, state.torn)

        def has(present: Sequence[int]) -> State:
            return State(state.epoch, sum(1 << i for i in present) | torn, state.torn)

        missing = list(state.missing(count))
        present = [i for i in range(count) if state.present >> i & 1 and not torn >> i & 1]
        fewest_missing = self._ddmin(missing, lacks, kind, state)
        fewest_present = self._ddmin(present, has, kind, lacks(fewest_missing))
        return lacks(fewest_missing) if len(fewest_missing) <= len(fewest_present) else has(fewest_present)

    def _ddmin(
        self, items: list[int], make: Callable[[Sequence[int]], State], kind: str, best: State
    ) -> list[int]:
        """Return a part of `items` of which every element is needed for the state made of it to fail."""
        if self._fails(make([]), kind, best):
            return []
        parts = 2
        while len(items) > 1:
            size = -(-len(items) // parts)
            chunks = [items[at : at + size] for at in range(0, len(items), size)]
            for at, chunk in enumerate(chunks):
                rest = [i for other, one in enumerate(chunks) if other != at for i in one]
                if len(chunks) > 1 and self._fails(make(chunk), kind, best):
                    items, parts, best = chunk, 2, make(chunk)
                    break
                if len(chunks) > 2 and self._fails(make(rest), kind, best):
                    items, parts, best = rest, max(parts - 1, 2), make(rest)
                    break
            else:
                if parts >= len(items):
                    break
                parts = min(len(items), 2 * parts)
        return items

    def _alone(self, best: State, kind: str, count: int) -> tuple[int, ...]:
        full = (1 << count) - 1
        missing = best.missing(count)
        if best.torn or len(missing) > 64:
            return ()
        return tuple(i for i in missing if self._fails(State(best.epoch, full ^ 1 << i), kind, best))
