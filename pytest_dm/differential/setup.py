"""Setup: a stack, and what is on the disks below it when a script begins."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from dmcore.errors import SpecError
from dmcore.stack import Stack
from dmcore.units import SECTOR
from pytest_dm.differential.steps import pattern

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["Disk", "Setup"]


@lru_cache(maxsize=16)
def _filled(seed: int, sectors: int) -> bytes:
    return pattern(seed, 0, sectors)


@dataclass(frozen=True, slots=True)
class Disk:
    """A disk below a stack, and its first content.

    Attributes:
        sectors: Its size.
        seed: Of the `pattern` that it holds; 0 for zeros.
        patches: `(first sector, bytes)` laid over that: metadata which a target wants to find.
        solid: Drawn scripts do not let it fail.
    """

    sectors: int
    seed: int = 0
    patches: tuple[tuple[int, bytes], ...] = field(default=(), repr=False)
    solid: bool = False

    def _repr_pretty_(self, printer: Any, cycle: object) -> None:
        """Show it to hypothesis without the patches, as `repr` does."""
        del cycle
        printer.text(repr(self))

    def content(self) -> bytearray:
        """Return all its bytes."""
        data = bytearray(_filled(self.seed, self.sectors))
        for sector, patch in self.patches:
            end = sector * SECTOR + len(patch)
            if end > len(data):
                raise SpecError("patches", sector, f"ends past the disk's {self.sectors} sectors")
            data[sector * SECTOR : end] = patch
        return data


@dataclass(frozen=True, slots=True)
class Setup:
    """What a script runs on.

    Attributes:
        stack: The tables; what they name and the stack does not hold must be among `disks`.
        disks: By the names that the tables use.
        faces: The devices that drawn scripts read and write; () for the topmost alone.
    """

    stack: Stack
    disks: Mapping[str, Disk]
    faces: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for ref in self.stack.outside():
            if ref.name not in self.disks:
                raise SpecError(
                    "disks", ref.name, "the stack names this device, but it is no disk of the setup"
                )

    @classmethod
    def of(cls, text: str, disks: Mapping[str, Disk | int]) -> Setup:
        """Return the setup for a stack's text, and disks by name: a number is the sectors of one filled with a pattern."""
        made = {
            name: Disk(disk, seed=200 + number) if isinstance(disk, int) else disk
            for number, (name, disk) in enumerate(disks.items())
        }
        return cls(Stack.parse(text), made)

    @property
    def asked(self) -> tuple[str, ...]:
        """Names of the devices that drawn scripts read and write, the topmost included."""
        return self.faces or (self.stack.top,)

    def __str__(self) -> str:
        disks = [
            f"{name}: {disk.sectors} sectors, seed {disk.seed}{', prepared' if disk.patches else ''}"
            for name, disk in self.disks.items()
        ]
        return "\n".join([*disks, str(self.stack)])
