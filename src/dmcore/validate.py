"""Refuse bad values before any I/O: the checks that typed values share."""

from __future__ import annotations

from dmcore.errors import SpecError
from dmcore.ref import Ref

__all__ = ["boolean", "instance", "integer", "ref"]


def integer(field: str, value: object, low: int, high: int, unit: str = "") -> None:
    """Refuse what is not a whole number within `low`..`high`.

    Raises:
        SpecError: Naming `field` and `value`.
    """
    what = f"a whole number of {unit}" if unit else "a whole number"
    if not isinstance(value, int) or isinstance(value, bool):
        raise SpecError(field, value, f"must be {what}")
    if not low <= value <= high:
        raise SpecError(field, value, f"must be {what} in {low}..{high}")


def boolean(field: str, value: object) -> None:
    """Refuse what is not True or False.

    Raises:
        SpecError: Naming `field` and `value`.
    """
    if not isinstance(value, bool):
        raise SpecError(field, value, "must be True or False")


def instance(field: str, value: object, kind: type, example: str) -> None:
    """Refuse what is not a `kind`.

    Args:
        field: What the value is for.
        value: What was given.
        kind: What it must be.
        example: How one is written, for the error.

    Raises:
        SpecError: Naming `field` and `value`.
    """
    if not isinstance(value, kind):
        raise SpecError(field, value, f"must be a {kind.__name__}, such as {example}")


def ref(field: str, value: object) -> None:
    """Refuse what is not a `Ref`.

    Raises:
        SpecError: Naming `field` and `value`.
    """
    instance(field, value, Ref, "Ref('/dev/loop0') or Ref('7:0')")
