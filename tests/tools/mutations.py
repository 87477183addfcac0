"""The list of mutations, and what is common to those who run it: see mutate.py."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
LIST = ROOT / "tests/tools/mutations.toml"
MODELS = Path("src/dmcore/model/targets")
MARK = "mutate: "
"""What the guest's lines begin with that are for the host."""


class Stale(ValueError):
    """An entry of the list does not fit the code any more, or means nothing."""


@dataclass(frozen=True, slots=True)
class Mutation:
    """A formula of a model, and what is put in its place.

    Attributes:
        target: Whose differential tests are to find it, by the kernel's name.
        breaks: What is wrong then; unique within the target.
        file: Name of the file in `MODELS`.
        old: Text that is once in the file.
        new: What stands there instead.
        reason: Why no differential test can find it; "" if one can.
    """

    target: str
    breaks: str
    file: str
    old: str
    new: str
    reason: str = ""

    @property
    def name(self) -> str:
        return f"{self.target}: {self.breaks}"

    def applied(self, text: str) -> str:
        """Return the file's text with the formula broken.

        Raises:
            Stale: The old text is not there, or more than once.
        """
        found = text.count(self.old)
        if found != 1:
            times = "is not there" if not found else f"is there {found} times"
            raise Stale(
                f"{LIST.name} is stale: {self.name}: the old text {times} in {MODELS / self.file}:\n{self.old}"
            )
        return text.replace(self.old, self.new)


def green(target: str) -> str:
    """Return the name of the run of a target's tests as they are."""
    return f"{target}: (unmutated)"


def mutations(*targets: str) -> list[Mutation]:
    """Return the list, or what of it is about some targets.

    Raises:
        Stale: An entry twice, a target without any, a new text that is the old one.
    """
    with LIST.open("rb") as file:
        every = [Mutation(**entry) for entry in tomllib.load(file)["mutation"]]
    names = [mutation.name for mutation in every]
    for mutation in every:
        if names.count(mutation.name) > 1:
            raise Stale(f"{LIST.name} has {mutation.name!r} twice")
        if mutation.old == mutation.new:
            raise Stale(f"{LIST.name}: {mutation.name}: the new text is the old one")
    there = {mutation.target for mutation in every}
    if missing := sorted(set(targets) - there):
        raise Stale(f"{LIST.name} has nothing about {', '.join(missing)}; it has {', '.join(sorted(there))}")
    return [mutation for mutation in every if not targets or mutation.target in targets]
