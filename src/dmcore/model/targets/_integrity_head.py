"""The superblock of integrity: read and compared with the table, or made for a blank disk.

Source: drivers/md/dm-integrity.c (dm_integrity_ctr, initialize_superblock).
"""

from __future__ import annotations

from dataclasses import replace
from random import SystemRandom
from typing import TYPE_CHECKING, NamedTuple, TypedDict

from dmcore.errors import SpecError
from dmcore.formats.integrity import SB_SECTORS, Flags, Layout, Superblock
from dmcore.model.stores import read_exactly
from dmcore.targets.integrity import Integrity, Mode
from dmcore.units import SECTOR

if TYPE_CHECKING:
    from dmcore.formats.hashes import Hash
    from dmcore.model.block import BlockDevice

__all__ = ["Begun", "begin", "log2_bit", "unsafe"]

_DEFAULT_INTERLEAVE = 32768
_DEFAULT_BUFFER = 128
_DEFAULT_BIT = 32768
_MOST_JOURNAL = 131072


class Begun(NamedTuple):
    """What a table begins with: the superblock in effect, where things are, and whether the disk was blank."""

    head: Superblock
    layout: Layout
    fresh: bool


class _Sizes(TypedDict):
    start: int
    data_sectors: int
    meta_sectors: int | None
    log2_buffer: int


def _log2(value: int) -> int:
    return value.bit_length() - 1


def begin(
    target: Integrity, data: BlockDevice, meta: BlockDevice, *, tag_size: int, hashed: bool, mac: Hash | None
) -> Begun:
    """Read the superblock, or make one for 4 KiB of zeros; nothing is written.

    Args:
        target: The line.
        data: The data device.
        meta: The device that the superblock is on; may be the same.
        tag_size: Bytes of a tag.
        hashed: The line has an internal hash.
        mac: What protects superblock and journal.

    Raises:
        FormatError: What is there is no superblock, or cannot be.
        SpecError: It says something else than the table.
    """
    separate = target.meta_device is not None
    buffer = _DEFAULT_BUFFER if target.buffer_sectors is None else target.buffer_sectors or 1
    sizes: _Sizes = {
        "start": target.start,
        "data_sectors": data.sectors,
        "meta_sectors": meta.sectors if separate else None,
        "log2_buffer": min(_log2(buffer), 22),
    }
    raw = read_exactly(meta, target.start, SB_SECTORS, "the superblock")
    found = None
    if any(raw) and not (target.mode is Mode.RECOVERY and not raw.startswith(b"integrt\0")):
        check = mac.copy() if mac is not None and target.mode is not Mode.RECOVERY else None
        found = Superblock.decode(raw, mac=check, offset=target.start * SECTOR)
    if found is None:
        blank = _blank(target, tag_size, hashed=hashed, mac=mac)
        layout = Layout.format(blank, sections=_sections(target, blank, data), **sizes)
    else:
        _compare(target, found, tag_size, mac=mac)
        layout = Layout(found, **sizes)
    head = replace(layout.head, provided=layout.provided)
    if target.recalculate or target.reset_recalculate:
        at = head.recalculated if head.flags & Flags.RECALCULATING else 0
        head = replace(head, flags=head.flags | Flags.RECALCULATING, recalculated=at)
    return Begun(head, layout, found is None)


def _blank(target: Integrity, tag_size: int, *, hashed: bool, mac: Hash | None) -> Superblock:
    separate, inline = target.meta_device is not None, target.mode is Mode.INLINE
    flags = Flags.INLINE if inline else Flags(0)
    if mac is not None:
        flags |= Flags.JOURNAL_MAC
    if target.fix_hmac and (hashed or mac is not None):
        flags |= Flags.FIXED_HMAC
    if target.allow_discards_keyed:
        flags |= Flags.DISCARD_KEYED
    if target.fix_padding and not separate:
        flags |= Flags.FIXED_PADDING
    interleave = min(max(_log2(target.interleave_sectors or _DEFAULT_INTERLEAVE), 3), 31)
    return Superblock(
        log2_interleave=0 if separate else interleave, tag_size=tag_size, journal_sections=0 if inline else 1, flags=flags,
        log2_block=_log2(target.block_size // SECTOR),
        salt=SystemRandom().randbytes(16) if flags & Flags.FIXED_HMAC else bytes(16),
    )  # fmt: skip


def _sections(target: Integrity, head: Superblock, data: BlockDevice) -> int:
    """Return how many sections the journal of a new device may have."""
    if target.mode is Mode.INLINE:
        return 0
    default = min(_MOST_JOURNAL, data.sectors >> 7)
    sectors = default if target.journal_sectors is None else target.journal_sectors or 1
    return max((sectors or default) // head.section_sectors, 1)


def _compare(target: Integrity, head: Superblock, tag_size: int, *, mac: Hash | None) -> None:
    """Refuse a superblock that says something else than the table."""
    said = {
        "tag_size": (head.tag_size, tag_size),
        "block_size": (SECTOR << head.log2_block, target.block_size),
        "journal_mac": (bool(head.flags & Flags.JOURNAL_MAC), mac is not None),
    }
    for field, (there, given) in said.items():
        if there != given:
            raise SpecError(field, given, f"the superblock says {there}")
    inline = target.mode is Mode.INLINE
    if bool(head.flags & Flags.INLINE) != inline:
        raise SpecError("mode", target.mode, f"the superblock says {'another' if inline else 'I'}")
    if bool(head.journal_sections) == inline:
        what = "a" if head.journal_sections else "no"
        raise SpecError("journal_sectors", head.journal_sections, f"the superblock has {what} journal")
    if head.flags & Flags.DISCARD_KEYED and not target.allow_discards_keyed:
        raise SpecError("allow_discards_keyed", value=False, reason="it cannot be disabled once enabled")


def unsafe(target: Integrity, flags: Flags) -> bool:
    """Whether making tags anew could be turned against their key, and nobody allowed it."""
    if target.legacy_recalculate:
        return False
    key = target.internal_hash is not None and target.internal_hash.key is not None
    mac = target.journal_mac is not None and target.journal_mac.key is not None
    return (key and not mac) if flags & Flags.FIXED_HMAC else (key or mac)


def log2_bit(target: Integrity, head: Superblock, layout: Layout) -> int:
    """Return the log2 of the blocks for a bit of the bitmap, which has to fit where the journal is."""
    given = target.sectors_per_bit
    log2 = _log2(_DEFAULT_BIT) if given is None else _log2(given or 1)
    log2 = max(log2, head.log2_block)
    room = min(layout.section_sectors * head.journal_sections << 12, 2**32 - 1)
    while room and room < (layout.provided + (1 << log2) - 1) >> log2:
        log2 += 1
    return log2 - head.log2_block
