"""dm.switch and dm.multipath on a real kernel."""

from __future__ import annotations

import errno
import threading

import pytest

from dmcore.errors import IoctlError, SpecError
from dmcore.targets.multipath import GroupState

KIB = 1024
pytestmark = pytest.mark.dm(size="1M")


def refused(number, action, *args):
    with pytest.raises(OSError) as caught:
        action(*args)
    assert caught.value.errno == number


def test_regions_of_a_switch_go_where_they_are_sent(dm):
    switch = dm.switch(3)
    for number, path in enumerate(switch.paths):
        path.lower.write(0, bytes([number]) * (1 << 20))
    assert switch.mapping == [number % 3 for number in range(16)]
    assert [switch.read(region * 64 * KIB, 512)[0] for region in range(16)] == switch.mapping
    switch.map(0, 2)
    switch.map_all([(region, 1) for region in range(4, 16)])
    assert switch.mapping == [2, 1, 2, 0, *[1] * 12]
    assert [switch.read(region * 64 * KIB, 512)[0] for region in range(16)] == switch.mapping
    switch.paths[1].fail()
    refused(errno.EIO, switch.read, 64 * KIB, 512)
    assert switch.read(0, 512)[0] == 2
    with pytest.raises(SpecError, match="region"):
        switch.map(16, 0)
    with pytest.raises(SpecError, match="path"):
        switch.map_all([(0, 0), (1, 3)])
    assert switch.mapping[0] == 2


def test_paths_fail_and_come_back(dm):
    disk = dm.multipath()
    disk.write(0, b"m" * 4096)
    disk.paths[0].fail()
    for offset in range(0, 64 * KIB, 4096):
        disk.write(offset, b"n" * 4096)
    assert disk.active == (False, True)
    assert disk.lower.read(0, 64 * KIB) == b"n" * 64 * KIB
    disk.fail_path(1)
    refused(errno.EIO, disk.read, 0, 4096)
    disk.paths[0].heal()
    disk.reinstate_path(0)
    assert disk.read(0, 4096) == b"n" * 4096
    assert disk.active == (True, False)
    with pytest.raises(SpecError, match="index"):
        disk.fail_path(2)


def test_io_waits_while_no_path_is_left(dm):
    disk = dm.multipath(queue_if_no_path=True)
    for index in (0, 1):
        disk.fail_path(index)
    waits = threading.Thread(target=disk.write, args=(0, b"q" * 4096))
    waits.start()
    waits.join(0.2)
    assert waits.is_alive()
    disk.reinstate_path(1)
    waits.join(20)
    assert disk.lower.read(0, 4096) == b"q" * 4096
    disk.queue_if_no_path(False)
    disk.fail_path(1)
    refused(errno.EIO, disk.read, 0, 4096)


def test_the_end_lets_no_io_wait(dm):
    ended = []

    def read(disk):
        try:
            disk.read(0, 4096)
        except OSError as error:
            ended.append(error.errno)

    with dm.scope() as scope:
        disk = scope.multipath(queue_if_no_path=True, groups=(1,))
        disk.fail_path(0)
        waits = threading.Thread(target=read, args=(disk,))
        waits.start()
        waits.join(0.2)
        assert waits.is_alive()
    waits.join(20)
    assert ended == [errno.EIO]


def test_groups_take_turns(dm):
    disk = dm.multipath(groups=(1, 2), selector="service-time")
    disk.read(0, 4096)
    disk.switch_group(2)
    disk.write(0, b"g" * 4096)
    assert disk.state.current == 2
    disk.disable_group(2)
    disk.read(0, 4096)
    assert [group.state for group in disk.state.groups] == [GroupState.ACTIVE, GroupState.DISABLED]
    disk.enable_group(2)
    with pytest.raises(SpecError, match="number"):
        disk.switch_group(3)
    with pytest.raises(SpecError, match="selector"):
        dm.multipath(selector="best")


def test_probing_takes_broken_paths_out(dm):
    disk = dm.multipath()
    disk.read(0, 4096)
    disk.paths[1].fail(reads=True)
    try:
        disk.probe_paths()
    except IoctlError as error:
        if error.errno in {errno.ENOTTY, errno.EINVAL}:
            pytest.skip("this kernel does not probe paths")
        raise
    assert disk.active == (True, False)
