"""What the factory's devices stand on: disks that are given, sizes of fresh ones, and nothing else."""

from __future__ import annotations

import pytest

from dmcore.errors import SpecError

pytestmark = pytest.mark.dm(size="8M")

MIB = 1 << 20


def test_a_size_stands_for_a_fresh_disk_of_that_size(dm):
    assert dm.flakey("4M").size == 4 * MIB
    assert dm.linear(3 * MIB, start=2048).size == 2 * MIB
    logged = dm.log_writes("2M", "6M")
    assert (logged.size, logged.log.size) == (2 * MIB, 6 * MIB)
    cache = dm.cache("4M", "1M")
    assert (cache.size, cache.fast.size) == (4 * MIB, MIB)
    pool = dm.thin_pool("2M")
    assert (pool.size, pool.data.size) == (2 * MIB, 8 * MIB)
    assert dm.thin_pool(dm.loop("4M"), size="2M").size == 2 * MIB
    assert dm.snapshot("2M", cow="1M").cow.size == MIB
    assert [leg.size for leg in dm.mirror(["2M", dm.loop("3M")]).legs] == [2 * MIB, 3 * MIB]
    assert dm.mirror(log="1M").log.size == MIB


@pytest.mark.parametrize(
    ("field", "make"),
    [
        ("lower", lambda dm: dm.flakey("/dev/sda")),
        ("lower", lambda dm: dm.crypt(b"x")),
        ("lower", lambda dm: dm.linear(True)),
        ("lower", lambda dm: dm.dust(-1)),
        ("size", lambda dm: dm.flakey("8M", size="8M")),
        ("size", lambda dm: dm.thin_pool("8M", size="8M")),
        ("log", lambda dm: dm.log_writes(log="many")),
        ("log_size", lambda dm: dm.log_writes(log="8M", log_size="8M")),
        ("fast", lambda dm: dm.cache("8M", object())),
        ("cache_size", lambda dm: dm.writecache("8M", "4M", cache_size="1M")),
        ("cow", lambda dm: dm.snapshot("8M", 3.5)),
        ("legs", lambda dm: dm.mirror("8M")),
        ("legs", lambda dm: dm.raid(legs=["8M", None])),
        ("device", lambda dm: dm.mkfs("8M")),
        ("device", lambda dm: dm.mount(None)),
    ],
)
def test_anything_else_is_refused_by_name_and_nothing_stays(dm, field, make):
    with pytest.raises(SpecError) as caught:
        make(dm)
    assert caught.value.field == field
    assert list(dm.resources()) == []


@pytest.mark.parametrize("_again", range(5))
def test_a_raid_set_may_go_while_legs_fail_that_never_were_in_sync(dm, _again):
    raid = dm.raid("raid6_zr")
    raid.write(0, b"r" * 65536)
    raid.legs[0].fail()
    raid.legs[1].fail()
    assert raid.read(0, 65536) == b"r" * 65536
