"""raid: md's levels under a table. Sources: drivers/md/dm-raid.c (raid_ctr, analyse_superblocks, raid_status, raid_message,
attempt_restore_of_faulty_devices), and those of `_raid_levels.py` and `_raid_parity.py`.
"""

from __future__ import annotations

import errno
from contextlib import suppress
from typing import TYPE_CHECKING

from dmcore.errors import FormatError, Unsupported
from dmcore.formats.raid import BITMAP_AT, BITMAP_BYTES, DONE, BitmapSuper, SuperBlock, layout_number
from dmcore.model.block import FUA, SYNC, fault
from dmcore.model.target import Area, ModelTarget
from dmcore.model.targets._raid_layout import Copies
from dmcore.model.targets._raid_levels import CopiesLevel, Level, StripesLevel
from dmcore.model.targets._raid_members import Member, Members
from dmcore.model.targets._raid_parity import ParityLevel
from dmcore.targets.raid import DeviceState, Raid, Raid10Format, Sync, SyncAction
from dmcore.units import SECTOR

if TYPE_CHECKING:
    from collections.abc import Iterable

    from dmcore.model.block import BlockDevice
    from dmcore.model.target import Context

__all__ = ["MODEL"]

_NEWER = "raid.busy_while_suspended"
"""A feature of kernels that do what messages say under the set's lock; those also answer EINVAL to `idle` and `frozen`."""

_DEFAULT_REGION = 8192
_LEAST_REGIONS_SHIFT = 21
_ACTIONS = {
    "resync": SyncAction.RESYNC,
    "recover": SyncAction.RECOVER,
    "check": SyncAction.CHECK,
    "repair": SyncAction.REPAIR,
}


