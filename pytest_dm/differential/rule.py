"""Rule: how lines of one target are drawn for a differential run, and what of them is compared.

`pytest_dm/differential/rules/NAME.py` (`_` for `-`) defines `RULE`, an instance of a subclass.
"""

from __future__ import annotations

from functools import cache
from importlib import import_module
from pkgutil import iter_modules
from typing import TYPE_CHECKING

from dmcore.errors import Unsupported
from dmcore.ref import Ref
from dmcore.registry import find
from dmcore.table import Table
from dmcore.target import Space
from pytest_dm.differential.setup import Disk

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from hypothesis.strategies import DrawFn, SearchStrategy

    from dmcore.model.stores import MemoryStore
    from dmcore.target import Features, Target
    from pytest_dm.differential.steps import Step

__all__ = ["Room", "Rule", "patches", "rule_for", "ruled"]


def patches(store: MemoryStore) -> tuple[tuple[int, bytes], ...]:
    """Return what a store holds besides zeros, as a disk's patches."""
    return tuple((first, bytes(store.read(first, count))) for first, count in store.data_extents())


class Room:
    """Where a line is drawn: its length, and the devices that it may stand on.

    Attributes:
        length: Sectors of the line.
        features: Of the kernel.
        disks: The disks of the setup so far, by name; `disk` and `data` add to them.
        below: Devices of the layers below that nothing stands on yet, with their sectors.
        tables: Tables that the line wants beside its own, by name; `device` adds to them.
        faces: Those of them that scripts read and write as well.
    """

    def __init__(
        self,
        draw: DrawFn,
        length: int,
        features: Features,
        disks: dict[str, Disk],
        below: dict[str, int] | None = None,
    ) -> None:
        self._draw = draw
        self.length = length
        self.features = features
        self.disks = disks
        self.below = {} if below is None else below
        self.tables: dict[str, Table] = {}
        self.faces: list[str] = []

    def disk(
        self, sectors: int, *, seed: int = 0, patches: Iterable[tuple[int, bytes]] = (), solid: bool = True
    ) -> Ref:
        """Add a disk of `sectors`, of zeros and never failing unless said otherwise: for metadata."""
        name = f"disk{len(self.disks)}"
        self.disks[name] = Disk(sectors, seed, tuple(patches), solid)
        return Ref(name)

    def device(self, target: Target, length: int, *, face: bool = False) -> Ref:
        """Add a device with a line of its own beside or below this one; `face`: scripts read and write it."""
        name = f"{target.kernel_type}{len(self.tables) + 1}"
        self.tables[name] = Table.of(target, length)
        if face:
            self.faces.append(name)
        return Ref(name)

    def data(self, sectors: int) -> Ref:
        """Return a device of at least `sectors` for data: a layer below that nothing stands on yet, or a filled disk."""
        for name, size in self.below.items():
            if size >= sectors:
                del self.below[name]
                return Ref(name)
        from hypothesis import strategies as st

        spare = self._draw(st.sampled_from([0, 0, 1, 8, 37]))
        return self.disk(sectors + spare, seed=200 + len(self.disks), solid=False)

    def space(self, devices: int = 2, spare: int = 64) -> Space:
        """Return what `Target.strategy` wants: layers below and fresh disks, each `spare` sectors larger than the line."""
        fit = {Ref(name): size for name, size in self.below.items() if size >= self.length}
        refs = dict(list(fit.items())[:devices])
        for ref in refs:
            del self.below[ref.name]
        while len(refs) < devices:
            refs[self.disk(self.length + spare, seed=200 + len(self.disks), solid=False)] = (
                self.length + spare
            )
        return Space(refs, self.length, self.features)


