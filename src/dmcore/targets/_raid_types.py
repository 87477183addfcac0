"""What kinds of raid set there are, which parameters each takes, and the words they are written with.

Sources: drivers/md/dm-raid.c (raid_types, RAID0_VALID_FLAGS and its neighbours, parse_raid_params, raid_status).
"""

from __future__ import annotations

from enum import StrEnum

__all__ = ["COMMON", "FLAGS", "WORDS", "JournalMode", "Raid10Format", "RaidType", "Sync", "allowed"]


class RaidType(StrEnum):
    """How data are spread over the devices; the values are the kernel's words."""

    RAID0 = "raid0"
    RAID1 = "raid1"
    RAID4 = "raid4"
    """Parity on the first device."""

    RAID5_N = "raid5_n"
    """Parity on the last device."""

    RAID5_LA = "raid5_la"
    RAID5_RA = "raid5_ra"
    RAID5_LS = "raid5_ls"
    RAID5_RS = "raid5_rs"
    RAID6_ZR = "raid6_zr"
    RAID6_NR = "raid6_nr"
    RAID6_NC = "raid6_nc"
    RAID6_N_6 = "raid6_n_6"
    """As RAID5_N, and the second parity on one more last device; so the next four."""

    RAID6_LA_6 = "raid6_la_6"
    RAID6_RA_6 = "raid6_ra_6"
    RAID6_LS_6 = "raid6_ls_6"
    RAID6_RS_6 = "raid6_rs_6"
    RAID10 = "raid10"
    RAID10_NEAR = "raid10_near"
    """Accepted, and as `RAID10` without a format: `raid10_format` decides. So the next two."""

    RAID10_FAR = "raid10_far"
    RAID10_OFFSET = "raid10_offset"

    @property
    def level(self) -> int:
        """0, 1, 4, 5, 6 or 10."""
        digits = self.value.removeprefix("raid").partition("_")[0]
        return int(digits)

    @property
    def parity(self) -> int:
        """Devices' worth of parity: 1 for levels 4 and 5, 2 for 6."""
        return {4: 1, 5: 1, 6: 2}.get(self.level, 0)


class Sync(StrEnum):
    """What to believe about the devices at first; the values are the kernel's words."""

    SYNC = "sync"
    """They differ: make parity or copies anew, whatever the metadata say."""

    NOSYNC = "nosync"
    """They agree. Not with level 6."""


class Raid10Format(StrEnum):
    """Where copies lie; the values are the kernel's words."""

    NEAR = "near"
    FAR = "far"
    OFFSET = "offset"


class JournalMode(StrEnum):
    """When a write is done; the values are the kernel's words."""

    WRITETHROUGH = "writethrough"
    """When it is on the devices."""

    WRITEBACK = "writeback"
    """When it is in the journal."""


FLAGS = ("sync", "nosync", "raid10_use_near_sets")
"""Words without a value."""

COMMON = ("rebuild", "daemon_sleep", "min_recovery_rate", "max_recovery_rate", "region_size", "delta_disks")
_RAID1 = ("write_mostly", "max_write_behind")
_RAID456 = ("stripe_cache", "journal_dev", "journal_mode")
_RAID10 = ("raid10_copies", "raid10_format")

WORDS = (
    "rebuild",
    "daemon_sleep",
    "min_recovery_rate",
    "max_recovery_rate",
    "write_mostly",
    "max_write_behind",
    "stripe_cache",
    "region_size",
    "raid10_copies",
    "raid10_format",
    "delta_disks",
    "data_offset",
    "journal_dev",
    "journal_mode",
)
"""Words with a value, in the order the kernel prints them."""


def allowed(kind: RaidType) -> frozenset[str]:
    """Return the words that a set of this kind takes."""
    words = {"data_offset"}
    if kind.level:
        words.update(COMMON, ("sync",), () if kind.level == 6 else ("nosync",))
    if kind.level == 1:
        words.update(_RAID1)
    if kind.parity:
        words.update(_RAID456)
    if kind.level == 10:
        words.update(_RAID10, ("raid10_use_near_sets",))
    return frozenset(words)
