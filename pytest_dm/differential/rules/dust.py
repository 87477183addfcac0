"""dust: its list of bad blocks by message, numbers around the ends of the device included."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dmcore.targets import Dust
from pytest_dm.differential.rule import Rule
from pytest_dm.differential.steps import Flush, Message, Read, Write

if TYPE_CHECKING:
    from collections.abc import Sequence

    from hypothesis.strategies import SearchStrategy

    from dmcore.target import Target
    from pytest_dm.differential.steps import Step

__all__ = ["RULE"]

_PLAIN = [
    "enable", "disable", "quiet", "countbadblocks", "clearbadblocks", "listbadblocks", "ENABLE", "enable now", "addbadblock",
    "queryblock x", "addbadblock 1 256", "nonsense",
]  # fmt: skip


class _Dust(Rule):
    def _first(self, target: Target) -> int:
        """Return the block in which the line begins."""
        assert isinstance(target, Dust)
        return target.offset // (target.block_size // 512)

    def prelude(self, target: Target, length: int) -> Sequence[Step]:
        """Let the first block fail some writes before it heals, and the second be bad."""
        del length
        first = self._first(target)
        return Message("enable"), Message(f"addbadblock {first} 2"), Message(f"addbadblock {first + 1}")

    def scenes(self, target: Target, length: int) -> Sequence[Sequence[Step]]:
        """Write the first block until it heals, the first time by a flush; clear the list twice."""
        del length
        add, first, read = Message(f"addbadblock {self._first(target)} 2"), Write(0, 1), Read(0, 1)
        clear = Message("clearbadblocks")
        return (
            (add, first, first, read, first, read),
            (add, Flush(), first, read, first, read),
            (clear, clear),
        )

    def messages(self, target: Target, length: int) -> SearchStrategy[str]:
        """Draw blocks of the line and a few behind it, and words that are none."""
        from hypothesis import strategies as st

        assert isinstance(target, Dust)
        unit = target.block_size // 512
        block = st.integers(target.offset // unit, (target.offset + length) // unit + 1)
        numbered = st.sampled_from(["addbadblock", "addbadblock", "removebadblock", "queryblock"])
        return st.one_of(
            st.sampled_from(_PLAIN),
            st.builds("{} {}".format, numbered, block),
            st.builds("addbadblock {} {}".format, block, st.integers(0, 3)),
        )


RULE = _Dust()
