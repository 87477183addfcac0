"""Scripts at which generated runs once found kernel and model to differ, each as small as it could be made."""

from __future__ import annotations

import pytest

from pytest_dm.differential.rules.cache import formatted
from pytest_dm.differential.setup import Disk
from pytest_dm.differential.steps import Discard, Read, Reload

pytestmark = pytest.mark.dm
CRYPT = f"low: 0 96 crypt aes-cbc-null {'07' * 16} 0 a 0 1 sector_size:4096\n"


def test_a_discard_of_a_cache_without_passdown_is_cut_at_its_own_blocks(dm_pair):
    """So that what is behind the last whole block is a discard of its own, and goes to the origin."""
    metadata = Disk(512, patches=formatted((), 2, 392))
    text = "top: 0 392 cache meta fast slow 64 3 metadata2 passthrough no_discard_passdown smq 0"
    dm_pair.run(text, [Discard(332, 60), Read(0, 392)], disks={"meta": metadata, "fast": 256, "slow": 392})


@pytest.mark.parametrize(
    "line",
    [
        "0 96 switch 2 16 0 b 7 low 0",
        "0 96 switch 2 16 0 b 8 low 0",
        "0 96 striped 3 4 b 0 low 0 low 32",
        "0 24 striped 2 4 b 0 low 0",
        "0 16 linear b 7\n16 16 linear low 0",
    ],
)
def test_parts_lie_at_the_largest_block_of_a_lines_devices(dm_pair, line):
    dm_pair.run(f"{CRYPT}top: {line}".replace("\n16", "\ntop: 16"), [Read(0, 24)], disks={"a": 160, "b": 160})


@pytest.mark.parametrize("mode", ["B", "J", "D"])
def test_a_reloaded_integrity_device_reads_its_superblock_when_it_goes_live(dm_pair, mode):
    """It was loaded while the table before was live, whose bitmap said which tags may be wrong."""
    text = f"top: 0 64 integrity disk 0 - {mode} 2 commit_time:3600000 internal_hash:crc32c"
    dm_pair.run(text, [Reload(), Read(0, 64)], disks={"disk": Disk(4096, solid=True)})
