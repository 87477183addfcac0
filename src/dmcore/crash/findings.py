"""What an exploration finds, and how far it is."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from dmcore.crash.conclude import Proof

if TYPE_CHECKING:
    from dmcore.crash.checkers import Problem
    from dmcore.crash.epochs import Timeline
    from dmcore.crash.states import State

__all__ = ["Exploration", "Finding", "Progress"]


@dataclass(frozen=True, slots=True)
class Finding:
    """A crash state that failed.

    Attributes:
        state: The state; `str(state)` is its id.
        problem: What is wrong.
        marks: How many marks had been made.
        acknowledged: The operations they acknowledge.
        image: Id of its image.
    """

    state: State
    problem: Problem
    marks: int
    acknowledged: tuple[str, ...]
    image: int

    @property
    def torn(self) -> bool:
        """Whether some write is there in part only: such findings are a class of their own."""
        return bool(self.state.torn)


@dataclass(frozen=True, slots=True)
class Progress:
    """How far it is.

    Attributes:
        generated: States seen.
        distinct: Distinct images among them.
        checked: Images judged.
        violating: Images that failed.
        seconds: Time since the start.
        states_left: What is left of the budget of states; None if it has none.
        seconds_left: What is left of the time; None if it has no bound.
        family: Family of states being looked at.
    """

    generated: int
    distinct: int
    checked: int
    violating: int
    seconds: float
    states_left: int | None
    seconds_left: float | None
    family: str

    def __str__(self) -> str:
        """Say it in one line."""
        left = [] if self.states_left is None else [f"{self.states_left} states"]
        left += [] if self.seconds_left is None else [f"{self.seconds_left:.0f} s"]
        return (
            f"{self.generated} states, {self.distinct} distinct, {self.checked} checked "
            f"({self.rate:.0f}/s), {self.violating} failing{'; left: ' + ', '.join(left) if left else ''}"
        )

    @property
    def rate(self) -> float:
        """Images judged per second."""
        return self.checked / self.seconds if self.seconds > 0 else 0.0


@dataclass(kw_only=True)
class Exploration:
    """What an exploration found.

    Attributes:
        timeline: The epochs, with the level they were made at.
        seed: Of the random choices.
        torn_size: Bytes of a sector that torn states write whole or not; 0: none were made.
        first: Number of the first epoch looked at: where the file system begins to be there.
        findings: States that failed, by time.
        proofs: The smallest proof of each class of them (kind, torn or not), with words.
        set_apart: Torn states at which the file system itself failed, where tearing was not asked for by name: many disks
            never tear such a sector, and it is not the program's fault.
        errors: States that could not be judged: the oracle failed.
        generated: States made up.
        distinct: Distinct images among them.
        checked: Distinct images that were judged.
        truncated: Whether states were left out for want of budget.
        exhaustive: Whether every state of the model without torn writes was judged.
        seconds: How long it took.
        warnings: What is odd about the log or the run.
        sound: Ids of the images that were found sound, with how many marks made; those of `known` too.
    """

    timeline: Timeline
    seed: int
    torn_size: int
    first: int = 0
    findings: list[Finding] = field(default_factory=list[Finding])
    proofs: list[Proof] = field(default_factory=list[Proof])
    set_apart: list[Finding] = field(default_factory=list[Finding])
    errors: list[str] = field(default_factory=list[str])
    generated: int = 0
    distinct: int = 0
    checked: int = 0
    truncated: bool = False
    exhaustive: bool = False
    seconds: float = 0.0
    warnings: list[str] = field(default_factory=list[str])
    sound: dict[int, int] = field(default_factory=dict[int, int])

    @property
    def violating(self) -> int:
        """Distinct images that failed."""
        return len(self.findings)
