"""Which crash states to look at, and in which order, when there are more than one can look at.

Few systematic states find more than many random ones: what is missing or kept alone, what stands before a mark, writes of
metadata and FUA writes first. Families are visited one after the other, each over all epochs in order of time:

========== ============================================================== ====================== =====
family     states of an epoch with n pending writes                       all of them, up to     share
========== ============================================================== ====================== =====
boundary   nothing pending is there; at the end of the log also all       any n                  25 %
prefix     the first k are there                                          any n                  15 %
subset     every subset; above n = 10: one missing, one kept, two missing n = 10; 64; 24         30 %
torn       one is there in part, with all others, none, those before it   units of 2^4           20 %
random     random subsets, one in ten, half, nine in ten there            -                      10 %
rest       every subset of larger epochs, if the budget allows all        2^n of what is left    rest
========== ============================================================== ====================== =====

Shares count when the number of states is limited; what one family does not need, the others get.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from itertools import combinations, islice
from typing import TYPE_CHECKING

from dmcore.crash.epochs import Level
from dmcore.crash.states import State, Tear, units
from dmcore.formats.log_writes import LogFlag

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from dmcore.crash.epochs import Epoch, Timeline

__all__ = ["EXHAUSTIVE", "Families", "states", "tears_of"]

EXHAUSTIVE = 10
"""Pending writes up to which every subset is one of the families."""
_SINGLES, _PAIRS, _RANDOM, _LARGEST = 64, 24, 64, 24
_SHARES = {"boundary": 0.25, "prefix": 0.15, "subset": 0.3, "torn": 0.2, "random": 0.1}


@dataclass
class Families:
    """The states of a timeline, family by family.

    Attributes:
        timeline: The epochs.
        torn_size: Bytes of a sector that is written whole or not; 0 for no torn states.
        seed: Of the random choices.
        max_states: How many states to give at most; None for all of the families.
        first: Number of the first epoch.
        atomic: Byte ranges of the device, begin and end, that are never torn.
        truncated: Whether states of the families were left out because of `max_states`; known at the end.
        exhaustive: Whether every state without torn writes was given; known at the end.
    """

    timeline: Timeline
    torn_size: int
    seed: int = 0
    max_states: int | None = None
    first: int = 0
    atomic: Sequence[tuple[int, int]] = ()
    truncated: bool = False
    exhaustive: bool = True
    _given: dict[int, set[int]] = field(default_factory=dict[int, set[int]])
    _left: int = 0

    def __post_init__(self) -> None:
        self._epochs = self.timeline.epochs[self.first :]
        self._weights = [self._weight(i) for i in range(len(self._epochs))]

    def _weight(self, at: int) -> float:
        epoch = self._epochs[at]
        weight = 1.0
        if any(write.flags & (LogFlag.FUA | LogFlag.METADATA) for write in epoch.pending):
            weight += 2
        before = self._epochs[at - 1].marks if at else 0
        behind = self._epochs[at + 1].marks if at + 1 < len(self._epochs) else epoch.marks
        return weight + 2 * (before != epoch.marks or behind != epoch.marks)

    def __iter__(self) -> Iterator[tuple[str, State]]:
        """Yield family and state; within a family epochs only grow."""
        families: list[
            tuple[str, Callable[[Epoch], int], Callable[[Epoch, random.Random], Iterator[State]]]
        ] = [
            ("boundary", self._count_boundary, self._boundary),
            ("prefix", self._count_prefix, self._prefix),
            ("subset", _count_subset, self._subset),
            ("torn", self._count_torn, self._torn),
            ("random", _count_random, self._random),
        ]
        counts = {name: [count(epoch) for epoch in self._epochs] for name, count, _ in families}
        shares = self._shares({name: sum(each) for name, each in counts.items()})
        self._left = -1 if self.max_states is None else self.max_states
        for name, _, make in families:
            short = sum(counts[name]) > shares[name]
            self.truncated |= short
            self.exhaustive &= not short or name in {"torn", "random"}
            for epoch, quota in zip(self._epochs, self._quotas(counts[name], shares[name]), strict=True):
                for state in self._chosen(name, make, epoch, quota):
                    self._note(state)
                    self._left -= self._left > 0
                    yield name, state
        for state in self._rest():
            yield "rest", state

    def _note(self, state: State) -> None:
        if not state.torn and len(self.timeline.epochs[state.epoch].pending) > EXHAUSTIVE:
            self._given.setdefault(state.epoch, set()).add(state.present)

    def _chosen(
        self,
        name: str,
        make: Callable[[Epoch, random.Random], Iterator[State]],
        epoch: Epoch,
        quota: int,
    ) -> list[State]:
        if not quota:
            return []
        rng = random.Random(f"{self.seed}:{name}:{epoch.index}")  # noqa: S311 - reproducible choice
        chosen = list(islice(make(epoch, rng), quota))
        if name == "prefix":
            chosen.sort(key=lambda state: state.present)
        return chosen

    def _shares(self, wanted: dict[str, int]) -> dict[str, int]:
        """Divide the budget among the families; what one does not use is divided among the others."""
        if self.max_states is None or sum(wanted.values()) <= self.max_states:
            return wanted
        shares = dict.fromkeys(wanted, 0)
        left = self.max_states
        while left > 0:
            hungry = [name for name in wanted if shares[name] < wanted[name]]
            whole = sum(_SHARES[name] for name in hungry)
            for name in hungry:
                more = max(1, int(self.max_states * _SHARES[name] / whole))
                more = min(more, wanted[name] - shares[name], left)
                shares[name] += more
                left -= more
        return shares

    def _quotas(self, counts: Sequence[int], share: int) -> list[int]:
        """Divide a share among the epochs: by weight, none more than it has."""
        if sum(counts) <= share:
            return list(counts)
        low, high = 0.0, float(max(counts))
        for _ in range(60):
            middle = (low + high) / 2
            used = sum(
                min(count, int(middle * weight)) for count, weight in zip(counts, self._weights, strict=True)
            )
            low, high = (middle, high) if used <= share else (low, middle)
        quotas = [min(count, int(low * weight)) for count, weight in zip(counts, self._weights, strict=True)]
        rng = random.Random(f"{self.seed}:quotas")  # noqa: S311 - reproducible choice
        open_ = [at for at, quota in enumerate(quotas) if quota < counts[at]]
        open_.sort(key=lambda at: rng.random() ** (1 / self._weights[at]), reverse=True)
        for at in open_[: share - sum(quotas)]:
            quotas[at] += 1
        return quotas

    def _full_is_next(self, epoch: Epoch) -> bool:
        """Whether all of an epoch's pending writes are the boundary of the next."""
        epochs = self.timeline.epochs
        return epoch.index + 1 < len(epochs) and epochs[epoch.index + 1].durable == epoch.pending

    def _count_boundary(self, epoch: Epoch) -> int:
        return 1 + bool(epoch.pending and not self._full_is_next(epoch))

    def _boundary(self, epoch: Epoch, _rng: random.Random) -> Iterator[State]:
        yield State(epoch.index, 0)
        if self._count_boundary(epoch) == 2:
            yield State(epoch.index, (1 << len(epoch.pending)) - 1)

    def _count_prefix(self, epoch: Epoch) -> int:
        return max(0, len(epoch.pending) - 1)

    def _prefix(self, epoch: Epoch, rng: random.Random) -> Iterator[State]:
        lengths = list(range(1, len(epoch.pending)))
        rng.shuffle(lengths)
        return (State(epoch.index, (1 << length) - 1) for length in lengths)

    def _subset(self, epoch: Epoch, rng: random.Random) -> Iterator[State]:
        n = len(epoch.pending)
        full = (1 << n) - 1
        singles = [i for i in range(n) if n <= _SINGLES or rng.random() < _SINGLES / n]
        first = [mask for i in singles for mask in (full ^ 1 << i, 1 << i)]
        rng.shuffle(first)
        more: list[int] = []
        if n <= EXHAUSTIVE:
            more = list(range(1, full))
            rng.shuffle(more)
        elif n <= _PAIRS:
            more = [full ^ 1 << i ^ 1 << j for i, j in combinations(range(n), 2)]
        for mask in dict.fromkeys([*first, *more]):
            if not _is_prefix(mask):
                yield State(epoch.index, mask)

    def _tears(self, epoch: Epoch) -> Iterator[tuple[int, int]]:
        """Yield number and units of the writes that can be torn, the telling ones first."""
        if not self.torn_size or self.timeline.level is Level.L0:
            return
        numbers = sorted(
            range(len(epoch.pending)),
            key=lambda i: not epoch.pending[i].flags & (LogFlag.FUA | LogFlag.METADATA),
        )
        for number in numbers:
            write = epoch.pending[number]
            if not write.tearable or any(
                piece.offset < end and begin < piece.offset + piece.length
                for piece in write.pieces
                for begin, end in self.atomic
            ):
                continue
            count = len(units(write, self.torn_size))
            if count > 1:
                yield number, count

    def _count_torn(self, epoch: Epoch) -> int:
        n = len(epoch.pending)
        return sum(
            len(_contexts(number, n)) * len(tears_of(number, count)) for number, count in self._tears(epoch)
        )

    def _torn(self, epoch: Epoch, _rng: random.Random) -> Iterator[State]:
        n = len(epoch.pending)
        for number, count in self._tears(epoch):
            for context in _contexts(number, n):
                for tear in tears_of(number, count):
                    yield State(epoch.index, context | 1 << number, (tear,))

    def _random(self, epoch: Epoch, rng: random.Random) -> Iterator[State]:
        n = len(epoch.pending)
        known = set(self._given.get(epoch.index, ()))
        for attempt in range(_count_random(epoch) * 2):
            density = (0.5, 0.9, 0.1)[attempt % 3]
            mask = sum(1 << i for i in range(n) if rng.random() < density)
            if mask not in known and mask not in (0, (1 << n) - 1):
                known.add(mask)
                yield State(epoch.index, mask)

    def _rest(self) -> Iterator[State]:
        """Yield every other subset of the larger epochs, the smallest first, as long as whole epochs fit."""
        larger = sorted(
            (e for e in self._epochs if len(e.pending) > EXHAUSTIVE), key=lambda e: len(e.pending)
        )
        for epoch in larger:
            n = len(epoch.pending)
            known = self._given.get(epoch.index, set())
            if self._left < 0 or n > _LARGEST or (1 << n) - len(known) > self._left:
                self.exhaustive = False
                self.truncated |= self._left >= 0
                break
            skip_full = self._full_is_next(epoch)
            for mask in range(1 << n):
                if mask not in known and not (skip_full and mask == (1 << n) - 1):
                    self._left -= 1
                    yield State(epoch.index, mask)


