"""Device numbers, in the forms that the kernel uses for them."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass

from dmcore.errors import SpecError

__all__ = ["DevT"]

_TEXT = re.compile(r"(?P<major>[0-9]+):(?P<minor>[0-9]+)", re.ASCII)
_MAJOR_MAX = (1 << 12) - 1
_MINOR_MAX = (1 << 20) - 1


@dataclass(frozen=True, slots=True, order=True)
class DevT:
    """The number of a device.

    Attributes:
        major: Driver, 0..4095.
        minor: Device of that driver, 0..1048575.

    Raises:
        SpecError: A number that does not fit the kernel's 12 and 20 bits (it would answer EOVERFLOW).
    """

    major: int
    minor: int

    def __post_init__(self) -> None:
        if not 0 <= self.major <= _MAJOR_MAX:
            raise SpecError("major", self.major, f"0..{_MAJOR_MAX}")
        if not 0 <= self.minor <= _MINOR_MAX:
            raise SpecError("minor", self.minor, f"0..{_MINOR_MAX}")

    @classmethod
    def parse(cls, text: str) -> DevT:
        """Return the number for "major:minor", as sysfs and table lines have it.

        Raises:
            SpecError: Not two decimal numbers with a colon between them, or out of range.
        """
        match = _TEXT.fullmatch(text)
        if match is None:
            raise SpecError("dev", text, "write it as major:minor, like 7:0")
        return cls(int(match["major"]), int(match["minor"]))

    @classmethod
    def from_huge(cls, value: int) -> DevT:
        """Return the number for the 64-bit form of `huge_encode_dev()` (include/linux/kdev_t.h)."""
        return cls((value >> 8) & _MAJOR_MAX, (value & 0xFF) | ((value >> 12) & 0xFFF00))

    @classmethod
    def from_rdev(cls, value: int) -> DevT:
        """Return the number for `st_rdev` of a device node (the C library's form)."""
        return cls(os.major(value), os.minor(value))

    @property
    def huge(self) -> int:
        """The form of `huge_encode_dev()`, which every dm structure uses."""
        return (self.minor & 0xFF) | (self.major << 8) | ((self.minor & ~0xFF) << 12)

    @property
    def rdev(self) -> int:
        """The C library's form, as mknod(2) takes it."""
        return os.makedev(self.major, self.minor)

    def __str__(self) -> str:
        return f"{self.major}:{self.minor}"
