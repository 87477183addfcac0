"""The model of multipath: which path a request takes, paths that fail, groups, messages, what waits."""

from __future__ import annotations

import errno

import pytest
from failing import FailingStore

from dmcore.errors import SpecError, Unsupported
from dmcore.model.block import Suspended
from dmcore.volume import open_volume

LENGTH = 64
BIO = "2 queue_mode bio"
RETAINS = frozenset({"multipath.retain_attached_hw_handler"})


class Paths:
    """Disks of their own behind the paths, so that one sees which path was taken."""

    def __init__(self, count: int = 3) -> None:
        self.disks = [FailingStore(LENGTH, word=f"7:{index}") for index in range(count)]
        self.byte = 0

    def open(self, text: str, features=frozenset()):
        devices = {f"d{index}": disk for index, disk in enumerate(self.disks)}
        return open_volume(f"0 {LENGTH} multipath {text}", devices, features=features)

    def taken(self, volume, requests: int) -> str:
        """Return which disk each of some writes came to."""
        seen = ""
        for _ in range(requests):
            self.byte += 1
            volume.write(0, bytes([self.byte]) * 512)
            seen += str([disk.peek(0) for disk in self.disks].index(self.byte))
        return seen


@pytest.fixture
def paths():
    return Paths()


def status(volume) -> str:
    return volume.status_text().split(" ", 3)[3]


def used(volume) -> str:
    return "".join("A" if path.active else "F" for path in volume.status()[0].paths)


def groups(volume) -> str:
    return "".join(group.state for group in volume.status()[0].groups)


def fails(request, *args) -> int:
    with pytest.raises(OSError) as caught:
        request(*args)
    return caught.value.errno


@pytest.mark.parametrize(
    ("group", "taken", "words"),
    [
        ("round-robin 0 3 0 d0 d1 d2", "012012", "0 3 0 7:0 A 0 7:1 A 0 7:2 A 0"),
        ("queue-length 0 3 1 d0 7 d1 1 d2 0", "012012", "0 3 1 7:0 A 0 0 7:1 A 0 0 7:2 A 0 0"),
        ("service-time 0 3 0 d0 d1 d2", "012012", "0 3 2 7:0 A 0 0 1 7:1 A 0 0 1 7:2 A 0 0 1"),
        ("service-time 0 3 2 d0 1 0 d1 1 9 d2 1 9", "121212", "0 3 2 7:0 A 0 0 0 7:1 A 0 0 9 7:2 A 0 0 9"),
        ("io-affinity 0 2 1 d0 2 d1 1", "111111", "0 2 1 7:0 A 0 0 7:1 A 0 0"),
        ("io-affinity 0 2 1 d0 4 d1 2", "111111", "0 2 1 7:0 A 0 6 7:1 A 0 6"),
        (
            "historical-service-time 2 1023 5 3 0 d0 d1 d2",
            "012012",
            "2 1023 5 3 3 7:0 A 0 1022 0 0 7:1 A 0 1022 0 0 7:2 A 0 1022 0 0",
        ),
    ],
)
def test_selectors(paths, group, taken, words):
    with paths.open(f"{BIO} 0 1 1 {group}") as volume:
        assert status(volume).startswith("2 1 0 0 1 1 E ")
        assert paths.taken(volume, 6) == taken
        assert status(volume) == f"2 0 0 0 1 1 A {words}"


def test_the_table_is_printed_with_every_word():
    paths = Paths()
    text = "3 pg_init_retries 4 queue_if_no_path 0 2 2 round-robin 0 1 0 d0 service-time 0 2 0 d1 d2"
    printed = "0 2 2 round-robin 0 1 1 7:0 1 service-time 0 2 2 7:1 1 1 7:2 1 1"
    with paths.open(text) as volume:
        assert volume.table_text() == f"0 64 multipath 3 queue_if_no_path pg_init_retries 4 {printed}"
        volume.message("fail_if_no_path")
        assert volume.table_text() == f"0 64 multipath 2 pg_init_retries 4 {printed}"
        volume.message("switch_group 1")
        assert " 0 2 1 round-robin" in volume.table_text(), "the group in use is printed as the first one"
    with paths.open(f"{BIO} 0 0 0", RETAINS) as volume:
        assert volume.table_text() == "0 64 multipath 3 retain_attached_hw_handler queue_mode bio 0 0 0"
        assert status(volume) == "2 1 0 0 0 0"
        assert fails(volume.read, 0, 512) == errno.EIO
        assert status(volume) == "2 0 0 0 0 0"


def test_a_path_that_fails_is_taken_out_and_the_request_goes_over_the_next(paths):
    with paths.open(f"{BIO} 0 1 1 round-robin 0 3 0 d0 d1 d2") as volume:
        paths.disks[0].fail()
        events = volume.device.event_nr
        assert paths.taken(volume, 4) == "1212"
        assert used(volume) == "FAA"
        assert volume.device.event_nr == events + 1
        paths.disks[0].heal()
        assert paths.taken(volume, 2) == "12", "it does not come back by itself"
        volume.message("REINSTATE_PATH 7:0")
        volume.message("reinstate_path 7:0")
        assert paths.taken(volume, 3) == "012", "round-robin takes it first"
        assert volume.status()[0].paths[0].failures == 1
        for disk in paths.disks:
            disk.fail()
        assert fails(volume.read, 0, 512) == errno.EIO
        assert (used(volume), groups(volume)) == ("FFF", "A")
        assert fails(volume.flush) == errno.EIO
        assert groups(volume) == "E"
        for disk in paths.disks:
            disk.heal()
        volume.message("reinstate_path 7:1")