def _is_prefix(mask: int) -> bool:
    return not mask & mask + 1


def _count_subset(epoch: Epoch) -> int:
    n = len(epoch.pending)
    if n <= EXHAUSTIVE:
        return max(0, (1 << n) - n - 1)
    singles = 2 * min(n, _SINGLES) + _SINGLES * (n > _SINGLES)
    return singles + (n * (n - 1) // 2 if n <= _PAIRS else 0)


def _count_random(epoch: Epoch) -> int:
    return _RANDOM if len(epoch.pending) > EXHAUSTIVE else 0


def _contexts(number: int, n: int) -> list[int]:
    """Return what else is there around a torn write: all others, none, those before it."""
    others = ((1 << n) - 1) ^ 1 << number
    return list(dict.fromkeys([others, 0, (1 << number) - 1]))


def tears_of(number: int, count: int) -> list[Tear]:
    """Return in which ways a write of `count` units is torn: all of them up to four units, else the telling ones."""
    if count == 2:
        return [Tear(number, "f", 1), Tear(number, "l", 1)]
    if count <= 4:
        return [Tear(number, "x", mask) for mask in range(1, (1 << count) - 1)]
    half = count // 2
    return [
        Tear(number, "f", 1), Tear(number, "l", 1), Tear(number, "f", half), Tear(number, "l", half), Tear(number, "o", 0),
    ]  # fmt: skip


def states(
    timeline: Timeline, *, torn_size: int = 0, seed: int = 0, max_states: int | None = None, first: int = 0
) -> Iterator[State]:
    """Yield crash states, the telling families first.

    Args:
        timeline: The epochs.
        torn_size: Bytes of a sector that is written whole or not; 0 for no torn states.
        seed: Of the random choices.
        max_states: How many at most.
        first: Number of the first epoch.
    """
    return (state for _, state in Families(timeline, torn_size, seed, max_states, first))