class Rule:
    """How to draw lines of a target and what to compare. The methods here do for one that keeps nothing on its disks.

    Attributes:
        kernel_name: The target's.
        lengths: Sectors that a line may have.
        fails: Disks may fail under it, but for solid ones, and what then happens is the same each time.
        settles: It works in the background: scripts wait for it after each step.
        follows: A thread brings its INFO text to where the model's is at once: scripts wait for that, too.
        layer: It may stand in a stack of other targets: above them, and below them.
        behind: A line of linear may stand before its own, so that it does not begin at sector 0; None: if it may be a layer.
        writes: Scripts write and zero on it, and discard as `discard_unit` says.
        suspends: Scripts suspend, resume and reload it.
        talks_suspended: It answers status and messages while it is suspended.
    """

    kernel_name: str = ""
    lengths: tuple[int, ...] = (1, 7, 24, 64, 96)
    fails: bool = True
    settles: bool = False
    follows: bool = False
    layer: bool = True
    behind: bool | None = None
    writes: bool = True
    suspends: bool = True
    talks_suspended: bool = True

    @property
    def kind(self) -> type[Target]:
        """The target's class."""
        found = find(self.kernel_name)
        assert found is not None, self.kernel_name
        return found

    def draw(self, draw: DrawFn, room: Room) -> Target:
        """Draw a line's target, and add the disks that it wants to the room."""
        return draw(self.kind.strategy(room.space()))

    def prelude(self, target: Target, length: int) -> Sequence[Step]:
        """Return steps on the topmost device without which a script would meet little: those that give it a content."""
        del target, length
        return ()

    def scenes(self, target: Target, length: int) -> Sequence[Sequence[Step]]:
        """Return steps that lead where drawn ones seldom come: most scripts begin with the prelude and one of them, or all.

        Sectors are the line's; a scene makes what it needs, since others may have been there before.
        """
        del target, length
        return ()

    def discard_unit(self, target: Target) -> int:
        """Return of how many sectors multiples are at which discards of scripts begin; 0: scripts do not discard on it."""
        del target
        return 1

    def messages(self, target: Target, length: int) -> SearchStrategy[str] | None:
        """Return a strategy for messages, wrong ones too; None for a target that takes none."""
        del target, length
        return None

    def reloads(self, target: Target, length: int) -> SearchStrategy[Target] | None:
        """Return a strategy for what a script may load in its place, refused values too; None: only the same again."""
        del target, length
        return None

    def mask(self, text: str) -> str:
        """Return the INFO text with what cannot be compared replaced by a word that says why."""
        return text

    def mask_table(self, text: str) -> str:
        """Return the TABLE text likewise."""
        return text

    def hidden(self, target: Target, disks: dict[str, Disk], status: str) -> Iterable[tuple[str, int, int]]:
        """Yield `(disk, first byte, bytes)` that cannot be compared on the disks; `status`: the last INFO text of the line."""
        del target, disks, status
        return ()

    def facts(self, target: Target, disks: dict[str, MemoryStore], length: int) -> object:
        """Return what the disks' bytes mean where they themselves cannot be compared: equal on both sides, printable."""
        del target, disks, length
        return None

    def settled(self, text: str) -> bool:
        """Whether an INFO text says that the work in the background is done."""
        del text
        return True


@cache
def ruled() -> tuple[str, ...]:
    """Return the kernel names of the targets that have a rule, sorted."""
    from pytest_dm.differential import rules  # noqa: PLC0415 - scanned when first asked

    names = (name for _, name, _ in iter_modules(rules.__path__) if not name.startswith("_"))
    return tuple(sorted(name.replace("_", "-") for name in names))


@cache
def rule_for(kernel_name: str) -> Rule:
    """Return the rule of a target.

    Raises:
        Unsupported: It has none.
    """
    if kernel_name not in ruled():
        raise Unsupported(
            f"a differential run of {kernel_name}",
            f"rules are there for {', '.join(ruled())}",
            f"write pytest_dm/differential/rules/{kernel_name.replace('-', '_')}.py",
        )
    module = import_module(f"pytest_dm.differential.rules.{kernel_name.replace('-', '_')}")
    rule: Rule = module.RULE
    rule.kernel_name = rule.kernel_name or kernel_name
    return rule
