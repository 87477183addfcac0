"""Raw: a target that this library has no file for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from dmcore.errors import SpecError
from dmcore.params import masked, quote
from dmcore.target import Requirement, Status, Target

if TYPE_CHECKING:
    from typing import Self

    from hypothesis.strategies import SearchStrategy

    from dmcore.params import Tokens
    from dmcore.ref import Ref
    from dmcore.target import Lookup, Resolve, Space

__all__ = ["Raw", "RawStatus"]


@dataclass(frozen=True, slots=True)
class RawStatus(Status):
    """Status text nobody parsed.

    Attributes:
        text: As the kernel gave it.
    """

    text: str


@dataclass(frozen=True, slots=True, repr=False)
class Raw(Target):
    """Parameters as text, so that any table can be read and loaded. Only the kernel knows what they mean.

    Attributes:
        name: The target's word in the table line: 1..15 bytes without white space or NUL.
        params: Everything after that word, without NUL; blanks around it are cut off. Devices in it stay as written.

    Raises:
        SpecError: A name or text that a table line cannot hold.
    """

    kernel_name: ClassVar[str] = ""
    kernel_module: ClassVar[str] = ""

    name: str
    params: str = ""

    def __post_init__(self) -> None:
        if len(self.name.split()) != 1 or self.name != self.name.strip():
            raise SpecError("name", self.name, "a target's name is one word")
        if len(self.name.encode(errors="surrogateescape")) > 15:
            raise SpecError("name", self.name, "the kernel keeps at most 15 bytes of a target's name")
        for field, text in (("name", self.name), ("params", self.params)):
            if "\0" in text or "\n" in text:
                shown = text if field == "name" else "..."
                raise SpecError(field, shown, "NUL and newline cannot stand in a table line")
        object.__setattr__(self, "params", self.params.strip())

    @property
    def kernel_type(self) -> str:
        """The word in the table line: `name`."""
        return self.name

    @property
    def secret(self) -> bool:
        """Whether a word looks like a key: a misspelled target is loaded as carefully as the one that was meant."""
        return masked(self.name, self.params) != self.params

    def __repr__(self) -> str:
        return f"Raw(name={self.name!r}, params={masked(self.name, self.params)!r})"

    def refs(self) -> tuple[Ref, ...]:
        """Return no device: which words are devices is not known."""
        return ()

    def encode(self, resolve: Resolve) -> str:
        """Return `params` as it is."""
        del resolve
        return self.params

    @classmethod
    def decode(cls, tokens: Tokens, lookup: Lookup) -> Self:
        """Take all words, with single blanks between them; `tokens.target` gives the name."""
        del lookup
        return cls(tokens.target, " ".join(quote(word) for word in tokens))

    def needs(self) -> Requirement:
        """Return the need for a target of that name."""
        return Requirement(self.name)

    def parse_status(self, text: str) -> RawStatus:
        """Return the text."""
        return RawStatus(text)

    @classmethod
    def strategy(cls, space: Space) -> SearchStrategy[Raw]:
        """Draw nothing: which words would be valid is not known."""
        from hypothesis import strategies as st

        del space
        return st.nothing()
