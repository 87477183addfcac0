"""I/O statistics of dm devices, on a kernel."""

from __future__ import annotations

import errno

import pytest

from dmcore.errors import IoctlError
from dmcore.stats import StatsClear, StatsCreate, StatsDelete, StatsList, StatsPrint, StatsRegion, StatsSetAux
from dmcore.targets import Linear

pytestmark = pytest.mark.dm(size="1M")


def test_regions_count_what_is_done_to_them(dm):
    disk = dm.linear()
    send = disk.device.send
    assert send(StatsList()) == ()
    whole = send(StatsCreate(areas=4, program="pytest", aux="all of it"))
    part = send(StatsCreate(start=8, length=24, step=10, precise=True, histogram=(10**9, 2 * 10**9)))
    assert (whole, part) == (0, 1)
    regions = send(StatsList())
    assert regions == (
        StatsRegion(0, 0, 2048, 512, "pytest", "all of it", precise=False, histogram=()),
        StatsRegion(1, 8, 24, 10, "-", "-", precise=True, histogram=(10**9, 2 * 10**9)),
    )
    assert send(StatsList("pytest")) == regions[:1]
    disk.write(4096, b"x" * 4096)
    disk.write(512 * 1024, b"x" * 8192)
    disk.read(4096, 512)
    first, *others = send(StatsPrint(whole))
    assert (first.writes, first.write_sectors, first.reads, first.read_sectors) == (1, 8, 1, 1)
    assert [area.write_sectors for area in others] == [0, 16, 0]
    assert [area.start for area in (first, *others)] == [0, 512, 1024, 1536]
    areas = send(StatsPrint(part))
    assert [(area.start, area.length, area.write_sectors) for area in areas] == [
        (8, 10, 8),
        (18, 10, 0),
        (28, 10, 0),
    ]
    assert areas[0].write_time > 0, "in nanoseconds"
    assert areas[0].histogram == (2, 0, 0)
    disk.swap(Linear(dev=disk.lower.ref))
    assert send(StatsPrint(whole, 2, 1, clear=True))[0].writes == 1, "it lives through a new table"
    assert send(StatsPrint(whole, 2, 1))[0].writes == 0
    assert send(StatsPrint(whole, 0, 1))[0].writes == 1
    send(StatsClear(whole))
    assert send(StatsPrint(whole, 0, 1))[0].writes == 0
    send(StatsSetAux(whole, "with a \\ and blanks"))
    assert send(StatsList())[0].aux == "with a \\ and blanks"
    send(StatsDelete(whole))
    assert [region.region for region in send(StatsList())] == [part]
    assert send(StatsCreate()) == 0, "the lowest free number"


def test_what_is_refused(dm):
    send = dm.zero().device.send
    for message in (StatsDelete(5), StatsClear(5), StatsPrint(5), StatsSetAux(5, "x")):
        with pytest.raises(IoctlError) as caught:
            send(message)
        assert caught.value.errno in {errno.ENOENT, errno.EINVAL}
    with pytest.raises(IoctlError) as caught:
        send(StatsCreate(step=1, length=2**50))
    assert caught.value.errno in {errno.EOVERFLOW, errno.ENOMEM}
    region = send(StatsCreate(step=1, length=2048))
    with pytest.raises(IoctlError) as caught:
        send(StatsPrint(region))
    assert caught.value.errno == errno.ENOBUFS
    assert len(send(StatsPrint(region, 2000))) == 48
    assert send(StatsPrint(region, 5000)) == ()
