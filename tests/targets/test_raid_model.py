"""The model of raid by itself."""

from __future__ import annotations

import itertools
from random import Random

import pytest

from dmcore.errors import DmError, FormatError, Unsupported
from dmcore.model.stores import MemoryStore
from dmcore.targets.raid import RaidType, SyncAction
from dmcore.volume import open_volume

PART = 64
PARITY = [kind for kind in RaidType if kind.parity]
TENS = [
    (count, copies, form) for count, copies in ((4, 2), (3, 2), (5, 4)) for form in ("near", "far", "offset")
]


def _name(index: int) -> str:
    return f"d{index}"


def _table(kind: str, length: int, count: int, words: str = "8", missing=(), *, metas=False) -> str:
    """Return a table with the names of devices in braces."""

    def pair(index: int) -> str:
        if index in missing:
            return "- -"
        return f"{{m{index}}} {{d{index}}}" if metas else f"- {{d{index}}}"

    parts = " ".join(map(pair, range(count)))
    return f"0 {length} raid {kind} {len(words.split())} {words} {count} {parts}"


def _length(kind: RaidType, count: int, copies: int = 2, part: int = PART) -> int:
    if kind.level == 1:
        return part
    return part * count // copies if kind.level == 10 else part * (count - kind.parity)


class Alone:
    """Stores for a model without a kernel."""

    def __init__(self, count: int, part: int = PART) -> None:
        self.stores = {f"d{index}": MemoryStore(part * 512, word=f"d{index}") for index in range(count)}
        self.stores |= {f"m{index}": MemoryStore(64 * 512, word=f"m{index}") for index in range(count)}

    def open(self, table: str):
        return open_volume(table.format(**{name: name for name in self.stores}), self.stores)


