"""Hypothesis strategies: targets, tables, stacks with the disks below them, and scripts of requests.

Imported by those who use it; hypothesis comes in when a strategy is made.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import chain
from math import lcm
from typing import TYPE_CHECKING

from dmcore.errors import SpecError
from dmcore.model.registry import modelled
from dmcore.registry import find
from dmcore.registry import targets as all_targets
from dmcore.stack import Stack
from dmcore.table import Line, Table
from dmcore.target import NO_FEATURES, Space
from dmcore.targets import Linear
from pytest_dm.differential import steps
from pytest_dm.differential.rule import Room, rule_for, ruled
from pytest_dm.differential.setup import Disk, Setup

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from hypothesis.strategies import DrawFn, SearchStrategy

    from dmcore.ref import Ref
    from dmcore.target import Features, Target
    from pytest_dm.differential.rule import Rule
    from pytest_dm.differential.steps import Step

__all__ = [
    "MAX_LAYERS",
    "discard_unit",
    "failures",
    "layers",
    "messages",
    "reloads",
    "requests",
    "rules_of",
    "scripts",
    "setups",
    "stacks",
    "tables",
    "targets",
]

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
    """Draw one modelled target alone, sometimes behind a line of linear, and the disks that it wants."""
    from hypothesis import strategies as st

    @st.composite
    def drawn(draw: DrawFn) -> Setup:
        disks: dict[str, Disk] = {}
        rule = rule_for(kind)
        length = draw(st.sampled_from(rule.lengths))
        room = Room(draw, length, features, disks)
        behind = rule.layer if rule.behind is None else rule.behind
        before = draw(st.sampled_from([0, 0, 0, 8])) if behind else 0
        lines = [Line(0, before, Linear(dev=room.disk(before, seed=70)))] if before else []
        lines.append(Line(before, length, rule.draw(draw, room)))
        faces = (*room.faces, "top") if room.faces else ()
        return _used({**room.tables, "top": Table(lines)}, disks, faces)

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
            assert not room.tables, f"{name} wants devices of its own: no layer"
            below.clear()
            below[label] = size = length
        return _used(made, disks)

    return drawn()


def _used(tables: Mapping[str, Table], disks: Mapping[str, Disk], faces: tuple[str, ...] = ()) -> Setup:
    """Return a setup of what the topmost table and the faces stand on, and serve; the rest was drawn for nothing."""
    whole = Stack(tables)
    wanted = {name for face in (*faces, whole.top) for name in whole.needed(face)}
    stack = Stack({name: table for name, table in tables.items() if name in wanted})
    named = {ref.name for ref in stack.outside()}
    return Setup(stack, {name: disk for name, disk in disks.items() if name in named}, faces)


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

    rules = rules_of(setup)
    choices = [request for face in setup.asked for request in requests(setup, face)]
    said = messages(setup)
    paused: list[SearchStrategy[list[Step]]] = []
    if all(rule.suspends for rule in rules):
        choices.append(reloads(setup))
        paused.append(_pause(setup, said))
    failing = failures(setup) if faults or (faults is None and all(rule.fails for rule in rules)) else None
    choices += [found for found in [failing, said, extra] if found is not None]
    choices.append(st.just(steps.Status()))
    single = st.one_of(choices).map(_alone)
    parts = st.lists(st.one_of([*[single] * 7, *paused]), min_size=1, max_size=most)
    return st.builds(_joined, st.sampled_from(_beginnings(setup)), parts)


def _alone(step: Step) -> list[Step]:
    return [step]


def _joined(first: list[Step], parts: list[list[Step]]) -> list[Step]:
    return [*first, *chain.from_iterable(parts)]


def _pause(setup: Setup, said: SearchStrategy[Step] | None) -> SearchStrategy[list[Step]]:
    """Draw a suspend and a resume of the topmost device, with messages in between: all else would wait for the resume."""
    from hypothesis import strategies as st

    top = setup.stack.top
    nothing: list[Step] = []
    between = st.just(nothing) if said is None else st.lists(said, max_size=2)

    def paused(noflush: bool, found: list[Step]) -> list[Step]:  # noqa: FBT001 - drawn
        return [steps.Suspend(noflush, top), *found, steps.Resume(top)]

    return st.builds(paused, st.booleans(), between)


def rules_of(setup: Setup) -> list[Rule]:
    """Return the rule of every target of a stack that has one."""
    targets = [line.target for table in setup.stack.tables.values() for line in table.lines]
    return [rule_for(target.kernel_type) for target in targets if target.kernel_type in ruled()]


def discard_unit(setup: Setup) -> int:
    """Return of how many sectors multiples are at which discards on a stack may begin; 0: nowhere."""
    units = [
        rule_for(line.target.kernel_type).discard_unit(line.target)
        for table in setup.stack.tables.values()
        for line in table.lines
        if line.target.kernel_type in ruled()
    ]
    return lcm(*units)


def _beginnings(setup: Setup) -> list[list[Step]]:
    """Return how a script may begin: with what the topmost target's last line has of prelude and scenes, or with nothing."""
    line = setup.stack.tables[setup.stack.top].lines[-1]
    kind = line.target.kernel_type
    if kind not in ruled():
        return [[]]
    rule = rule_for(kind)
    before = [_behind(line.start, step) for step in rule.prelude(line.target, line.length)]
    drawn = rule.scenes(line.target, line.length)
    scenes = [[*before, *(_behind(line.start, step) for step in scene)] for scene in drawn]
    every = [*before, *(_behind(line.start, step) for scene in drawn for step in scene)]
    return [before, every, every, *scenes, [], []] if before else [every, every, *scenes, []]