@pytest.mark.parametrize(
    ("error", "gets"),
    [
        (errno.EIO, "1"),
        (errno.ETIMEDOUT, "1"),
        (errno.ENOSPC, None),
        (errno.ENODATA, None),
        (errno.EILSEQ, None),
    ],
)
def test_errors_of_the_disk_are_no_path_errors(paths, error, gets):
    with paths.open(f"{BIO} 0 1 1 queue-length 0 2 0 d0 d1") as volume:
        paths.disks[0].fail()
        paths.disks[0].error = error
        if gets:
            assert paths.taken(volume, 1) == gets
        else:
            assert fails(volume.write, 0, bytes(512)) == error
        assert used(volume) == ("FA" if gets else "AA")
        paths.disks[0].heal()


def test_requests_without_a_path_wait_if_they_shall(paths):
    with paths.open("1 queue_if_no_path 0 1 1 round-robin 0 1 0 d0") as volume:
        paths.disks[0].fail()
        with pytest.raises(Suspended, match="no path"):
            volume.write(0, bytes(512))
        paths.disks[0].heal()
        with pytest.raises(Suspended, match="no path"):
            volume.write(0, bytes(512))
        volume.device.suspend()
        assert "queue_if_no_path" not in volume.table_text()
        assert fails(volume.message, "fail_if_no_path") == errno.EBUSY
        volume.device.resume()
        assert "queue_if_no_path" in volume.table_text()
        volume.message("fail_if_no_path")
        assert fails(volume.write, 0, bytes(512)) == errno.EIO
        volume.message("queue_if_no_path")
        volume.message("reinstate_path 7:0")
        volume.write(0, bytes(512))


def test_groups(paths):
    text = "0 3 1 round-robin 0 1 0 d0 round-robin 0 1 0 d1 round-robin 0 1 0 d2"
    with paths.open(f"{BIO} {text}") as volume:
        assert groups(volume) == "EEE"
        assert paths.taken(volume, 2) == "00"
        assert groups(volume) == "AEE"
        volume.message("switch_group 2")
        assert (groups(volume), volume.status()[0].current) == ("EEE", 2)
        assert paths.taken(volume, 2) == "11"
        volume.message("disable_group 2")
        assert groups(volume) == "EDE"
        assert paths.taken(volume, 1) == "0"
        for number in (0, 2):
            volume.message(f"fail_path 7:{number}")
        assert paths.taken(volume, 2) == "11", "a disabled group is better than none"
        assert groups(volume) == "EDE"
        volume.message("enable_group 2")
        volume.message("reinstate_path 7:2")
        volume.message("switch_group 3")
        assert paths.taken(volume, 2) == "22"
        volume.message("fail_path 7:2")
        assert paths.taken(volume, 1) == "1"
        volume.message("reinstate_path 7:0")
        assert paths.taken(volume, 1) == "1", "a group is left when it has no path"


def test_extents_are_those_of_any_path(paths):
    paths.disks[1].write(8, memoryview(b"x" * 4096))
    with paths.open(f"{BIO} 0 1 1 round-robin 0 2 0 d0 d1") as volume:
        assert any(first <= 4096 < first + length for first, length in volume.extents())


def test_a_device_in_two_groups_is_failed_in_both(paths):
    with paths.open(f"{BIO} 0 2 9 round-robin 0 2 0 d0 d1 round-robin 0 1 0 d0") as volume:
        volume.message("fail_path 7:0")
        assert used(volume) == "FAF"


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("fail_path", errno.EINVAL),
        ("fail_path 7:9", errno.EINVAL),
        ("fail_path nonsense", errno.ENODEV),
        ("switch_group 2", errno.EINVAL),
        ("switch_group 0", errno.EINVAL),
        ("disable_group x", errno.EINVAL),
        ("enable_group 1 1", errno.EINVAL),
        ("queue_if_no_path 1", errno.EINVAL),
        ("nonsense", errno.EINVAL),
    ],
)
def test_messages_that_are_refused(paths, text, error):
    with paths.open(f"{BIO} 0 1 1 round-robin 0 1 0 d0") as volume:
        assert fails(volume.message, text) == error
        volume.message("disable_group 4294967297")
        assert groups(volume) == "D"


def test_tables_that_are_refused(paths):
    with pytest.raises(Unsupported, match="alua"):
        paths.open("0 1 alua 1 1 round-robin 0 1 0 d0")
    with paths.open("0 1 alua 0 0") as volume:
        assert volume.table_text() == "0 64 multipath 0 1 alua 0 0"
    with pytest.raises(SpecError, match="cpus"):
        paths.open("0 0 1 1 io-affinity 0 2 1 d0 3 d1 2")
    with (
        open_volume("0 64 linear d0 0", {"d0": paths.disks[0]}) as below,
        pytest.raises(SpecError, match="queue_mode bio"),
    ):
        open_volume("0 64 multipath 0 0 1 1 round-robin 0 1 0 b", {"b": below})
