"""A raid set on a kernel and as a model, over the same devices: what they write, and whether each reads the other's."""

from __future__ import annotations

import itertools
import time
from dataclasses import dataclass, replace
from random import Random

from twins import Twins, twins

from dmcore.formats.raid import BITMAP_AT, BITMAP_BYTES, BitmapSuper, SuperBlock
from dmcore.targets.raid import RaidType

PART, META = 64, 64


@dataclass(frozen=True)
class Shape:
    """A set with metadata devices.

    Attributes:
        words: Its parameters, the chunk first.
        copies: Of level 10.
    """

    kind: RaidType
    count: int
    words: str = "8"
    copies: int = 2

    def __str__(self) -> str:
        return " ".join([self.kind, str(self.count), *self.words.split()[1:]])

    @property
    def length(self) -> int:
        if self.kind.level == 1:
            return PART
        if self.kind.level == 10:
            return PART * self.count // self.copies
        return PART * (self.count - self.kind.parity)

    def table(self, *, missing: tuple[int, ...] = (), more: str = "") -> str:
        """Return the table, with the names of devices in braces."""
        words = [*self.words.split(), *more.split()]
        pairs = ["- -" if index in missing else f"{{m{index}}} {{d{index}}}" for index in range(self.count)]
        return (
            f"0 {self.length} raid {self.kind} {len(words)} {' '.join(words)} {self.count} {' '.join(pairs)}"
        )

    def losses(self) -> list[tuple[int, ...]]:
        """Return all sets of devices that the set can do without."""
        most = {0: 0, 1: self.count - 1, 10: self.copies - 1}.get(self.kind.level, self.kind.parity)
        return list(itertools.combinations(range(self.count), most))


def through(device) -> None:
    """Wait until a set is in sync and nothing goes on, at most 30 seconds."""
    deadline = time.monotonic() + 30
    while True:
        (status,) = device.status()
        if status.in_sync:
            return
        assert time.monotonic() < deadline, f"still {status}"
        time.sleep(0.01)


def scribble(volume, length: int, seed: int, content: bytearray | None = None) -> bytearray:
    """Write all of it, then pieces here and there; return what should be read."""
    random = Random(seed)
    content = content or bytearray(random.randbytes(length * 512))
    volume.write(0, bytes(content))
    for _ in range(12):
        first = random.randrange(length)
        count = random.randint(1, min(length - first, 40))
        content[first * 512 : (first + count) * 512] = random.randbytes(count * 512)
        volume.write(first * 512, bytes(content[first * 512 : (first + count) * 512]))
    return content


def metadata(data: bytes) -> tuple[object, ...]:
    """Return superblock, head and bits of the bitmap, without what counts how often they were written."""
    block, head = SuperBlock.decode(bytearray(data)), BitmapSuper.decode(bytearray(data[BITMAP_AT:]))
    assert block is not None
    if head is None:
        return (replace(block, events=0),)
    bits = -(-head.sync_sectors * 512 // head.region_bytes)
    first = BITMAP_AT + BITMAP_BYTES
    marked = int.from_bytes(data[first : first + -(-bits // 8)], "little") & (
        (1 << bits) - 1
    )  # what is behind is set
    return replace(block, events=0), replace(head, events=0), marked


def pair_of(lab, shape: Shape):
    """Devices for a set: data on one disk, metadata on the other."""
    pieces = {f"d{index}": (0, index * 512, PART) for index in range(shape.count)}
    return twins(lab, **pieces, **{f"m{index}": (1, index * 512, META) for index in range(shape.count)})


def same_bytes(pair: Twins, shape: Shape) -> None:
    """Compare what both wrote below."""
    for index in range(shape.count):
        data, store = pair.bytes(f"d{index}"), pair.stores[f"d{index}"]
        assert data == store.read(0, PART), f"device {index} of {shape}"
        if shape.kind.level:
            store = pair.stores[f"m{index}"]
            kernel, model = metadata(pair.bytes(f"m{index}")), metadata(bytes(store.read(0, META)))
            assert kernel == model, f"metadata {index} of {shape}: {kernel} and {model}"


def check_images(lab, shape: Shape, seed: int = 1) -> None:
    """Kernel and model write the same; each reads what the other wrote, also without the devices it can do without."""
    length, table = shape.length, shape.table()
    lab.wipe()
    with pair_of(lab, shape) as pair:
        with pair.kernel(table) as (device, file), pair.model(table) as volume:
            if shape.kind.level:
                through(device)
                volume.settle()
            content = scribble(file, length, seed)
            assert scribble(volume, length, seed) == content
            texts = [(side.table_text(), side.status_text()) for side in (device, volume)]
            assert texts[0] == texts[1], texts
        same_bytes(pair, shape)
        for missing in shape.losses():
            pair.pull()
            with pair.model(shape.table(missing=missing)) as volume:
                assert volume.read(0, length * 512) == content, f"{shape} without {missing}"
        pair.pull()
        with pair.model(table) as volume:
            if shape.kind.level:
                assert volume.status()[0].in_sync, f"the model believes the kernel's metadata: {shape}"
            content = scribble(volume, length, seed + 100)
        pair.push()
        with pair.kernel(table) as (device, file):
            if shape.kind.level:
                through(device)
                device.message("check")
                _checked(device)
            assert file.read(0, length * 512) == content, f"the kernel reads the model's: {shape}"


def _checked(device) -> None:
    through(device)
    (status,) = device.status()
    assert not status.mismatches
