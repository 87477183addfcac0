"""Ref: the symbolic name of a device below."""

from __future__ import annotations

import re
from dataclasses import dataclass

from dmcore.errors import SpecError

__all__ = ["Ref"]

_NUMBER = re.compile(r"[0-9]+:[0-9]+")
_UNSAFE = re.compile(r"\s|\\|\0")


@dataclass(frozen=True, slots=True, order=True)
class Ref:
    """The device below, as a table names it, without saying how it is reached.

    Attributes:
        name: "major:minor", an absolute path, or a free name that whoever loads the table resolves.

    Raises:
        SpecError: An empty name, or one with white space, a backslash or NUL, which no table word can hold.
    """

    name: str

    def __post_init__(self) -> None:
        if not self.name:
            raise SpecError("ref", self.name, "a device needs a name")
        if _UNSAFE.search(self.name):
            raise SpecError("ref", self.name, "white space, backslash and NUL cannot stand in a table word")

    @property
    def is_number(self) -> bool:
        """Whether it is a "major:minor" that the kernel takes as it is."""
        return _NUMBER.fullmatch(self.name) is not None

    @property
    def is_path(self) -> bool:
        """Whether it is an absolute path."""
        return self.name.startswith("/")

    def __str__(self) -> str:
        return self.name
