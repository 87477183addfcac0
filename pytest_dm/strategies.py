"""Hypothesis strategies: targets, tables, stacks with the disks below them, and scripts of requests.

Imported by those who use it; hypothesis comes in when a strategy is made.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dmcore.errors import SpecError
from dmcore.model.registry import modelled
from dmcore.registry import find
from dmcore.registry import targets as all_targets
from dmcore.stack import Stack
from dmcore.table import Line, Table
from dmcore.target import NO_FEATURES, Space
from pytest_dm.differential import steps
from pytest_dm.differential.rule import Room, rule_for, ruled
from pytest_dm.differential.setup import Disk, Setup

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from hypothesis.strategies import DrawFn, SearchStrategy

    from dmcore.ref import Ref
    from dmcore.target import Features, Target
    from pytest_dm.differential.steps import Step

__all__ = ["MAX_LAYERS", "layers", "scripts", "setups", "stacks", "tables", "targets"]

MAX_LAYERS = 4
"""Most layers of a stack that `stacks` draws."""


def targets(
    refs: Mapping[Ref, int],
    length: int,
    kinds: Sequence[str] | None = None,
    *,
    features: Features = NO_FEATURES,
) -> SearchStrategy[Target]:
    """Draw any valid target.

    Args:
        refs: Devices that it may name, with their sectors.
        length: Sectors of its line.
        kinds: Kernel names to choose from; None for all that there are.
        features: What the kernel offers; nothing that needs more is drawn.

    Raises:
        SpecError: No such target.
    """
    from hypothesis import strategies as st

    found = [find(name) for name in kinds] if kinds is not None else list(all_targets().values())
    space = Space(refs, length, features)
    for name, kind in zip(kinds or (), found, strict=False):
        if kind is None:
            raise SpecError("kinds", name, "no such target")
    return st.one_of([kind.strategy(space) for kind in found if kind is not None])


def tables(
    refs: Mapping[Ref, int],
    kinds: Sequence[str] | None = None,
    *,
    lengths: Sequence[int] = (1, 8, 64, 1000),
    most_lines: int = 3,
    features: Features = NO_FEATURES,
) -> SearchStrategy[Table]:
    """Draw tables of one line or more; a target that must be alone is. Arguments are those of `targets`.

    `lengths` are the sectors a line may have; where the drawn target refuses all of them, nothing is drawn.
    """
    from hypothesis import assume
    from hypothesis import strategies as st

    @st.composite
    def drawn(draw: DrawFn) -> Table:
        lines: list[Line] = []
        for _ in range(draw(st.integers(1, most_lines))):
            start, length = lines[-1].end if lines else 0, draw(st.sampled_from(sorted(lengths)))
            try:
                target = draw(targets(refs, length, kinds, features=features))
                lines.append(Line(start, length, target))
            except SpecError:
                assume(condition=False)
        assume(len(lines) == 1 or not any(line.target.singleton for line in lines))
        return Table(lines)

    return drawn()


def layers() -> tuple[str, ...]:
    """Return the kernel names of the targets that may be layers of a stack: modelled, with a rule that lets them."""
    return tuple(name for name in modelled() if name in ruled() and rule_for(name).layer)


def setups(kind: str, *, features: Features = NO_FEATURES) -> SearchStrategy[Setup]:
    """Draw one modelled target alone, sometimes with a line of zero or linear beside it, and the disks that it wants."""
    from hypothesis import strategies as st

    @st.composite
    def drawn(draw: DrawFn) -> Setup:
        disks: dict[str, Disk] = {}
        rule = rule_for(kind)
        length = draw(st.sampled_from(rule.lengths))
        room = Room(draw, length, features, disks)
        line = Line(0, length, rule.draw(draw, room))
        return Setup(Stack({"top": Table([line])}), disks)

    return drawn()


def stacks(
    kinds: Sequence[str] | None = None, *, most: int = MAX_LAYERS, features: Features = NO_FEATURES
) -> SearchStrategy[Setup]:
    """Draw a stack of modelled targets, two layers to `most`, each on the one below, and the disks under it.

    Args:
        kinds: Kernel names to choose from; None for all of `layers()`.
        most: Most layers, at least 2.
        features: What the kernel offers.
    """
    from hypothesis import strategies as st

    chosen = layers() if kinds is None else tuple(kinds)

    @st.composite
    def drawn(draw: DrawFn) -> Setup:
        disks: dict[str, Disk] = {}
        made: dict[str, Table] = {}
        below: dict[str, int] = {}
        names = draw(st.lists(st.sampled_from(chosen), min_size=2, max_size=most))
        size = 0
        for number, name in enumerate(names):
            rule = rule_for(name)
            fit = [length for length in rule.lengths if length <= size] or list(rule.lengths)
            length = max(rule.lengths) if number == 0 else draw(st.sampled_from(fit))
            room = Room(draw, length, features, disks, below)
            label = f"layer{number + 1}"
            made[label] = Table([Line(0, length, rule.draw(draw, room))])
            below.clear()
            below[label] = size = length
        return Setup(Stack(made), disks)

    return drawn()


def scripts(
    setup: Setup, *, most: int = 12, faults: bool | None = None, extra: SearchStrategy[Step] | None = None
) -> SearchStrategy[list[Step]]:
    """Draw a script for a stack: requests, messages of its targets, suspends, reloads, failing disks.

    Args:
        setup: The stack.
        most: Most steps.
        faults: Let disks fail; None: where all targets of the stack allow it (`Rule.fails`).
        extra: Further steps.
    """
    from hypothesis import strategies as st

    choices = list(_requests(setup))
    rules = [rule_for(line.target.kernel_type) for table in setup.stack.tables.values() for line in table.lines
             if line.target.kernel_type in ruled()]  # fmt: skip
    if all(rule.suspends for rule in rules):
        top = st.just(setup.stack.top)
        choices += [
            st.builds(steps.Suspend, st.booleans(), top),
            st.builds(steps.Resume, top),
            st.builds(steps.Reload, st.just(""), top),
        ]
    if setup.disks and (all(rule.fails for rule in rules) if faults is None else faults):
        choices += [_faults(setup)]
    choices += [found for found in [_messages(setup), extra] if found is not None]
    choices.append(st.just(steps.Status()))
    return st.lists(st.one_of(choices), min_size=1, max_size=most)


def _requests(setup: Setup) -> list[SearchStrategy[Step]]:
    from hypothesis import strategies as st

    length = setup.stack.tables[setup.stack.top].length
    sector = st.integers(0, length - 1)
    count = st.integers(1, min(length, 256))
    write = st.builds(steps.Write, sector, count, st.integers(0, 50), st.sampled_from([False, False, True]))
    read = st.builds(steps.Read, sector, count)
    return [
        read,
        st.builds(steps.Read, st.just(0), st.just(min(length, 2048))),
        write,
        write,
        st.builds(steps.Flush),
        st.builds(steps.Discard, sector, count),
        st.builds(steps.ZeroOut, sector, count),
    ]


def _faults(setup: Setup) -> SearchStrategy[Step]:
    from hypothesis import strategies as st

    def failing(name: str) -> SearchStrategy[Step]:
        size = setup.disks[name].sectors
        return st.builds(steps.Fail, st.just(name), st.integers(0, size - 1), st.integers(1, size))

    disk = st.sampled_from(sorted(setup.disks))
    return disk.flatmap(failing) | st.builds(steps.Heal, disk)


def _messages(setup: Setup) -> SearchStrategy[Step] | None:
    from hypothesis import strategies as st

    found: list[SearchStrategy[Step]] = []
    for name, table in setup.stack.tables.items():
        for line in table.lines:
            if line.target.kernel_type not in ruled():
                continue
            texts = rule_for(line.target.kernel_type).messages(line.target, line.length)
            if texts is not None:
                found.append(st.builds(steps.Message, texts, st.just(line.start), st.just(name)))
    return st.one_of(found) if found else None
