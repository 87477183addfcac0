"""The `dm` marker: its arguments as one checked value."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

__all__ = ["DESCRIPTION", "FIXTURES", "MarkError", "Wants", "asks_for_devices", "check", "uses_dm"]

DESCRIPTION = (
    "dm(size=, block_size=, filesystem=, needs=, timeout=): the test needs device-mapper; what its ready devices are like "
    '(size="256M", block_size=4096, filesystem="ext4"), what else it needs (targets, features, tools, a '
    'kernel instead of models: needs=("dust", "flakey.error_reads", "mkfs.xfs", "kernel")), and the seconds it may run in a guest'
)

FIXTURES = frozenset(
    {
        "dm", "dm_session", "dm_backend", "dm_loop", "dm_linear", "dm_zero", "dm_error", "dm_flakey", "dm_dust",
        "dm_delay", "dm_log_writes", "dm_crash", "dm_pair",
    }
)  # fmt: skip
"""Fixtures of the plugin; a test that asks for one of them gets the `dm` marker."""

FILESYSTEMS = ("btrfs", "ext2", "ext3", "ext4", "f2fs", "vfat", "xfs")
_DEFAULT_SIZES = {"xfs": "320M", "btrfs": "256M"}
_DEFAULT_SIZE = "64M"


class MarkError(Exception):
    """A `dm` marker with an argument that means nothing."""


@dataclass(frozen=True, slots=True)
class Wants:
    """What a test's `dm` markers ask for; per argument the closest marker wins, `needs` add up.

    Attributes:
        size: Bytes of a ready device.
        block_size: Its logical block size in bytes: a power of two in 512..4096.
        filesystem: File system to make and mount on it, None for a bare device.
        needs: Targets, features ("target.feature"), programs and "kernel" (no models) that must be there.
        timeout: Seconds the test may run in a guest; None for the session's.
    """

    size: int = 64 << 20
    block_size: int = 512
    filesystem: str | None = None
    needs: tuple[str, ...] = ()
    timeout: float | None = None

    @classmethod
    def of(cls, node: pytest.Item) -> Wants:
        """Return what `node` asks for.

        Raises:
            MarkError: Naming the test, the argument and its value.
        """
        given: dict[str, Any] = {}
        needs: dict[str, None] = {}
        for mark in node.iter_markers("dm"):
            if mark.args:
                raise MarkError(_message(node, "positional arguments", mark.args, "name each argument"))
            for name, value in mark.kwargs.items():
                if name == "needs":
                    needs.update(dict.fromkeys(_checked(node, name, value, _needs)))
                elif name in _CHECKS:
                    given.setdefault(name, _checked(node, name, value, _CHECKS[name]))
                else:
                    known = ", ".join((*_CHECKS, "needs"))
                    raise MarkError(_message(node, name, value, f"no such argument; there are {known}"))
        if "size" not in given:
            default = _DEFAULT_SIZES.get(given.get("filesystem") or "", _DEFAULT_SIZE)
            given["size"] = _size(default)
        return cls(**given, needs=tuple(needs))


def _message(node: pytest.Item, name: str, value: object, reason: str) -> str:
    return f"{node.nodeid}: pytest.mark.dm: {name}={value!r}: {reason}"


def _checked(node: pytest.Item, name: str, value: object, check: Callable[[Any], Any]) -> Any:
    try:
        return check(value)
    except (TypeError, ValueError) as error:
        reason = getattr(error, "reason", None) or str(error)
        raise MarkError(_message(node, name, value, reason)) from error


def _size(value: object) -> int:
    from dmcore.units import SECTOR, parse_size  # noqa: PLC0415 - not before a marker has a size

    if not isinstance(value, str | int):
        message = "a size is text like '64M' or a number of bytes"
        raise TypeError(message)
    size = parse_size(value)
    if not size or size % SECTOR:
        message = f"a device has a positive multiple of {SECTOR} bytes"
        raise ValueError(message)
    return size


def _block_size(value: object) -> int:
    size = _size(value)
    if size & (size - 1) or size > 4096:
        message = "a logical block is a power of two in 512..4096 bytes"
        raise ValueError(message)
    return size


def _filesystem(value: object) -> str | None:
    if value is not None and value not in FILESYSTEMS:
        message = f"choose from {', '.join(FILESYSTEMS)}"
        raise ValueError(message)
    return None if value is None else str(value)


def _needs(value: object) -> tuple[str, ...]:
    if isinstance(value, str):
        return _needs((value,))
    items = list(cast("Iterable[object]", value)) if isinstance(value, tuple | list | set | frozenset) else []
    words = tuple(item for item in items if isinstance(item, str) and item and not item.isspace())
    if not words or len(words) != len(items):
        message = "give a target, feature or program name, or a sequence of them"
        raise ValueError(message)
    return words


def _timeout(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < float("inf"):
        message = "give a positive number of seconds"
        raise ValueError(message)
    return float(value)


_CHECKS: dict[str, Callable[[Any], Any]] = {
    "size": _size,
    "block_size": _block_size,
    "filesystem": _filesystem,
    "timeout": _timeout,
}


def asks_for_devices(item: pytest.Item) -> bool:
    """Whether the test asks for a fixture of the plugin, so that all its devices come from there."""
    return not FIXTURES.isdisjoint(getattr(item, "fixturenames", ()))


def uses_dm(item: pytest.Item) -> bool:
    """Whether the test is marked `dm` or asks for a fixture of the plugin."""
    return item.get_closest_marker("dm") is not None or asks_for_devices(item)


def check(items: object) -> None:
    """Check the markers of freshly made test items, at collection.

    Raises:
        pytest.Collector.CollectError: With the one message that says what is wrong.
    """
    made = cast("Iterable[object]", items) if isinstance(items, list | tuple) else (items,)
    for item in made:
        if isinstance(item, pytest.Item) and item.get_closest_marker("dm") is not None:
            try:
                Wants.of(item)
            except MarkError as error:
                raise item.parent.CollectError(str(error)) from error  # type: ignore[union-attr]
