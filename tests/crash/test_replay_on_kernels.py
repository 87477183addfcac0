"""A log that the kernel wrote replays to what the device held at every mark."""

from __future__ import annotations

import random

import pytest

from dmcore.formats.log_index import LogIndex
from dmcore.kernel.log_replay import replay

pytestmark = pytest.mark.dm(needs="log-writes")
SIZE = 8 << 20


@pytest.mark.dm(size="8M")
@pytest.mark.parametrize("seed", range(3))
def test_at_every_mark(dm_log_writes, tmp_path, seed):
    rng = random.Random(seed)
    disk = dm_log_writes
    held = {}
    for number in range(12):
        for _ in range(rng.randrange(1, 8)):
            length = rng.choice([512, 4096, 12288, 1 << 20])
            offset = rng.randrange(0, SIZE - length + 1, 512)
            if rng.random() < 0.2:
                disk.discard(offset, length)
            else:
                disk.write(offset, rng.randbytes(length))
        disk.flush()
        disk.mark(f"at-{number}")
        held[f"at-{number}"] = disk.read(0, SIZE)
    disk.stop()
    with LogIndex(disk.log.backing) as index:
        assert index.complete
        begin = 0
        for name, data in held.items():
            end = index.find_mark(name)
            replay(index, tmp_path / "image", start=begin, stop=end)
            begin = end
            with (tmp_path / "image").open("r+b") as file:
                file.truncate(SIZE)
                assert file.read() == data, name
