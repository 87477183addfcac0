"""Pair: runs a script on a kernel and on the models, step by step, and compares all that can be seen.

After each step data, errno and reply are compared; at the end (and at a `Status` step) table and status texts, and when the
stack is gone all bytes of the disks below it.
"""

from __future__ import annotations

import errno
import time
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, cast

from dmcore.errors import DmError, FormatError, SpecError, TableRejected
from dmcore.kernel.probe import require_table
from dmcore.params import masked
from dmcore.table import Table
from dmcore.targets import Error, Linear
from dmcore.units import SECTOR
from dmcore.volume import open_volume
from pytest_dm.differential import steps
from pytest_dm.differential.divergence import Divergence, Outcome
from pytest_dm.differential.profiles import make_settings
from pytest_dm.differential.rule import rule_for, ruled
from pytest_dm.differential.setup import Disk, Setup
from pytest_dm.differential.sides import KernelSide, Legs, ModelSide, Side

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable, Mapping

    from hypothesis import settings

    from dmcore.target import Features, Target
    from dmcore.volume import Volume
    from pytest_dm.differential.steps import Step
    from pytest_dm.runtime import Runtime

__all__ = ["SHRINK_SECONDS", "Pair", "Session", "Tally"]

SHRINK_SECONDS = 15.0
"""How long hypothesis may look for a smaller example after the first Divergence of a test."""


@dataclass(slots=True)
class Tally:
    """How much was compared, by what: "read", "write", "status", "messages", "errors" ..."""

    examples: int = 0
    compared: dict[str, int] = field(default_factory=dict[str, int])

    def add(self, what: str) -> None:
        """Count one comparison."""
        self.compared[what] = self.compared.get(what, 0) + 1

    def properties(self) -> list[tuple[str, int]]:
        """Return it as properties of a test's report."""
        counts = {"examples": self.examples, **self.compared} if self.examples else {}
        return [(f"dm_pair_{what}", count) for what, count in sorted(counts.items())]


def _outcome(do: Callable[[], object]) -> Outcome:
    """Do something and tell what came of it; a model's other exceptions are outcomes too, which no kernel has."""
    try:
        result = do()
    except OSError as error:
        return Outcome(errno=error.errno or errno.EIO, why=str(error))
    except (SpecError, FormatError) as error:
        return Outcome(errno=-1, why=f"{type(error).__name__}: {error}")
    if isinstance(result, bytes):
        return Outcome(data=result)
    return Outcome(text=result) if isinstance(result, str) else Outcome()


