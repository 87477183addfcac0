"""error: every read and write fails.

Sources: drivers/md/dm-target.c (io_err_ctr, io_err_map, io_err_io_hints); with a device since commit a951104333bd
("dm error: Add support for zoned block devices").
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from dmcore import validate
from dmcore.errors import SpecError
from dmcore.params import U64_MAX
from dmcore.target import Feature, Leg, Requirement, Target

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Self

    from hypothesis.strategies import SearchStrategy

    from dmcore.params import Tokens
    from dmcore.ref import Ref
    from dmcore.target import Features, Lookup, Resolve, Space

__all__ = ["Error"]

_DEVICE = "error.device"


@dataclass(frozen=True, slots=True, kw_only=True)
class Error(Target):
    """Every read and write fails with EIO; a flush alone succeeds, for nothing is there to be flushed.

    A discard fails with EIO on kernels with the feature "error.discard", elsewhere with EOPNOTSUPP.

    Attributes:
        dev: Device below, which is held open and gives its limits (block sizes, zones) but no I/O; None for none.
            Needs the feature "error.device": kernels without it would ignore the words.
        offset: First sector on `dev`, 0..2^64-1; must be 0 without `dev`.

    Raises:
        SpecError: A value the kernel's constructor would refuse (EINVAL), or an offset on no device.
    """

    kernel_name: ClassVar[str] = "error"
    kernel_module: ClassVar[str] = "dm-mod"
    features: ClassVar[Mapping[str, Feature]] = {
        _DEVICE: Feature("{dev} 0", refuses="{dev} none"),
        "error.discard": Feature("", limit="discard_max_bytes"),
    }

    dev: Ref | None = None
    offset: int = 0

    def __post_init__(self) -> None:
        if self.dev is not None:
            validate.ref("dev", self.dev)
        elif self.offset:
            raise SpecError("offset", self.offset, "means nothing without a device")
        validate.integer("offset", self.offset, 0, U64_MAX, "sectors")

    def refs(self) -> tuple[Ref, ...]:
        """Return the device below, if one is given."""
        return () if self.dev is None else (self.dev,)

    def encode(self, resolve: Resolve) -> str:
        """Return `<dev> <offset>`, or nothing."""
        return "" if self.dev is None else f"{resolve(self.dev)} {self.offset}"

    @classmethod
    def decode(cls, tokens: Tokens, lookup: Lookup) -> Self:
        """Read `<dev> <offset>`; any other number of words is ignored, as every kernel does."""
        if len(tokens) != 2:
            for _ in tokens:
                pass
            return cls()
        leg = Leg.decode(tokens, lookup)
        return cls(dev=leg.dev, offset=leg.offset)

    def readback(self, features: Features) -> Error:
        """Return the value without device: the kernel prints nothing."""
        del features
        return Error()

    def needs(self) -> Requirement:
        """Return the need for "error.device" if a device is given."""
        return Requirement(
            self.kernel_name, features=frozenset() if self.dev is None else frozenset({_DEVICE})
        )

    @classmethod
    def strategy(cls, space: Space) -> SearchStrategy[Error]:
        """Draw the value without device, and with one where the kernel knows that."""
        from hypothesis import strategies as st

        alone = st.just(cls())
        if _DEVICE not in space.features:
            return alone
        return alone | space.legs().map(lambda leg: cls(dev=leg.dev, offset=leg.offset))
