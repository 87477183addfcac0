"""What can be told to a raid set.

Sources: drivers/md/dm-raid.c (raid_message).
"""

from __future__ import annotations

from dataclasses import dataclass

from dmcore.target import Silent

__all__ = ["Check", "Frozen", "Idle", "Recover", "Repair", "Resync"]


@dataclass(frozen=True, slots=True)
class Idle(Silent):
    """Stop what goes on. From 6.12 on the kernel does it, and answers EINVAL all the same. EBUSY while suspended.

    Every message fails with EINVAL for level 0.
    """

    def encode(self) -> str:
        """Return `idle`."""
        return "idle"


@dataclass(frozen=True, slots=True)
class Frozen(Silent):
    """Stop what goes on, and begin nothing. From 6.12 on the kernel answers EINVAL, and does not stay frozen."""

    def encode(self) -> str:
        """Return `frozen`."""
        return "frozen"


@dataclass(frozen=True, slots=True)
class Resync(Silent):
    """Go on with a resync, or begin one that is due. EBUSY while something goes on, as for the next three."""

    def encode(self) -> str:
        """Return `resync`."""
        return "resync"


@dataclass(frozen=True, slots=True)
class Recover(Silent):
    """Go on with making a device's content, or begin it."""

    def encode(self) -> str:
        """Return `recover`."""
        return "recover"


@dataclass(frozen=True, slots=True)
class Check(Silent):
    """Compare copies or parity, and count the sectors that differ (`RaidStatus.mismatches`)."""

    def encode(self) -> str:
        """Return `check`."""
        return "check"


@dataclass(frozen=True, slots=True)
class Repair(Silent):
    """Make copies or parity agree."""

    def encode(self) -> str:
        """Return `repair`."""
        return "repair"