class Session:
    """A stack on both sides, from its making to its end.

    Attributes:
        setup: What it was made of.
        script: The steps that were done, as they were done.
        refused: Kernel and model both refused the stack: steps do nothing.
    """

    def __init__(self, pair: Pair, setup: Setup) -> None:
        self._pair = pair
        self.setup = setup
        self.script: list[Step] = []
        self.refused = False
        self._suspended: set[str] = set()
        self._no_discards = False
        self._failing: dict[str, set[int]] = {name: set() for name in setup.disks}
        self._rules = {
            name: [
                rule_for(line.target.kernel_type)
                for line in table.lines
                if line.target.kernel_type in ruled()
            ]
            for name, table in setup.stack.tables.items()
        }
        self._settles = any(rule.settles for found in self._rules.values() for rule in found)
        self._build()

    # -- making and ending ---------------------------------------------------------------------------------------------

    def _build(self) -> None:
        pair, setup = self._pair, self.setup
        for table in setup.stack.tables.values():
            require_table(pair.runtime.control, table)
        sizes = {name: disk.sectors for name, disk in setup.disks.items()}
        legs = dict(zip(sizes, pair.legs.take(list(sizes.values())), strict=True))
        content = {name: disk.content() for name, disk in setup.disks.items()}
        for name, leg in legs.items():
            leg.fill(content[name])
        words = {name: leg.word for name, leg in legs.items()}
        self._kernel = KernelSide(pair.runtime, legs, sizes, words)
        try:
            refusal = self._build_kernel()
            built = _outcome(lambda: self._build_model(content, words))
            if not refusal.agrees(built):
                self._diverged(0, "whether the tables are accepted", (refusal, built))
            self.refused = bool(refusal.errno)
            if not self.refused:
                self._sides: tuple[Side, Side] = (self._kernel, self._model)
                self._compare_shapes()
                if self._settles:
                    self._both_settle()
            else:
                self._kernel.close()
        except BaseException:
            self.abandon()
            raise

    def _build_kernel(self) -> Outcome:
        stack = self.setup.stack
        for name in stack.order():
            try:
                self._kernel.add(name, stack.tables[name])
            except TableRejected as error:
                said = "; ".join(error.kernel_log)
                return Outcome(errno=error.errno or errno.EINVAL, why=f"{name}: {said}")
        return Outcome()

    def _build_model(self, content: dict[str, bytearray], words: dict[str, str]) -> None:
        for number, name in enumerate(self.setup.stack.order()):
            words.setdefault(name, f"0:{number}")
        features = self._pair.features(self.setup.stack.tables.values())
        self._no_discards = "error.discard" not in features
        self._model = ModelSide(
            self.setup.stack,
            content,
            words,
            features,
            opener=self._pair.opener,
            granularity=self._kernel.granularity,
        )

    def abandon(self) -> None:
        """Remove both stacks without comparing anything."""
        for name in (
            self.setup.stack.order()
        ):  # what is suspended would hold back what the layers above write at their end
            if name in self._suspended:
                with suppress(OSError, DmError):
                    self._kernel.resume(name)
        self._suspended.clear()
        for side in (self._kernel, getattr(self, "_model", None)):
            if side is not None:
                with suppress(OSError, DmError, ExceptionGroup):
                    side.close()

    def _diverged(
        self, number: int, what: str, outcomes: tuple[Outcome, Outcome], first: int = 0
    ) -> NoReturn:
        raise Divergence(self.setup, self.script, number, what, outcomes, first=first)

    def _both(self, do: Callable[[Side], object]) -> tuple[Outcome, Outcome]:
        kernel, model = self._sides
        return _outcome(lambda: do(kernel)), _outcome(lambda: do(model))

    def _compare_shapes(self) -> None:
        for name in self.setup.stack.tables:
            kernel, model = self._both(lambda side, on=name: _shape(*side.shape(on)))  # type: ignore[misc]
            if not kernel.agrees(model):
                self._diverged(len(self.script), f"size of {name or 'the device'}", (kernel, model))

    def finish(self) -> None:
        """Resume what is suspended, compare what is left of it all, and remove both stacks.

        Raises:
            Divergence: Something differs.
        """
        if self.refused:
            self._pair.tally.add("errors")
            return
        try:
            for name in self.setup.stack.order():
                if name in self._suspended:
                    self.do(steps.Resume(on=name))
            self._both_settle()
            self._compare_texts(len(self.script) + 1)
            kernel, model = self._both(lambda side: side.close())
            if not kernel.agrees(model):
                self._diverged(len(self.script) + 1, "removal", (kernel, model))
        except BaseException:
            self.abandon()
            raise
        self._compare_disks()

    def _both_settle(self) -> None:
        for side in self._sides:
            side.settle()

    def _compare_disks(self) -> None:
        hidden = self._hidden()
        for name in self.setup.disks:
            found: list[bytes] = []
            for side in self._sides:
                data = bytearray(side.content(name))
                for first, count in hidden.get(name, ()):
                    data[first : first + count] = bytes(count)
                found.append(bytes(data))
            kernel, model = found
            if kernel != model:
                outcomes = (Outcome(data=kernel), Outcome(data=model))
                self._diverged(len(self.script) + 1, f"bytes of disk {name}", outcomes)
            self._pair.tally.add("disks")

    def _hidden(self) -> dict[str, list[tuple[int, int]]]:
        found: dict[str, list[tuple[int, int]]] = {}
        for table in self.setup.stack.tables.values():
            for line in table.lines:
                if line.target.kernel_type in ruled():
                    rule = rule_for(line.target.kernel_type)
                    for name, first, count in rule.hidden(line.target, dict(self.setup.disks)):
                        found.setdefault(name, []).append((first, count))
        return found

    def _compare_texts(self, number: int) -> None:
        for name in self.setup.stack.tables:
            said = name or "the device"
            tables = self._both(lambda side, on=name: _masked(side.table_text(on), "mask_table"))  # type: ignore[misc]
            if not tables[0].agrees(tables[1]):
                self._diverged(number, f"table of {said}", tables)
            statuses = self._both(lambda side, on=name: _masked(side.status_text(on), "mask"))  # type: ignore[misc]
            if not statuses[0].agrees(statuses[1]):
                self._diverged(number, f"status of {said}", statuses)
        self._pair.tally.add("status")

    # -- steps ---------------------------------------------------------------------------------------------------------

    def do(self, step: Step) -> None:
        """Do one step on both sides.

        Raises:
            Divergence: What came of it differs; both stacks are gone then.
        """
        if self.refused or self._held(step):
            return
        try:
            done = self._fitted(step)
            self.script.append(done)
            self._do(done)
            if self._settles and not self._suspended:
                self._both_settle()
        except BaseException:
            self.abandon()
            raise

    def _name(self, on: str) -> str:
        return on if on in self.setup.stack.tables else self.setup.stack.top

    def _held(self, step: Step) -> bool:
        """Whether a step is left out: the kernel might hold it back for ever, because a device is suspended.

        Or it cannot be had there: kernels without "error.discard" have no disk of which a part fails and which discards.
        """
        if isinstance(step, steps.Discard) and self._no_discards and any(self._failing.values()):
            return True
        if not self._suspended:
            return isinstance(step, steps.Resume)
        if isinstance(step, steps.Resume):
            return self._name(step.on) not in self._suspended
        if isinstance(step, steps.Message):
            return self._suspended != {self._name(step.on)}
        return True

    def _fitted(self, step: Step) -> Step:
        """Return a request as it fits the device."""
        on = getattr(step, "on", None)
        if on is not None and on != self._name(on):
            step = replace(cast("Any", step), on=self._name(on))
        if isinstance(step, (steps.Read, steps.Write, steps.Discard, steps.ZeroOut)):
            size, block = self._kernel.shape(step.on)
            unit = block // SECTOR
            sector = step.sector % size // unit * unit
            count = min(max(step.count // unit * unit, unit), size - sector)
            return replace(step, sector=sector, count=count)
        return step

    def _do(self, step: Step) -> None:
        match step:
            case steps.Status():
                self._compare_texts(len(self.script))
            case steps.Settle():
                self._both_settle()
            case steps.Fail() | steps.Heal():
                self._fail(step)
            case _:
                self._request(step)

    def _fail(self, step: steps.Fail | steps.Heal) -> None:
        disk = self.setup.disks.get(step.disk)
        if disk is None:
            return
        if isinstance(step, steps.Heal):
            self._failing[step.disk] = set()
        else:
            self._failing[step.disk] |= set(range(step.start, min(step.start + step.length, disk.sectors)))
        for side in self._sides:
            side.fail(step.disk, self._failing[step.disk])

    def _request(self, step: Any) -> None:
        kernel, model = self._both(lambda side: self._perform(side, step))
        kind = type(step).__name__.lower()
        number = len(self.script)
        if not kernel.agrees(model):
            what = "what comes of it" if kernel.data is None or model.data is None else "data"
            self._diverged(number, what, (kernel, model), getattr(step, "sector", 0))
        self._pair.tally.add("errors" if kernel.errno else kind)
        if not kernel.errno:
            if isinstance(step, steps.Suspend):
                self._suspended.add(step.on)
            elif isinstance(step, steps.Resume):
                self._suspended.discard(step.on)
        if isinstance(step, steps.Reload):
            self._compare_shapes()

    def _perform(self, side: Side, step: Any) -> object:
        on: str = step.on
        at = (on, getattr(step, "sector", 0), getattr(step, "count", 0))
        does: dict[type[object], Callable[[], object]] = {
            steps.Read: lambda: side.read(*at),
            steps.Write: lambda: side.write(on, step.sector, steps.pattern(step.seed, *at[1:]), fua=step.fua),
            steps.Flush: lambda: side.flush(on),
            steps.Discard: lambda: side.discard(*at),
            steps.ZeroOut: lambda: side.zero(*at),
            steps.Message: lambda: side.message(on, step.text, step.sector),
            steps.Suspend: lambda: side.suspend(on, noflush=step.noflush),
            steps.Resume: lambda: side.resume(on),
            steps.Reload: lambda: side.reload(on, self._table(step)),
        }
        return does[type(step)]()

    def _table(self, step: steps.Reload) -> Table:
        return Table.parse(step.table) if step.table else self.setup.stack.tables[step.on]


def _shape(sectors: int, block_size: int) -> str:
    return f"{sectors} sectors, blocks of {block_size} bytes"


def _masked(text: str, how: str) -> str:
    lines: list[str] = []
    for line in text.splitlines():
        start, length, kind, *rest = line.split(maxsplit=3)
        params = masked(kind, rest[0]) if rest else ""
        if kind in ruled():
            params = getattr(rule_for(kind), how)(params)
        lines.append(f"{start} {length} {kind} {params}".rstrip())
    return "\n".join(lines)


class Pair:
    """The same stack on the kernel and on the models. Made by the fixture `dm_pair`; works inside `@given`.

    Attributes:
        runtime: The kernel.
        examples: How many examples `settings` asks for.
        tally: How much was compared so far.
        opener: Opens the stack of models; a test of the framework puts a wrong one there.
    """

    def __init__(self, runtime: Runtime, *, examples: int = 20, root: Path | None = None) -> None:
        self.runtime = runtime
        self.examples = examples
        self._root = root or Path.cwd()
        self._failed: dict[str, float] = {}
        self.legs = Legs(runtime)
        self.tally = Tally()
        self.opener: Callable[..., Volume] = open_volume

    def settings(self, share: float = 1.0) -> settings:
        """Return hypothesis' settings for the session's profile.

        Args:
            share: Of its examples, for properties that are dearer than others.
        """
        return make_settings(max(1, round(self.examples * share)), self._root)

    def features(self, tables: Iterable[Table]) -> Features:
        """Return the features that the kernel has of the targets in `tables`."""
        kinds: set[type[Target]] = {type(line.target) for table in tables for line in table.lines}
        return self.runtime.features(Linear, Error, *kinds)

    @contextmanager
    def session(self, setup: Setup) -> Generator[Session]:
        """Make the stack on both sides, to do steps one by one; at the end of the block all is compared and removed.

        Raises:
            Divergence: Kernel and model differ.
            Unsupported: The kernel lacks a target.
        """
        session = Session(self, setup)
        try:
            yield session
        except BaseException:
            session.abandon()
            raise
        session.finish()
        self.tally.examples += 1

    def run(
        self,
        stack: Setup | str,
        script: Iterable[Step] = (),
        *,
        disks: Mapping[str, Disk | int] | None = None,
    ) -> None:
        """Run a script on both sides.

        Args:
            stack: A setup, or a stack's text for which `disks` are given.
            script: The steps.
            disks: What the text names; a number is the sectors of a disk filled with a pattern.

        Raises:
            Divergence: Kernel and model differ; it names the first step that does.
            Unsupported: The kernel lacks a target.
        """
        setup = Setup.of(stack, disks or {}) if isinstance(stack, str) else stack
        steps_of = tuple(script)
        example = f"{setup}\n{steps_of}"
        if self._shrunk_long_enough(example):
            return
        try:
            with self.session(setup) as session:
                for step in steps_of:
                    session.do(step)
        except Divergence:
            self._failed.setdefault(example, time.monotonic())
            raise

    def _shrunk_long_enough(self, example: str) -> bool:
        """Whether an example need not be tried, because hypothesis has been shrinking another for `SHRINK_SECONDS`.

        A guest is lost when a test takes too long, and the Divergence with it.
        """
        begun = next(iter(self._failed.values()), None)
        return begun is not None and example not in self._failed and time.monotonic() - begun > SHRINK_SECONDS

    def describe(self) -> str:
        """Return what it is, for a failure report."""
        return self.legs.describe()

    def close(self) -> None:
        """Remove the disks below."""
        self.legs.close()
