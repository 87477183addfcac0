"""Divergence: the first step at which kernel and model differ, told so that a person can repeat it."""

from __future__ import annotations

import errno
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dmcore.units import SECTOR

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from pytest_dm.differential.setup import Setup
    from pytest_dm.differential.steps import Step

__all__ = ["Divergence", "Outcome", "differing"]

_MOST_RANGES = 8


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of a step: `data` of a read, `text` of a message or status, or the errno of a failure.

    Attributes:
        data: Bytes that were read.
        text: A reply or status.
        errno: 0: it worked. -1: it was refused without one (a model refuses values before it knows an errno).
        why: More about a failure, not compared.
    """

    data: bytes | None = None
    text: str | None = None
    errno: int = 0
    why: str = ""

    def agrees(self, other: Outcome) -> bool:
        """Whether two outcomes are the same; a refusal without errno agrees with one with any."""
        if -1 in {self.errno, other.errno}:
            return bool(self.errno and other.errno)
        return (self.data, self.text, self.errno) == (other.data, other.text, other.errno)

    def __str__(self) -> str:
        if self.errno:
            number = self.errno
            said = (
                "refused" if number < 0 else f"{errno.errorcode.get(number, number)} ({os.strerror(number)})"
            )
            return f"{said}: {self.why}" if self.why else said
        if self.data is not None:
            return f"{len(self.data) // SECTOR} sectors of data"
        return "done" if self.text is None else repr(self.text) if "\n" not in self.text else f"\n{self.text}"


def differing(first: bytes, second: bytes, sector: int = 0) -> list[tuple[int, int]]:
    """Return `(sector, count)` of the runs of sectors in which two pieces of data differ; `sector` is the first one's."""
    runs: list[tuple[int, int]] = []
    if first == second:
        return runs
    for at in range(0, max(len(first), len(second)), SECTOR):
        if first[at : at + SECTOR] == second[at : at + SECTOR]:
            continue
        number = sector + at // SECTOR
        if runs and sum(runs[-1]) == number:
            runs[-1] = (runs[-1][0], runs[-1][1] + 1)
        else:
            runs.append((number, 1))
    return runs


def _ranges(runs: Sequence[tuple[int, int]]) -> str:
    shown = [f"{first}..{first + count - 1}" if count > 1 else str(first) for first, count in runs]
    more = f" and {len(shown) - _MOST_RANGES} more ranges" if len(shown) > _MOST_RANGES else ""
    return ", ".join(shown[:_MOST_RANGES]) + more


def _bytes(label: str, data: bytes, at: int) -> str:
    return f"  {label} {data[at : at + 16].hex(' ')}"


class Divergence(AssertionError):
    """Kernel and model differ.

    Attributes:
        setup: The stack and its disks.
        script: The steps up to the first that differs, which is the last; what did not fit the device is cut as it was done.
        number: Its number, from 1; 0: making the stack. One more than the script has: what was left at the end.
        what: What was compared: "data", "outcome", "status of NAME", "disk NAME" ...
        kernel: What came of it on the kernel.
        model: What came of it on the model.
        ranges: `(sector, count)` of the sectors that differ.
    """

    def __init__(
        self,
        setup: Setup,
        script: Iterable[Step],
        number: int,
        what: str,
        outcomes: tuple[Outcome, Outcome],
        *,
        first: int = 0,
    ) -> None:
        kernel, model = outcomes
        self.setup = setup
        self.script = tuple(script)
        self.number = number
        self.what = what
        self.kernel = kernel
        self.model = model
        self.ranges = tuple(differing(kernel.data or b"", model.data or b"", first))
        self._first = first
        super().__init__(self._text())

    def _text(self) -> str:
        steps = [f"{number:>4}. {step}" for number, step in enumerate(self.script, 1)]
        if 0 < self.number <= len(steps):
            steps[self.number - 1] = "->" + steps[self.number - 1][2:]
            where = f"step {self.number}"
        else:
            where = "the stack's making" if not self.number else "the end of the script"
        lines = [f"kernel and model differ at {where}: {self.what}"]
        if self.ranges:
            lines.append(f"sectors that differ: {_ranges(self.ranges)}")
        lines += [f"kernel: {self.kernel}", f"model:  {self.model}"]
        if self.ranges and self.kernel.data is not None and self.model.data is not None:
            lines += self._first_bytes(self.kernel.data, self.model.data)
        return "\n".join([*lines, "", "stack:", str(self.setup), "", "script:", *(steps or ["  (no step)"])])

    def _first_bytes(self, kernel: bytes, model: bytes) -> list[str]:
        start = (self.ranges[0][0] - self._first) * SECTOR
        pairs = zip(kernel[start:], model[start:], strict=False)
        at = start + next((index for index, (one, other) in enumerate(pairs) if one != other), 0)
        return [
            f"first difference at byte {self._first * SECTOR + at}:",
            _bytes("kernel", kernel, at),
            _bytes("model ", model, at),
        ]