def _behind(start: int, step: Step) -> Step:
    """Return a step on the topmost device whose sector is one of a line that begins at `start`."""
    if not start or isinstance(step, (steps.Flush, steps.Reload, steps.Resume, steps.Suspend)):
        return step
    if isinstance(step, (steps.Fail, steps.Heal, steps.Settle, steps.Status)) or step.on:
        return step
    return replace(step, sector=start + step.sector)


def requests(setup: Setup, face: str, kind: type[object] = object) -> list[SearchStrategy[Step]]:
    """Return strategies for requests to a device of a stack, of one kind of step or all that its targets take."""
    from hypothesis import strategies as st

    rules = rules_of(setup)
    length = setup.stack.tables[face].length
    on = st.just(face)
    sector = st.integers(0, length - 1)
    count = st.integers(1, min(length, 256))
    durable = st.sampled_from([False, False, True])
    write = st.builds(steps.Write, sector, count, st.integers(0, 50), durable, on)
    found: list[tuple[type[object], SearchStrategy[Step]]] = [
        (steps.Read, st.builds(steps.Read, sector, count, on)),
        (steps.Read, st.builds(steps.Read, st.just(0), st.just(min(length, 2048)), on)),
        (steps.Flush, st.builds(steps.Flush, on)),
    ]
    if all(rule.writes for rule in rules):
        zero = st.builds(steps.ZeroOut, sector, count, on)
        found += [(steps.Write, write), (steps.Write, write), (steps.ZeroOut, zero)]
        if unit := discard_unit(setup):
            at = st.integers(0, (length - 1) // unit).map(unit.__mul__)
            found.append((steps.Discard, st.builds(steps.Discard, at, count, on)))
    return [strategy for of, strategy in found if issubclass(of, kind)]


def reloads(setup: Setup) -> SearchStrategy[Step]:
    """Draw reloads of a stack's topmost device: the same table, or one that its target's rule knows."""
    from hypothesis import strategies as st

    top = setup.stack.top
    texts: SearchStrategy[str] = st.just("")
    lines = setup.stack.tables[top].lines
    kind, length = lines[0].target.kernel_type, lines[0].length
    if len(lines) == 1 and kind in ruled():
        others = rule_for(kind).reloads(lines[0].target, length)
        if others is not None:
            texts |= others.map(lambda target: str(Table.of(target, length)))
    return st.builds(steps.Reload, texts, st.just(top))


def failures(setup: Setup) -> SearchStrategy[Step] | None:
    """Draw disks of a stack that fail, and heal; None if all of them are solid."""
    from hypothesis import strategies as st

    def failing(name: str) -> SearchStrategy[Step]:
        size = setup.disks[name].sectors
        return st.builds(steps.Fail, st.just(name), st.integers(0, size - 1), st.integers(1, size))

    names = sorted(name for name, disk in setup.disks.items() if not disk.solid)
    disk = st.sampled_from(names)
    return disk.flatmap(failing) | st.builds(steps.Heal, disk) if names else None


def messages(setup: Setup) -> SearchStrategy[Step] | None:
    """Draw messages to the targets of a stack; None if none takes any."""
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