class _Raid(ModelTarget[Raid]):
    """One set. A resync, a recovery, a check or a repair is done by `settle`, at once."""

    def __init__(self, target: Raid, context: Context) -> None:
        super().__init__(target, context)
        for word in ("journal_dev", "delta_disks", "data_offset"):
            if getattr(target, word):
                raise Unsupported(
                    f"a model of raid with {word}", "sets are modelled as they are: no reshape, no journal"
                )
        self._level_number = {4: 5}.get(target.kind.level, target.kind.level)
        form = (target.raid10_format or Raid10Format.NEAR).value
        self._copies = target.raid10_copies or 2
        self._layout = layout_number(
            target.kind.value, self._copies, form, near_sets=target.raid10_use_near_sets
        )
        self._part = self._part_sectors()
        self._members = Members([self._member(index) for index in range(len(target.devices))], self._failed)
        self._resync_offset = 0 if self._begins_unsynced() else DONE
        self._events = 1
        self._requested: SyncAction | None = None
        self._mismatches = 0
        self._frozen = self._resumed = False
        self._suspended = True
        self._fresh = True
        if target.kind.level:
            self._read_metadata()
        self._level = self._make_level()
        if self._level.broken():
            raise fault(errno.EINVAL)

    # -- the constructor ---------------------------------------------------------------------------------------------

    def _begins_unsynced(self) -> bool:
        """Whether a set without superblocks yet has to be synced: one that keeps none counts as in sync for ever."""
        target = self.target
        asked = target.sync is Sync.SYNC or any(device.meta for device in target.devices)
        return bool(target.kind.level) and target.sync is not Sync.NOSYNC and asked

    def _part_sectors(self) -> int:
        """Return how many sectors of data each device has."""
        kind, count, length = self.target.kind, len(self.target.devices), self.context.length
        if kind.level == 1:
            return length
        return length * self._copies // count if kind.level == 10 else length // (count - kind.parity)

    def _member(self, index: int) -> Member:
        device = self.target.devices[index]
        return Member(
            index=index,
            data=None if device.data is None else self.context.open(device.data),
            meta=None if device.meta is None else self.context.open(device.meta),
            in_sync=device.data is not None and index not in self.target.rebuild,
            write_mostly=index in self.target.write_mostly,
        )

    def _make_level(self) -> Level:
        target, count = self.target, len(self._members)
        length, chunk = self.context.length, target.chunk
        match target.kind.level:
            case 0:
                return StripesLevel(self._members, length, chunk)
            case 1:
                return CopiesLevel(
                    self._members, Copies(count | 1 << 8, count, length, length), length, length
                )
            case 10:
                places = Copies(self._layout, count, chunk, self._part)
                return CopiesLevel(self._members, places, chunk, places.chunks * chunk)
            case _:
                return ParityLevel(self._members, target.kind.value, length, chunk)

    def _read_metadata(self) -> None:
        """Believe the freshest superblock, as far as the table does not say otherwise."""
        if not any(member.meta for member in self._members):
            if self.target.rebuild:
                raise fault(errno.EINVAL)
            return
        if self.target.sync is Sync.SYNC:
            return
        found: dict[int, SuperBlock] = {}
        new: set[int] = set()
        for member in self._members:
            if member.meta is None:
                continue
            try:
                block = SuperBlock.decode(member.meta.read(0, 1))
            except OSError:
                member.faulty, member.in_sync = True, False
                continue
            if block is None or member.index in self.target.rebuild:
                new.add(member.index)
            else:
                found[member.index] = block
        if found:
            self._believe(found, new)

    def _believe(self, found: dict[int, SuperBlock], new: set[int]) -> None:
        freshest = max(found.values(), key=lambda block: block.events)
        self._check_same(freshest)
        rebuilds = {member.index for member in self._members if member.data and not member.in_sync}
        if new and len(new) != len(rebuilds):
            raise FormatError("a device without a superblock in a set that has them; name it in rebuild", 0)
        self._fresh = False
        self._events = freshest.events or 1
        if self.target.sync is not Sync.NOSYNC:
            self._resync_offset = freshest.resync_offset
        if self.target.rebuild:
            self._resync_offset = DONE
        for index, block in found.items():
            member = self._members[index]
            if block.position != index and self.target.kind.level != 1:
                raise FormatError(f"device {index} is device {block.position} of its set", 12)
            member.offset = block.data_offset
            if freshest.failed >> block.position & 1 or block.recovery_offset != DONE:
                member.in_sync = False
        if self._resync_offset == DONE and self.target.sync is None and self._dirty(found):
            self._resync_offset = 0

    def _check_same(self, block: SuperBlock) -> None:
        """Refuse a set that is another one than the table's: the kernel would change it."""
        table: tuple[int, ...] = (len(self._members), self._level_number, self._layout, self.target.chunk)
        there: tuple[int, ...] = (block.devices, block.level, block.layout, block.chunk)
        if block.reshaping:
            raise FormatError("the set is being reshaped, which is not modelled", 60)
        if self.target.kind.level == 1:
            table, there = table[:2], there[:2]
        if table != there:
            words = "devices, level, layout and chunk"
            raise FormatError(
                f"the superblock tells {words} {there}, the table {table}; changing that is not modelled", 8
            )

    def _dirty(self, found: Iterable[int]) -> bool:
        """Whether a bitmap has a bit set: the set was not shut down after a write."""
        for index in found:
            meta = self._members[index].meta
            assert meta is not None
            with suppress(OSError):
                head = BitmapSuper.decode(meta.read(BITMAP_AT // SECTOR, 1))
                if head is not None and any(self._bits(meta, head)):
                    return True
        return False

    def _bits(self, meta: BlockDevice, head: BitmapSuper) -> bytearray:
        """Return the bytes of the bitmap's bits.

        Raises:
            FormatError: They do not fit the device.
        """
        bits = -(-head.sync_sectors * SECTOR // head.region_bytes)
        end = BITMAP_AT + BITMAP_BYTES + -(-bits // 8)
        if end > meta.sectors * SECTOR:
            raise FormatError(f"a raid bitmap of {bits} bits, which end behind the device", BITMAP_AT)
        data = meta.read(BITMAP_AT // SECTOR, -(-(end - BITMAP_AT) // SECTOR))
        data = data[BITMAP_BYTES : end - BITMAP_AT]
        if bits % 8:
            data[-1] &= (1 << bits % 8) - 1
        return data

    # -- metadata ----------------------------------------------------------------------------------------------------

    @property
    def _keeps(self) -> bool:
        """Whether the set has metadata that it writes; level 0 does not."""
        metas = any(member.meta for member in self._members)
        return metas and bool(self.target.kind.level) and not self.context.readonly

    def _store(self) -> None:
        """Write the superblock of every device that works, with a higher count."""
        if not self._keeps:
            return
        self._events += 1
        failed = sum(1 << member.index for member in self._members if not member.there)
        for member in self._members:
            if member.meta is None or not member.there:
                continue
            block = SuperBlock(
                devices=len(self._members),
                position=member.index,
                events=self._events,
                failed=failed,
                recovery_offset=member.recovery_offset,
                resync_offset=self._resync_offset,
                level=self._level_number,
                layout=self._layout,
                chunk=self.target.chunk,
                array_sectors=self._level.sectors,
                data_offset=member.offset,
                sectors=self._part,
            )
            data = block.encode().ljust(member.meta.block_size, b"\0")
            with suppress(OSError):
                member.meta.write(0, memoryview(data), SYNC | FUA)

    def _new_bitmaps(self) -> None:
        """Write an empty bitmap to each metadata device, as for a new set."""
        sectors = self._level.sync_sectors
        region = self.target.region_size or max(
            _DEFAULT_REGION, 1 << max(0, sectors.bit_length() - _LEAST_REGIONS_SHIFT)
        )
        head = BitmapSuper(
            events=self._events,
            sync_sectors=sectors,
            region_bytes=region * SECTOR,
            write_behind=(self.target.max_write_behind or 0) // 2,
        )
        bits = -(-sectors // region)
        size = BITMAP_BYTES + -(-bits // 8)
        for member in self._members:
            if member.meta is not None and member.there:
                block = member.meta.block_size
                data = head.encode().ljust(size + -size % block, b"\0")
                with suppress(OSError):
                    member.meta.write(BITMAP_AT // SECTOR, memoryview(data))

    def _failed(self, member: Member) -> None:
        del member
        self._store()
        self.context.event()

    # -- the table's life --------------------------------------------------------------------------------------------

    def resume(self) -> None:
        """Go live: a new set gets its metadata; devices that failed before a pause are tried again."""
        self._suspended = False
        if self._resumed:
            self._revive()
        elif self._fresh and self._keeps:
            self._new_bitmaps()
            self._store()
        self._resumed = True

    def _revive(self) -> None:
        """Use those devices again whose metadata can be read; their content is to be made anew."""
        for member in self._members:
            if member.faulty and member.meta is not None:
                with suppress(OSError):
                    member.meta.read(0, 1)
                    member.faulty = False

    def postsuspend(self) -> None:
        """Pause."""
        self._suspended = True
        if self._resumed:
            self._store()

    @property
    def areas(self) -> Iterable[Area]:
        """Each device's part; where the data begin is left out, as the kernel does."""
        return [Area(member.data, 0, self._part) for member in self._members if member.data is not None]

    @property
    def discards(self) -> bool:
        """Whether all devices take them; levels with parity do not."""
        able = all(member.data is not None and member.data.discards for member in self._members)
        return able and not self.target.kind.parity

    # -- requests ----------------------------------------------------------------------------------------------------

    def _check_end(self, sector: int, count: int) -> None:
        """Refuse what lies behind the set's last whole chunk, where the kernel lets the device end."""
        if sector + count > self._level.sectors:
            raise fault(errno.EIO)

    def readinto(self, sector: int, buffer: memoryview, flags: int) -> None:
        """Read."""
        self._check_end(sector, len(buffer) // SECTOR)
        self._level.readinto(sector, buffer, flags)

    def write(self, sector: int, data: memoryview, flags: int) -> None:
        """Write."""
        self._check_end(sector, len(data) // SECTOR)
        self._level.write(sector, data, flags)

    def discard(self, sector: int, count: int) -> None:
        """Discard."""
        self._check_end(sector, count)
        self._level.discard(sector, count)

    def flush(self) -> None:
        """Flush every device that works; md only logs a flush that fails."""
        for member in self._members:
            if member.there:
                assert member.data is not None
                with suppress(OSError):
                    member.data.flush()

    # -- background work ---------------------------------------------------------------------------------------------

    @property
    def _action(self) -> SyncAction:
        """What goes on, or would if time passed."""
        if self._frozen:
            return SyncAction.FROZEN
        if self._requested is not None:
            return self._requested
        if not self._resumed or self._suspended:
            return SyncAction.IDLE
        if any(member.there and not member.in_sync for member in self._members):
            return SyncAction.RECOVER
        return SyncAction.IDLE if self._resync_offset == DONE else SyncAction.RESYNC

    def settle(self) -> None:
        """Recover devices, resync the set, or do what a message asked for."""
        if self._suspended or self._frozen or not self.target.kind.level:
            return
        requested, self._requested = self._requested, None
        if requested in {SyncAction.CHECK, SyncAction.REPAIR}:
            repair = requested is SyncAction.REPAIR
            found = self._level.resync(repair=repair)
            self._mismatches = 0 if repair else found
        changed = False
        for member in self._members:
            if member.there and not member.in_sync and self._level.recover(member):
                member.in_sync = changed = True
        if self._resync_offset != DONE:
            self._level.resync(repair=True)
            self._resync_offset, changed, self._mismatches = DONE, True, 0
        if changed:
            self._store()
        if changed or requested is not None:
            self.context.event()

    def message(self, words: list[str]) -> str:
        """Take `idle`, `frozen`, `resync`, `recover`, `check` or `repair`."""
        verb = words[0].lower()
        newer = _NEWER in self.context.features
        if not self.target.kind.level:
            raise fault(errno.EINVAL)
        if newer and self._suspended:
            raise fault(errno.EBUSY)
        if verb in {"idle", "frozen"}:
            self._requested = None
            self._frozen = verb == "frozen" and not newer
            if newer:
                raise fault(errno.EINVAL)
            return ""
        self._frozen = False
        if self._action is not SyncAction.IDLE:
            raise fault(errno.EBUSY)
        if verb not in _ACTIONS:
            raise fault(errno.EINVAL)
        if verb in {"check", "repair"}:
            self._requested = _ACTIONS[verb]
        else:
            self._mismatches = 0
        return ""

    def status(self) -> str:
        """Return kind, a letter for each device, what is in sync, what goes on, mismatches, data offset, journal."""
        action, total = self._action, self._level.sync_sectors
        busy = action is not SyncAction.IDLE
        done = 0 if busy or self._resync_offset != DONE else total
        letters = "".join(self._letter(member, action) for member in self._members)
        offset = self._members[0].offset
        return f"{self._name} {len(self._members)} {letters} {done}/{total} {action} {self._mismatches} {offset} -"

    @property
    def _name(self) -> str:
        """The kind as the kernel finds it again by level and layout (get_raid_type_by_ll)."""
        if self.target.kind.level != 10:
            return self.target.kind.value
        form = self.target.raid10_format or Raid10Format.NEAR
        return "raid10" if form is Raid10Format.NEAR else f"raid10_{form}"

    def _letter(self, member: Member, action: SyncAction) -> DeviceState:
        if member.data is None:
            return DeviceState.MISSING
        if member.faulty:
            return DeviceState.FAILED
        if action is SyncAction.RESYNC or not member.in_sync:
            return DeviceState.NOT_IN_SYNC
        return DeviceState.IN_SYNC


MODEL = _Raid
