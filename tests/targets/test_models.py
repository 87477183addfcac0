"""Models against the kernel: the same tables over the same bytes, the same requests, the same outcomes and disks."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dmcore.kernel.block import BlockFile
from dmcore.model.stores import MemoryStore
from dmcore.volume import open_volume

pytestmark = pytest.mark.dm
LENGTH = 96
TABLES = [
    "0 96 linear {0} 5",
    "0 40 linear {0} 100\n40 8 zero\n48 8 error\n56 40 linear {1} 3",
    "0 96 striped 2 3 {0} 7 {1} 0",
    "0 96 striped 3 8 {0} 0 {1} 16 {0} 512",
    "0 8 error\n8 88 striped 1 11 {1} 9",
    "0 96 unstriped 3 8 1 {0} 5",
    "0 40 unstriped 2 8 0 {1} 0\n40 56 linear {0} 7",
    "0 96 switch 2 8 0 {0} 3 {1} 0",
]
_OPS = st.tuples(
    st.sampled_from(["read", "write", "flush", "discard", "write_zeroes"]),
    st.integers(0, LENGTH - 1),
    st.integers(1, LENGTH),
    st.integers(1, 255),
)


def _outcome(disk, op, sector, count, byte):
    """Do one request; return what came of it: data, or the errno."""
    offset, length = sector * 512, min(count, LENGTH - sector) * 512
    try:
        if op == "read":
            return disk.read(offset, length)
        if op == "write":
            return disk.write(offset, bytes([byte]) * length)
        if op == "flush":
            return disk.flush()
        return getattr(disk, op)(offset, length)
    except OSError as error:
        return error.errno


@pytest.mark.parametrize("text", TABLES)
def test_model_and_kernel_agree(lab, text):
    words = [ref.name for ref in lab.refs]
    table = text.format(*words)

    @settings(max_examples=15, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(st.lists(_OPS, min_size=1, max_size=12))
    def check(script):
        lab.wipe()
        stores = [
            MemoryStore(disk.size, word=word, granularity=4096)
            for disk, word in zip(lab.disks, words, strict=True)
        ]
        from dmcore.table import Table

        with (
            lab.device(Table.parse(table)) as device,
            BlockFile(device.path) as disk,
            open_volume(table, dict(zip(words, stores, strict=True)), features=lab.features) as volume,
        ):
            for step in script:
                assert _outcome(volume, *step) == _outcome(disk, *step), step
            assert volume.table_text() == device.table_text().rstrip()
            assert volume.status() == device.status()
        for number, store in enumerate(stores):
            with lab.disk(number) as below:
                assert below.read(0, 1024 * 512) == store.read(0, 1024), f"disk {number}"

    check()
