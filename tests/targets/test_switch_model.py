"""The models of switch and unstriped: what messages do, and the end of a device."""

from __future__ import annotations

import pytest

from dmcore.model.stores import MemoryStore
from dmcore.volume import open_volume


def _switch(paths: int, region: int, length: int):
    stores = {f"p{index}": MemoryStore(length * 512, word=f"p{index}") for index in range(paths)}
    for index, store in enumerate(stores.values()):
        store.write(0, memoryview(bytes([index]) * length * 512))
    words = " ".join(f"{name} 0" for name in stores)
    return open_volume(f"0 {length} switch {paths} {region} 0 {words}", stores)


def _paths(volume, region: int) -> list[int]:
    return [volume.read(at, 512)[0] for at in range(0, volume.size, region * 512)]


@pytest.mark.parametrize(
    ("message", "paths"),
    [
        ("set_region_mappings", [0, 1, 2, 0, 1, 2, 0]),
        ("SET_REGION_MAPPINGS 0:2 :1 :0", [2, 1, 0, 0, 1, 2, 0]),
        ("set_region_mappings :2", [0, 2, 2, 0, 1, 2, 0]),
        ("set_region_mappings 0:0 :2 R2,5", [0, 2, 0, 2, 0, 2, 0]),
        ("set_region_mappings 3:1 r1,3", [0, 1, 2, 1, 1, 1, 1]),
        ("set_region_mappings 10000000000000006:1", [0, 1, 2, 0, 1, 2, 1]),
    ],
)
def test_messages_change_where_regions_go(message, paths):
    with _switch(3, 3, 20) as volume:
        assert volume.message(message) == ""
        assert _paths(volume, 3) == paths


@pytest.mark.parametrize(
    "step",
    ["7:0", "0:3", "0", ":", "0:", "R0,1", "R8,1", "R1,7", "R,1", "R1,", "R1", "x:1", "0:0x1", "1:1:1"],
)
def test_wrong_steps_are_refused_and_those_before_stay(step):
    with _switch(3, 3, 20) as volume:
        with pytest.raises(OSError, match="Invalid argument"):
            volume.message(f"set_region_mappings 0:1 {step}")
        assert _paths(volume, 3) == [1, 1, 2, 0, 1, 2, 0]
        with pytest.raises(OSError, match="Invalid argument"):
            volume.message("nonsense")


def test_unstriped_puts_a_leg_together_again():
    legs = {name: MemoryStore(32 * 512, word=name) for name in ("a", "b", "c")}
    striped = {"whole": open_volume("0 96 striped 3 4 a 0 b 0 c 0", legs)}
    striped["whole"].write(0, b"".join(bytes([number]) * 512 for number in range(96)))
    for index, store in enumerate(legs.values()):
        with open_volume(f"0 32 unstriped 3 4 {index} whole 0", striped) as volume:
            assert volume.read(0, volume.size) == store.read(0, 32)


def test_unstriped_fails_behind_the_end_of_the_device():
    store = {"d": MemoryStore(64 * 512, word="d")}
    with open_volume("0 48 unstriped 2 8 0 d 0", store) as volume:
        volume.write(0, b"x" * 32 * 512)
        for request in (lambda: volume.read(32 * 512, 512), lambda: volume.write(0, bytes(48 * 512))):
            with pytest.raises(OSError, match="Input/output"):
                request()
        assert volume.read(0, 512) == bytes(512)
