"""zero: reads zeros, forgets writes.

Sources: drivers/md/dm-zero.c (zero_ctr, zero_map, zero_io_hints).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from dmcore.target import Feature, Target

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Self

    from hypothesis.strategies import SearchStrategy

    from dmcore.params import Tokens
    from dmcore.ref import Ref
    from dmcore.target import Lookup, Resolve, Space

__all__ = ["Zero"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Zero(Target):
    """Every read gives zeros, every write succeeds and is dropped, a flush succeeds.

    A discard succeeds on kernels with the feature "zero.discard", elsewhere it fails with EOPNOTSUPP.
    """

    kernel_name: ClassVar[str] = "zero"
    kernel_module: ClassVar[str] = "dm-zero"
    features: ClassVar[Mapping[str, Feature]] = {"zero.discard": Feature("", limit="discard_max_bytes")}

    def refs(self) -> tuple[Ref, ...]:
        """Return no device."""
        return ()

    def encode(self, resolve: Resolve) -> str:
        """Return no words."""
        del resolve
        return ""

    @classmethod
    def decode(cls, tokens: Tokens, lookup: Lookup) -> Self:
        """Accept no word."""
        del lookup
        tokens.done()
        return cls()

    @classmethod
    def strategy(cls, space: Space) -> SearchStrategy[Zero]:
        """Draw the one value there is."""
        from hypothesis import strategies as st

        del space
        return st.just(cls())
