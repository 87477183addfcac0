"""Hypothesis: crash states of a log as a strategy, for properties of one's own.

Imported by those who use it, since it needs hypothesis.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dmcore.crash.epochs import Level, timeline
from dmcore.crash.families import tears_of
from dmcore.crash.states import State, Tear, units
from dmcore.errors import SpecError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from hypothesis.strategies import DrawFn, SearchStrategy

    from dmcore.crash.epochs import Epoch, Times
    from dmcore.crash.log import CrashLog

__all__ = ["crash_states"]


def crash_states(
    log: CrashLog,
    *,
    level: Level | str = Level.L1,
    times: Sequence[Times] | None = None,
    torn: int | None = None,
    first: int = 0,
) -> SearchStrategy[State]:
    """Draw crash states of a log; examples shrink to the earliest epoch with nothing missing and nothing torn.

    `dmcore.crash.tester.Tester` judges them, `dmcore.crash.materialise.Image` makes them: both go from state to state by what
    differs, so make one for the whole test. A state's id (`str(state)`) is what `pytest-dm replay` takes.

    Args:
        log: The log.
        level: How much order is assumed.
        times: For L2: of each entry.
        torn: Bytes of a sector that the disk writes whole or not: a power of two, not below the log's sector size; 0 for no torn
            writes, None for that sector size.
        first: Number of the first epoch to draw from.

    Raises:
        SpecError: A value that means nothing.
    """
    from hypothesis import strategies as st

    size = log.sector_size if torn is None else torn
    if size and (size < log.sector_size or size & (size - 1)):
        raise SpecError(
            "torn", torn, f"a power of two, and not below the log's sector size of {log.sector_size} bytes"
        )
    epochs = timeline(log, level, times=times).epochs
    if not 0 <= first < len(epochs):
        raise SpecError("first", first, f"the log has {len(epochs)} epochs")

    @st.composite
    def states(draw: DrawFn) -> State:
        epoch = epochs[draw(st.integers(first, len(epochs) - 1))]
        count = len(epoch.pending)
        missing = draw(st.integers(0, (1 << count) - 1))
        present = (1 << count) - 1 ^ missing
        tears = _tears(epoch, present, size)
        tear = draw(st.sampled_from([None, *tears])) if tears else None
        return State(epoch.index, present, () if tear is None else (tear,))

    return states()


def _tears(epoch: Epoch, present: int, size: int) -> list[Tear]:
    if not size:
        return []
    return [
        tear
        for number, write in enumerate(epoch.pending)
        if present >> number & 1 and write.tearable and (count := len(units(write, size))) > 1
        for tear in tears_of(number, count)
    ]
