"""What a differential script cannot draw: the schedule on a real clock, chance, and a buffer of 4 MiB."""

from __future__ import annotations

import errno
import time

import pytest

from dmcore.kernel.block import BlockFile
from dmcore.model.stores import MemoryStore
from dmcore.table import Table
from dmcore.volume import open_volume

pytestmark = pytest.mark.dm(needs="flakey")


def outcome(request, *args):
    try:
        return request(*args)
    except OSError as error:
        return error.errno


def test_the_schedule_is_the_kernels(lab):
    """Up 1 s, down 1 s: asked in the middle of each half second, on the wall here and on the clock there."""
    text = f"0 64 flakey {lab.refs[0]} 0 1 1 1 error_writes"
    store = MemoryStore(1 << 20, word=str(lab.refs[0]))
    moments = (0.5, 1.5, 2.5, 3.5)
    with open_volume(text, {store.word: store}, features=lab.features) as volume:
        expected = []
        for moment in moments:
            volume.clock.advance(int(moment * 1000) - volume.clock.now)
            expected.append(outcome(volume.write, 0, bytes(512)))
        volume.device.suspend()
    assert expected == [None, errno.EIO, None, errno.EIO]
    with lab.device(Table.parse(text)) as device, BlockFile(device.path) as disk:
        begun = time.monotonic()
        found = []
        for moment in moments:
            time.sleep(max(0.0, begun + moment - time.monotonic()))
            found.append(outcome(disk.write, 0, bytes(512)))
            late = time.monotonic() - begun - moment
            if late > 0.3:
                pytest.skip(f"this machine is too busy: {late:.1f} s late")
    assert found == expected


def test_random_corruption_changes_one_byte_as_often_as_here(lab):
    text = f"0 64 flakey {lab.refs[0]} 0 0 1 2 random_write_corrupt 500000000"
    lab.supports(Table.parse(text))
    store = MemoryStore(1 << 20, word=str(lab.refs[0]))

    def hits(write, read):
        hit = 0
        for _ in range(200):
            write(0, bytes(4096))
            changed = [byte for byte in read(0, 4096) if byte]
            assert len(changed) <= 1
            hit += bool(changed)
        return hit

    with open_volume(text, {store.word: store}, features=lab.features) as volume:
        here = hits(volume.write, volume.read)
    with lab.device(Table.parse(text)) as device, BlockFile(device.path) as disk:
        there = hits(disk.write, disk.read)
    assert 60 <= here <= 140
    assert 60 <= there <= 140


def test_reads_above_a_dm_device_are_corrupted_on_every_kernel(lab):
    """Above a loop device kernels up to 6.1 leave them alone; `features` says so to the model."""
    flakey = "0 64 flakey {} 0 0 1 5 corrupt_bio_byte 3 r 165 0"
    store = MemoryStore(1 << 20, word=str(lab.refs[0]))
    for stack in (flakey.format(store.word), f"low: 0 64 linear {store.word} 8\ntop: {flakey.format('low')}"):
        with open_volume(stack, {store.word: store}, features=lab.features) as volume:
            here = volume.read(0, 4096)
        low = Table.parse(f"0 64 linear {store.word} 8")
        with lab.device(low) as below:
            table = stack.splitlines()[-1].removeprefix("top: ").replace(" low ", f" {below.ref} ")
            with lab.device(Table.parse(table)) as device, BlockFile(device.path) as disk:
                assert disk.read(0, 4096) == here
    assert here[2] == 165
