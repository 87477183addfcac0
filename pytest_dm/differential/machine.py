"""Machine: a state machine of hypothesis that does to a stack, on a kernel and on models, whatever its targets take.

A subclass says on which stack, and adds rules of its own:

    class MyStack(Machine):
        def stack(self):
            return Setup.of("top: 0 96 dust data 0 512", {"data": 96})

        @rule(block=st.integers(0, 95))
        def lose(self, block):
            self.do(Message(f"addbadblock {block}"))

    def test_my_stack(dm_pair):
        dm_pair.explore(MyStack)

Unlike a drawn script, a rule sees what came of the steps before (`session`), so that it can go where it is interesting.
"""

from __future__ import annotations

import sys
from contextlib import ExitStack
from typing import TYPE_CHECKING, ClassVar

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from pytest_dm.differential import steps
from pytest_dm.strategies import discard_unit, failures, messages, reloads, requests, rules_of

if TYPE_CHECKING:
    from hypothesis.strategies import DataObject, SearchStrategy

    from pytest_dm.differential.pair import Pair
    from pytest_dm.differential.session import Session
    from pytest_dm.differential.setup import Setup
    from pytest_dm.differential.steps import Step

__all__ = ["Machine"]


class Machine(RuleBasedStateMachine):
    """Reads, writes, flushes, discards, zeroes, suspends, resumes, reloads, sends messages, lets disks fail, compares.

    What the targets of the stack have no use for is left out, as their rules say (`pytest_dm.differential.rules`).

    Attributes:
        pair: Kernel and models.
        setup: The stack of this run; there from the first step on.
        session: The stack on both sides.
    """

    pair: ClassVar[Pair]

    def __init__(self) -> None:
        super().__init__()
        self.setup: Setup
        self.session: Session
        self._open = ExitStack()
        self._failed = False

    def stack(self) -> Setup | SearchStrategy[Setup]:
        """Return the stack, or a strategy for it."""
        raise NotImplementedError

    def do(self, step: Step) -> None:
        """Do a step on both sides, for rules of a subclass.

        Raises:
            Divergence: What came of it differs.
        """
        try:
            self.session.do(step)
        except BaseException:
            self._failed = True
            raise

    def teardown(self) -> None:
        """Compare what is left, and remove it; after a failure only that."""
        if self._failed:
            self._open.__exit__(*sys.exc_info())
        else:
            self._open.close()

    @initialize(data=st.data())
    def _make(self, data: DataObject) -> None:
        given = self.stack()
        self.setup = data.draw(given) if isinstance(given, st.SearchStrategy) else given
        self.session = self._open.enter_context(self.pair.session(self.setup))

    def _runs(self) -> bool:
        return hasattr(self, "session") and not self.session.suspended

    def _may(self, what: str) -> bool:
        return self._runs() and all(getattr(each, what) for each in rules_of(self.setup))

    def _any(self, data: DataObject, kind: type[object]) -> None:
        found = [request for face in self.setup.asked for request in requests(self.setup, face, kind)]
        self.do(data.draw(st.one_of(found)))

    @precondition(lambda self: self._runs())
    @rule(data=st.data())
    def read(self, data: DataObject) -> None:
        """Read anywhere."""
        self._any(data, steps.Read)

    @precondition(lambda self: self._may("writes"))
    @rule(data=st.data())
    def write(self, data: DataObject) -> None:
        """Write anywhere."""
        self._any(data, steps.Write)

    @precondition(lambda self: self._runs())
    @rule(data=st.data())
    def flush(self, data: DataObject) -> None:
        """Flush a device."""
        self._any(data, steps.Flush)

    @precondition(lambda self: self._may("writes") and discard_unit(self.setup) > 0)
    @rule(data=st.data())
    def discard(self, data: DataObject) -> None:
        """Discard anywhere."""
        self._any(data, steps.Discard)

    @precondition(lambda self: self._may("writes"))
    @rule(data=st.data())
    def zero_out(self, data: DataObject) -> None:
        """Zero anywhere."""
        self._any(data, steps.ZeroOut)

    @precondition(lambda self: self._may("suspends"))
    @rule(noflush=st.booleans())
    def suspend(self, noflush: bool) -> None:  # noqa: FBT001 - hypothesis calls it
        """Suspend the topmost device; until it is resumed, only messages go to it."""
        self.do(steps.Suspend(noflush=noflush, on=self.setup.stack.top))

    @precondition(lambda self: hasattr(self, "session") and self.session.suspended)
    @rule()
    def resume(self) -> None:
        """Resume it."""
        self.do(steps.Resume(on=self.setup.stack.top))

    @precondition(lambda self: self._may("suspends"))
    @rule(data=st.data())
    def reload(self, data: DataObject) -> None:
        """Load the same table again, or another that its rule knows."""
        self.do(data.draw(reloads(self.setup)))

    @precondition(lambda self: hasattr(self, "setup") and messages(self.setup) is not None)
    @rule(data=st.data())
    def message(self, data: DataObject) -> None:
        """Send a message to any of the targets."""
        found = messages(self.setup)
        assert found is not None
        self.do(data.draw(found))

    @precondition(lambda self: self._may("fails") and failures(self.setup) is not None)
    @rule(data=st.data())
    def fail_or_heal(self, data: DataObject) -> None:
        """Let a part of a disk fail, or all of it work again."""
        found = failures(self.setup)
        assert found is not None
        self.do(data.draw(found))

    @precondition(lambda self: self._runs())
    @rule()
    def compare(self) -> None:
        """Compare table and status of every device."""
        self.do(steps.Status())
