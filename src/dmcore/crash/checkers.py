"""What says whether a crash state is sound: a file system's own recovery first, then the user's oracle.

A `Checker` is handed a `CrashState` and returns a `Problem`, or None where all is well. `Pipeline` is the usual one: it
lets a `FileSystem` recover the image as a machine that comes up again would, and asks an oracle about the result, once
per distinct result.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NamedTuple, Protocol

from dmcore.errors import DmError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

__all__ = [
    "Checker",
    "CrashState",
    "FileSystem",
    "Masked",
    "NoFileSystem",
    "Oracle",
    "OracleFailed",
    "Pipeline",
    "Problem",
]


class Problem(NamedTuple):
    """What is wrong with a crash state.

    Attributes:
        kind: Class of the failure: "fs" for a file system that does not recover, else what the oracle says, such as
            "durability" or "integrity"; "timeout" for one that hangs.
        reason: One line.
    """

    kind: str
    reason: str


class OracleFailed(DmError):
    """An oracle could not do its work: that says nothing about the state.

    Attributes:
        reason: What it did instead.
        state: Id of the state it was asked about.
    """

    def __init__(self, reason: str, state: str) -> None:
        super().__init__(reason, state)
        self.reason = reason
        self.state = state

    def __str__(self) -> str:
        return f"the oracle failed at {self.state}: {self.reason}"


class Masked(NamedTuple):
    """Bytes of a recovered image that differ from one recovery to the next and mean nothing.

    Attributes:
        offset: First byte of the device.
        length: Bytes.
    """

    offset: int
    length: int


def _nothing() -> None:
    """Whoever made the state looks for himself."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CrashState:
    """A crash state to be checked.

    Attributes:
        id: Its id, enough to make it again.
        image: File with the state; a checker that `writes` may do with it what it likes.
        mountpoint: Where its file system is mounted, if it is.
        acknowledged: Names of the operations that were acknowledged before the power went, in order: they must have lasted.
            Where the same bytes can be left at several times, these are those of the last.
        started: Names of operations that had begun and were not acknowledged: they may be there, in part if they are
            not atomic.
        torn: Whether some write is there in part.
        fingerprint: Returns a number that is the same for images that differ in the masked bytes only; of the image as it would be
            with some data (first byte, data) written over it.
        untouched: To be called, if at all, before `fingerprint`, by a checker that has not written to the image: saves looking
            for what it wrote.
        settled: To be called, if at all, after `fingerprint`, by a checker that has not written to the image since: saves
            looking for what it wrote.
    """

    id: str
    image: Path
    mountpoint: Path | None = None
    acknowledged: tuple[str, ...] = ()
    started: tuple[str, ...] = ()
    torn: bool = False
    fingerprint: Callable[[Sequence[Masked], Sequence[tuple[int, bytes]]], int]
    settled: Callable[[], None] = _nothing
    untouched: Callable[[], None] = _nothing


class Checker(Protocol):
    """Judges crash states.

    Attributes:
        writes: Whether it changes the image it is given. If not it may be given one that others share.
    """

    writes: bool

    def check(self, state: CrashState, /) -> Problem | None:
        """Return what is wrong with a state, None for nothing.

        Raises:
            OracleFailed: It could not be judged.
        """
        ...


class Oracle(Protocol):
    """The user's judgement of a recovered state."""

    def __call__(self, state: CrashState, /) -> Problem | None:
        """Return what is wrong with a state, None for nothing; `OracleFailed` as for `Checker`."""
        ...


class FileSystem(Protocol):
    """What a machine does with a file system when it comes up again.

    Attributes:
        name: Its name, such as "ext4".
        atomic: Byte ranges of the device, begin and end, that it takes for granted to be written whole or not at all, such as
            a super block with a checksum and no copy that recovery would use: torn only if that is asked for.

    One that also has an attribute `wrote`, false where the last `recover` has not written to the image, is not searched for
    what it wrote. One that has a method `foresee` says, of an image that is not recovered, what recovery will write (first byte,
    data), or None if it does not know; images of which it says that they will be the same are recovered once.
    """

    name: str
    atomic: Sequence[tuple[int, int]]

    def recover(self, image: Path, /) -> Problem | None:
        """Recover the file system of an image in place; return what is wrong if that does not give a sound one."""
        ...

    def verify(self, image: Path, /) -> Problem | None:
        """Return what is wrong with a recovered file system; asked once per distinct one. Reads only."""
        ...

    def masked(self, image: Path, /) -> Sequence[Masked]:
        """Return what of a recovered image means nothing; asked once, of the first."""
        ...

    def explain(self, image: Path, writes: Sequence[tuple[int, bytes]], /) -> list[str]:
        """Return what each write was for, "" if unknown: given its first byte on the device, and its data.

        The image is of the end of the log, recovered if that was possible.
        """
        ...

    def opened(self, image: Path, /) -> AbstractContextManager[Path | None]:
        """Return a context in which an oracle may look at a recovered image; gives where it is mounted, if it is."""
        ...


