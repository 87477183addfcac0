"""Session: a stack on a kernel and on the models, from its making to its end, compared step by step.

After each step data, errno and reply are compared; at the end (and at a `Status` step) table and status texts and what is
read, and when the stack is gone all bytes of the disks below it.
"""

from __future__ import annotations

import errno
import json
import time
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, NoReturn, cast

from dmcore.errors import DmError, FormatError, SpecError, TableRejected
from dmcore.kernel.probe import require_table
from dmcore.model.stores import MemoryStore
from dmcore.params import masked
from dmcore.table import Table
from dmcore.units import SECTOR
from pytest_dm.differential import steps
from pytest_dm.differential.divergence import Divergence, Outcome
from pytest_dm.differential.rule import rule_for, ruled
from pytest_dm.differential.sides import KernelSide, ModelSide, Side

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from dmcore.table import Line
    from pytest_dm.differential.pair import Pair
    from pytest_dm.differential.rule import Rule
    from pytest_dm.differential.setup import Setup
    from pytest_dm.differential.steps import Step

__all__ = ["Session", "Tally"]

_FOLLOW_SECONDS = 3.0
_POLL_SECONDS = 0.002


@dataclass(slots=True)
class Tally:
    """How much was compared without a difference.

    Attributes:
        examples: Stacks that came to their end.
        compared: Comparisons by what it was: a step that worked ("read", "zeroout", "message" ...), "errors" (a step that
            failed on both sides with the same errno), "refused" (the same, where the model has no errno), "table" and
            "status" (one text each), "disks".
        of: The same for each target, by its kernel name: a step counts for all targets that the device stands on.
    """

    examples: int = 0
    compared: dict[str, int] = field(default_factory=dict[str, int])
    of: dict[str, dict[str, int]] = field(default_factory=dict[str, dict[str, int]])

    def add(self, what: str, targets: Iterable[str] = ()) -> None:
        """Count one comparison."""
        self.compared[what] = self.compared.get(what, 0) + 1
        for target in targets:
            mine = self.of.setdefault(target, {})
            mine[what] = mine.get(what, 0) + 1

    def ended(self, targets: Iterable[str]) -> None:
        """Count an example that came to its end."""
        self.examples += 1
        for target in targets:
            mine = self.of.setdefault(target, {})
            mine["examples"] = mine.get("examples", 0) + 1

    def properties(self) -> list[tuple[str, int | str]]:
        """Return it as properties of a test's report: `dm_pair_WHAT` in all, and `dm_pair_targets` of each target, as JSON."""
        if not self.examples:
            return []
        counts = {"examples": self.examples, **self.compared}
        in_all: list[tuple[str, int | str]] = [(f"dm_pair_{what}", n) for what, n in sorted(counts.items())]
        return [*in_all, ("dm_pair_targets", json.dumps(self.of, sort_keys=True))]


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
        self._without_discards: set[str] = set()
        self._failing: dict[str, set[int]] = {name: set() for name in setup.disks}
        self._settles = any(rule.settles for _, rule in self._ruled())
        self._build()

    def _ruled(self, *names: str) -> Iterator[tuple[Line, Rule]]:
        """Yield the lines of some tables, by default of all, that have a rule."""
        for name in names or self.setup.stack.tables:
            for line in self.setup.stack.tables[name].lines:
                if line.target.kernel_type in ruled():
                    yield line, rule_for(line.target.kernel_type)

    def kinds(self, *names: str) -> set[str]:
        """Return the kernel names of the targets of some tables, by default of all."""
        tables = self.setup.stack.tables
        return {line.target.kernel_type for name in names or tables for line in tables[name].lines}

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
            if self.refused:
                self._pair.tally.add(_failure(refusal, built), self.kinds())
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

    @property
    def suspended(self) -> bool:
        """Whether a device is."""
        return bool(self._suspended)

    def describe(self) -> str:
        """Return the stack and the script so far, for one that hangs."""
        steps_of = [f"{number:>4}. {step}" for number, step in enumerate(self.script, 1)]
        return "\n".join([str(self.setup), *steps_of])

    def release(self) -> None:
        """Resume what is suspended: it would hold back what the layers above write at their end."""
        for name in self.setup.stack.order():
            if name in self._suspended:
                with suppress(OSError, DmError):
                    self._kernel.resume(name)
        self._suspended.clear()

    def abandon(self) -> None:
        """Remove both stacks without comparing anything."""
        self.release()
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
            return
        try:
            for name in self.setup.stack.order():
                if name in self._suspended:
                    self.do(steps.Resume(on=name))
            if self._settles:
                self._both_settle()
            self._compare_texts(len(self.script) + 1)
            statuses = self._statuses()
            for face in self.setup.asked:
                self.do(steps.Read(0, self._kernel.shape(face)[0], face))
            kernel, model = self._both(lambda side: side.close())
            if not kernel.agrees(model):
                self._diverged(len(self.script) + 1, "removal", (kernel, model))
        except BaseException:
            self.abandon()
            raise
        self._compare_disks(statuses)

    def _both_settle(self) -> None:
        for side in self._sides:
            side.settle()
        for name in self.setup.stack.tables:
            if any(rule.follows for _, rule in self._ruled(name)):
                self._wait_for_status(name)

    def _wait_for_status(self, name: str) -> None:
        """Wait until the kernel's status is the model's; not for ever, since one that stays another is a difference."""
        wanted = self._model.status_text(name)
        deadline = time.monotonic() + _FOLLOW_SECONDS
        while self._kernel.status_text(name) != wanted and time.monotonic() < deadline:
            time.sleep(_POLL_SECONDS)

    def _statuses(self) -> dict[tuple[str, int], str]:
        """Return the INFO text of every line on the kernel, by table and first sector."""
        found: dict[tuple[str, int], str] = {}
        for name in self.setup.stack.tables:
            for text in self._kernel.status_text(name).splitlines():
                start, _, _, *rest = text.split(maxsplit=3)
                found[name, int(start)] = "".join(rest)
        return found

    def _compare_disks(self, statuses: dict[tuple[str, int], str]) -> None:
        number = len(self.script) + 1
        contents = [
            {name: bytearray(side.content(name)) for name in self.setup.disks} for side in self._sides
        ]
        kernel, model = (self._facts(content) for content in contents)
        if kernel != model:
            self._diverged(
                number, "what the metadata say", (Outcome(text=str(kernel)), Outcome(text=str(model)))
            )
        for content in contents:
            self._hide(content, statuses)
        for name in self.setup.disks:
            left, right = (bytes(content[name]) for content in contents)
            if left != right:
                self._diverged(number, f"bytes of disk {name}", (Outcome(data=left), Outcome(data=right)))
            self._pair.tally.add("disks", self.kinds())

    def _facts(self, content: dict[str, bytearray]) -> list[object]:
        """Return what rules read from the disks; what no model can read is a fact, too."""
        disks: dict[str, MemoryStore] = {}
        for name, data in content.items():
            disks[name] = MemoryStore(len(data))
            disks[name].write(0, memoryview(data))
        found: list[object] = []
        for line, rule in self._ruled():
            try:
                found.append(rule.facts(line.target, disks, line.length))
            except (OSError, FormatError) as error:
                found.append(str(error))
        return found

    def _hide(self, content: dict[str, bytearray], statuses: dict[tuple[str, int], str]) -> None:
        """Zero what cannot be compared."""
        for name in self.setup.stack.tables:
            for line, rule in self._ruled(name):
                status = statuses.get((name, line.start), "")
                for disk, first, count in rule.hidden(line.target, dict(self.setup.disks), status):
                    end = min(first + count, len(content[disk]))
                    content[disk][first:end] = bytes(max(end - first, 0))

    def _compare_texts(self, number: int) -> None:
        for name in self.setup.stack.tables:
            said = name or "the device"
            tables = self._both(lambda side, on=name: _masked(side.table_text(on), "mask_table"))  # type: ignore[misc]
            if not tables[0].agrees(tables[1]):
                self._diverged(number, f"table of {said}", tables)
            self._pair.tally.add("table", self.kinds(name))
            statuses = self._both(lambda side, on=name: _masked(side.status_text(on), "mask"))  # type: ignore[misc]
            if not statuses[0].agrees(statuses[1]):
                self._diverged(number, f"status of {said}", statuses)
            self._pair.tally.add("status", self.kinds(name))

    # -- steps ---------------------------------------------------------------------------------------------------------

    def do(self, step: Step) -> None:
        """Do one step on both sides.

        Raises:
            Divergence: What came of it differs; both stacks are gone then.
        """
        if self.refused or self._held(step):
            return
        try:
            self._pair.watch.check()
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

        Or it cannot be had there: kernels without "error.discard" have no disk of which a part fails and which discards, and a
        device above that was reloaded meanwhile takes none until it is reloaded once more, since that is when it asks.
        """
        if isinstance(step, steps.Discard) and (self._without_discards or self._fails_without_discards()):
            return True
        if not self._suspended:
            return isinstance(step, steps.Resume)
        if isinstance(step, steps.Resume):
            return self._name(step.on) not in self._suspended
        return not isinstance(step, steps.Message) or self._holds(self._name(step.on))

    def _fails_without_discards(self) -> bool:
        """Whether a disk is one of which a part fails, on a kernel where that has no discards."""
        return self._no_discards and any(self._failing.values())

    def _holds(self, on: str) -> bool:
        """Whether a message to a device could wait for a resume: of a device below, or of its own if it is of that kind."""
        below = set(self.setup.stack.needed(on)) - {on}
        quiet = on in self._suspended and not all(rule.talks_suspended for _, rule in self._ruled(on))
        return quiet or bool(below & self._suspended)

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
        below = [step.on] if kind == "message" else self.setup.stack.needed(step.on)
        self._pair.tally.add(_failure(kernel, model) if kernel.errno else kind, self.kinds(*below))
        if not kernel.errno:
            if isinstance(step, steps.Suspend):
                self._suspended.add(step.on)
            elif isinstance(step, steps.Resume):
                self._suspended.discard(step.on)
        if isinstance(step, steps.Reload):
            self._compare_shapes()
            if self._fails_without_discards():
                self._without_discards.add(step.on)
            elif not kernel.errno:
                self._without_discards.discard(step.on)

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


def _failure(kernel: Outcome, model: Outcome) -> str:
    """Return as what a failure on both sides is counted."""
    return "errors" if kernel.errno == model.errno else "refused"


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
