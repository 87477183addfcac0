"""dm_pair itself: a wrong model is found, at the right step, and shrunk."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dmcore.stack import Stack
from dmcore.table import Table
from dmcore.volume import open_volume
from pytest_dm.differential.divergence import Divergence
from pytest_dm.differential.setup import Disk, Setup
from pytest_dm.differential.steps import Flush, Message, Read, Write, ZeroOut
from pytest_dm.strategies import scripts

pytestmark = pytest.mark.dm
TEXT = "top: 0 64 linear data 8"


def _one_sector_off(stack, *args, **more):
    wrong = {name: Table.parse(str(table).removesuffix(" 8") + " 9") for name, table in stack.tables.items()}
    return open_volume(Stack(wrong), *args, **more)


def test_names_the_first_step_that_differs(dm_pair):
    dm_pair.run(TEXT, [Flush(), Read(0, 2)], disks={"data": 96})
    dm_pair.opener = _one_sector_off
    with pytest.raises(Divergence) as caught:
        dm_pair.run(TEXT, [Flush(), Write(3, 1), Read(10, 2), Read(0, 64)], disks={"data": 96})
    found = caught.value
    assert (found.number, found.what, found.ranges) == (3, "data", ((10, 2),))
    assert "-> 3. Read(sector=10, count=2, on='top')" in str(found)


def test_tells_disks_that_differ_at_the_end(dm_pair):
    dm_pair.opener = _one_sector_off
    with pytest.raises(Divergence, match="at the end of the script: table of top"):
        dm_pair.run(TEXT, [Write(3, 1)], disks={"data": 96})


def test_the_end_of_a_script_waits_for_no_work_that_no_rule_tells_of(dm_pair):
    """A block that is in the cache twice until the next commit, which is an hour away."""
    text = "top: 0 96 writecache s data cache 4096 4 autocommit_time 3600000 pause_writeback 60000"
    script = [ZeroOut(64, 8), ZeroOut(56, 16)]
    dm_pair.run(text, script, disks={"data": Disk(96, 1), "cache": Disk(2048, solid=True)})


@pytest.mark.parametrize("below", ["switch 1 24 0 data 0", "unstriped 1 24 0 data 0"])
def test_flushes_to_a_device_on_one_that_takes_none(dm_pair, below):
    """Since 6.11 it has the write cache of the disk all the same: the flush is a write to dust's first block."""
    text = f"below: 0 24 {below}\ntop: 0 24 dust below 0 4096"
    script = [Message("enable"), Message("addbadblock 0 1"), Flush(), Write(0, 1), Read(0, 1)]
    dm_pair.run(text, script, disks={"data": 24})


def test_hypothesis_shrinks_a_script(dm_pair):
    dm_pair.opener = _one_sector_off
    setup = Setup.of(TEXT, {"data": 96})

    @dm_pair.settings()
    @given(st.data())
    def check(data):
        dm_pair.run(setup, data.draw(scripts(setup)))

    with pytest.raises(Divergence) as caught:
        check()
    assert len(caught.value.script) <= 1