class Broken(MemoryStore):
    """A disk of which sectors cannot be read, or written."""

    def __init__(self, size: int, word: str) -> None:
        super().__init__(size, word=word)
        self.unread: set[int] = set()
        self.unwritten: set[int] = set()

    def readinto(self, sector, buffer, flags=0):
        if self.unread & set(range(sector, sector + len(buffer) // 512)):
            raise OSError(5, "unread")
        super().readinto(sector, buffer, flags)

    def write(self, sector, data, flags=0):
        touched = set(range(sector, sector + len(data) // 512))
        if self.unwritten & touched:
            raise OSError(5, "unwritten")
        self.unread -= touched
        super().write(sector, data, flags)


def _scribble(volume, length: int, seed: int, content: bytearray | None = None) -> bytearray:
    """Write all of it, then pieces here and there; return what should be read."""
    random = Random(seed)
    content = content or bytearray(random.randbytes(length * 512))
    volume.write(0, content)
    for _ in range(8):
        first = random.randrange(length)
        count = random.randint(1, min(40, length - first))
        data = random.randbytes(count * 512)
        volume.write(first * 512, data)
        content[first * 512 : first * 512 + len(data)] = data
    return content


@pytest.mark.parametrize("kind", PARITY, ids=str)
@pytest.mark.parametrize("more", [1, 2])
def test_everything_is_read_without_any_devices_that_parity_stands_for(kind, more):
    count = kind.parity + 1 + more
    length = _length(kind, count)
    alone = Alone(count)
    with alone.open(_table(kind, length, count)) as volume:
        content = _scribble(volume, length, count)
        volume.settle()
        volume.message("check")
        volume.settle()
        assert volume.status()[0].mismatches == 0
    for lost in range(kind.parity + 1):
        for missing in itertools.combinations(range(count), lost):
            with alone.open(_table(kind, length, count, missing=missing)) as volume:
                assert volume.read(0, length * 512) == content, missing
    with pytest.raises(OSError, match="Invalid argument"):
        alone.open(_table(kind, length, count, missing=range(kind.parity + 1)))


@pytest.mark.parametrize("kind", PARITY, ids=str)
def test_writes_without_a_device_are_read_with_it_made_anew(kind):
    count = kind.parity + 3
    length = _length(kind, count)
    alone = Alone(count)
    for lost in range(0, count, 2):
        table = _table(kind, length, count, missing=[lost])
        with alone.open(table) as volume:
            content = _scribble(volume, length, lost)
            assert volume.read(0, len(content)) == content


@pytest.mark.parametrize(("count", "copies", "form"), TENS)
def test_level_10_is_read_from_any_copy(count, copies, form):
    length = _length(RaidType.RAID10, count, copies)
    words = f"8 raid10_copies {copies} raid10_format {form}"
    alone = Alone(count)
    with alone.open(_table("raid10", length, count, words)) as volume:
        content = _scribble(volume, length, count)
    for lost in range(copies):
        for missing in itertools.combinations(range(count), lost):
            with alone.open(_table("raid10", length, count, words, missing)) as volume:
                assert volume.read(0, length * 512) == content


def _broken(kind: str, length: int, count: int, words: str = "8"):
    stores = {_name(index): Broken(PART * 512, _name(index)) for index in range(count)}
    table = _table(kind, length, count, words).format(**{name: name for name in stores})
    return stores, open_volume(table, stores)


@pytest.mark.parametrize(("kind", "count"), [("raid1", 3), ("raid5_ls", 3), ("raid6_nc", 5), ("raid10", 4)])
def test_what_cannot_be_read_is_computed_and_written_again(kind, count):
    length = _length(RaidType(kind), count)
    stores, volume = _broken(kind, length, count, "0" if kind == "raid1" else "8")
    with volume:
        content = _scribble(volume, length, 1)
        volume.settle()
        for name in stores:
            stores[name].unread = {3, 40}
            assert volume.read(0, len(content)) == content
            volume.message("check")
            volume.settle()
        assert set(volume.status_text().split()[5]) == {"A"}


@pytest.mark.parametrize(
    ("kind", "count", "spare"), [("raid1", 3, 2), ("raid4", 3, 1), ("raid6_zr", 5, 2), ("raid10", 4, 1)]
)
def test_a_device_that_cannot_be_written_fails_and_too_many_fail_the_write(kind, count, spare):
    length = _length(RaidType(kind), count)
    stores, volume = _broken(kind, length, count, "0" if kind == "raid1" else "8")
    with volume:
        volume.settle()
        for index in range(spare):
            stores[_name(index)].unwritten = set(range(PART))
            content = _scribble(volume, length, index)
            assert volume.read(0, len(content)) == content
            assert volume.status_text().split()[5] == "D" * (index + 1) + "A" * (count - index - 1)
        for store in stores.values():
            store.unwritten = set(range(PART))
        with pytest.raises(OSError, match="Input/output"):
            volume.write(0, bytes(8 * 512))


@pytest.mark.parametrize(("kind", "count"), [("raid1", 2), ("raid5_ra", 4), ("raid6_la_6", 4), ("raid10", 4)])
def test_a_check_counts_and_a_repair_mends(kind, count):
    length = _length(RaidType(kind), count)
    alone = Alone(count)
    with alone.open(_table(kind, length, count, "0" if kind == "raid1" else "8")) as volume:
        _scribble(volume, length, 1)
        volume.settle()
        alone.stores["d1"].write(17, memoryview(bytes(512)))
        for message, found in (("check", True), ("repair", False), ("check", False)):
            volume.message(message)
            volume.settle()
            assert bool(volume.status()[0].mismatches) is found, message
        with pytest.raises(OSError, match="Invalid argument"):
            volume.message("nonsense")


@pytest.mark.parametrize(("kind", "count"), [("raid1", 2), ("raid5_n", 3), ("raid6_nr", 5), ("raid10", 4)])
def test_metadata_tell_what_failed_and_rebuild_makes_it_anew(kind, count):
    length = _length(RaidType(kind), count)
    words = "0" if kind == "raid1" else "8"
    alone = Alone(count)
    table = _table(kind, length, count, words, metas=True)
    with alone.open(table) as volume:
        assert volume.status()[0].action is SyncAction.RESYNC
        content = _scribble(volume, length, 1)
        volume.settle()
        assert volume.status()[0].in_sync
    with alone.open(table) as volume:
        assert volume.status()[0].in_sync
    alone.stores["d1"].discard(0, PART)
    alone.stores["m1"].discard(0, 64)
    with pytest.raises(FormatError, match="rebuild"):
        alone.open(table)
    with alone.open(_table(kind, length, count, words + " rebuild 1", metas=True)) as volume:
        assert volume.status()[0].action is SyncAction.RECOVER
        assert volume.read(0, len(content)) == content
        volume.settle()
        assert volume.status()[0].in_sync
        volume.message("check")
        volume.settle()
        assert volume.status()[0].mismatches == 0
    with alone.open(table) as volume:
        assert volume.status()[0].in_sync
        assert volume.read(0, len(content)) == content


def test_metadata_of_another_set_are_refused():
    alone = Alone(4)
    with alone.open(_table("raid5_ls", 128, 3, metas=True)):
        pass
    for table in (
        _table("raid5_ra", 128, 3, metas=True),
        _table("raid5_ls", 128, 3, "16", metas=True),
        _table("raid6_zr", 128, 4, metas=True),
    ):
        with pytest.raises(FormatError):
            alone.open(table)
    with pytest.raises(Unsupported):
        alone.open(_table("raid5_ls", 128, 3, "8 delta_disks 1"))


def test_damaged_metadata_are_an_error_and_nothing_worse():
    random = Random(3)
    alone = Alone(3)
    table = _table("raid5_ls", 128, 3, metas=True)
    with alone.open(table):
        pass
    whole = {name: bytes(alone.stores[name].read(0, 16)) for name in ("m0", "m1", "m2")}
    for _ in range(200):
        for name, data in whole.items():
            damaged = bytearray(data)
            for _ in range(random.randint(0, 3)):
                damaged[random.choice([random.randrange(160), 4096 + random.randrange(80)])] = (
                    random.randrange(256)
                )
            alone.stores[name].write(0, memoryview(damaged))
        try:
            with alone.open(table) as volume:
                volume.read(0, 4096)
        except (OSError, DmError):
            pass