class NoFileSystem:
    """A raw device: nothing recovers it but the program itself."""

    name = "none"
    atomic: Sequence[tuple[int, int]] = ()
    wrote = False

    def recover(self, _image: Path, /) -> None:
        """There is nothing to do."""

    def verify(self, _image: Path, /) -> None:
        """There is nothing to see."""

    def masked(self, _image: Path, /) -> Sequence[Masked]:
        """Every byte counts."""
        return ()

    def explain(self, _image: Path, writes: Sequence[tuple[int, bytes]], /) -> list[str]:
        """Nobody knows."""
        return [""] * len(writes)

    def opened(self, _image: Path, /) -> AbstractContextManager[None]:
        """There is nothing to mount."""
        return nullcontext()


class Pipeline:
    """Recovery, the file system's verdict, and the oracle's, each no more often than needed.

    Verdicts are remembered by the recovered image: an oracle that was content with an image and a set of acknowledged
    operations is so with fewer.

    Args:
        filesystem: What recovers.
        oracle: What judges the result; None for the file system alone.
    """

    def __init__(self, filesystem: FileSystem, oracle: Oracle | None = None) -> None:
        self.filesystem = filesystem
        self.oracle = oracle
        self.writes = oracle is not None or not isinstance(filesystem, NoFileSystem)
        self._masked: Sequence[Masked] | None = None
        self._verified: dict[int, Problem | None] = {}
        self._outcomes: dict[int, Problem | int] = {}
        self._content: dict[int, int] = {}
        self._wrong: dict[tuple[int, tuple[str, ...]], Problem] = {}

    def check(self, state: CrashState, /) -> Problem | None:
        """Judge a state; see `Checker`."""
        if isinstance(self.filesystem, NoFileSystem):
            return None if self.oracle is None else self._ask(state, 0)
        ahead = self._foreseen(state)
        outcome = None if ahead is None else self._outcomes.get(ahead)
        if outcome is not None and self._settled(state, outcome):
            state.settled()
            return self._said(state, outcome)
        outcome = self._recovered(state)
        if ahead is not None:
            self._outcomes[ahead] = outcome
        if isinstance(outcome, Problem):
            return outcome
        if outcome not in self._verified:
            self._verified[outcome] = self.filesystem.verify(state.image)
        if self._settled(state, outcome):
            state.settled()
            return self._said(state, outcome)
        return self._ask(state, outcome)

    def _foreseen(self, state: CrashState) -> int | None:
        """Return what a state has in common with all that recover to the same image; None if that is not known."""
        foresee = getattr(self.filesystem, "foresee", None)
        if foresee is None or self._masked is None:
            return None
        writes: Sequence[tuple[int, bytes]] | None = foresee(state.image)
        if writes is None:
            return None
        state.untouched()
        return state.fingerprint(self._masked, writes)

    def _recovered(self, state: CrashState) -> Problem | int:
        """Have a state recovered; return what is wrong, or the fingerprint of the outcome."""
        problem = self.filesystem.recover(state.image)
        if problem is not None:
            return problem
        if self._masked is None:
            self._masked = self.filesystem.masked(state.image)
        if not getattr(self.filesystem, "wrote", True):
            state.untouched()
        return state.fingerprint(self._masked, ())

    def _settled(self, state: CrashState, outcome: Problem | int) -> bool:
        """Whether all that there is to say of a recovery is known."""
        if isinstance(outcome, Problem):
            return True
        if outcome not in self._verified:
            return False
        return self._verified[outcome] is not None or self.oracle is None or self._known(state, outcome)

    def _said(self, state: CrashState, outcome: Problem | int) -> Problem | None:
        """Return what was said of a recovery."""
        if isinstance(outcome, Problem):
            return outcome
        return self._verified[outcome] or self._wrong.get((outcome, state.acknowledged))

    def _known(self, state: CrashState, recovered: int) -> bool:
        """Whether the oracle's word on a recovered image is known."""
        content = self._content.get(recovered, -1) >= len(state.acknowledged)
        return content or (recovered, state.acknowledged) in self._wrong

    def _ask(self, state: CrashState, recovered: int) -> Problem | None:
        with self.filesystem.opened(state.image) as mountpoint:
            problem = self._judge(state, mountpoint)
        if problem is None:
            self._content[recovered] = max(self._content.get(recovered, -1), len(state.acknowledged))
        else:
            self._wrong[recovered, state.acknowledged] = problem
        return problem

    def _judge(self, state: CrashState, mountpoint: Path | None) -> Problem | None:
        assert self.oracle is not None
        return self.oracle(replace(state, mountpoint=mountpoint) if mountpoint else state)
