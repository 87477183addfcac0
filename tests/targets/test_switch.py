from __future__ import annotations

import errno

import pytest

from dmcore import targets
from dmcore.errors import IoctlError, ParseError, SpecError
from dmcore.ref import Ref
from dmcore.table import Table
from dmcore.target import NO_FEATURES, Leg, NoStatus
from dmcore.targets.switch import Map, Repeat, SetRegionMappings

A, B = Ref("7:0"), Ref("7:1")
TWO = targets.Switch(region=24, paths=(Leg(A), Leg(B, 16)))


@pytest.mark.parametrize(
    "words", ["2 24 0 7:0 0 7:1 16", "02 24 0 7:0 +0 7:1 +16", "4294967298 4294967320 0 7:0 0 7:1 016"]
)
def test_reads_what_the_kernel_reads(words):
    assert Table.parse(f"0 48 switch {words}") == Table.of(TWO, 48)


@pytest.mark.parametrize(
    ("words", "index"),
    [
        ("", 3),
        ("2 24", 5),
        ("0 24 0", 3),
        ("+1 24 0 7:0 0", 3),
        ("1 0 0 7:0 0", 4),
        ("1 24 1 7:0 0", 5),
        ("2 24 0 7:0 0", 6),
        ("1 24 0 7:0 0 7:1 0", 6),
        ("1 24 0 7:0 x", 7),
        ("1 24 0 7:0 18446744073709551616", 7),
    ],
)
def test_refuses_what_the_kernel_refuses_and_names_the_word(words, index):
    with pytest.raises(ParseError) as caught:
        Table.parse(f"0 48 switch {words}")
    assert caught.value.index == index


@pytest.mark.parametrize(
    ("field", "values"),
    [
        ("region", {"region": 0}),
        ("region", {"region": 2**32}),
        ("paths", {"paths": ()}),
        ("paths", {"paths": [Leg(A)]}),
        ("paths[1]", {"paths": (Leg(A), B)}),
    ],
)
def test_refuses_bad_values_and_names_the_field(field, values):
    with pytest.raises(SpecError) as caught:
        targets.Switch(**{"region": 8, "paths": (Leg(A), Leg(B)), **values})
    assert caught.value.field == field


def test_value():
    assert TWO.refs() == (A, B)
    assert TWO.encode(str) == "2 24 0 7:0 0 7:1 16"
    assert TWO.readback(NO_FEATURES) == TWO
    assert [TWO.regions(length) for length in (1, 24, 25, 48)] == [1, 1, 2, 2]
    assert TWO.parse_status("") == NoStatus()
    with pytest.raises(ParseError):
        TWO.parse_status("0")


@pytest.mark.parametrize(
    ("steps", "text"),
    [
        ((), "set_region_mappings"),
        ((Map(1, 26), Map(0), Map(10, 0)), "set_region_mappings 1a:1 :0 0:a"),
        ((Map(1), Repeat(17, 10), Repeat(1, 0)), "set_region_mappings :1 R11,a R1,0"),
    ],
)
def test_messages(steps, text):
    assert SetRegionMappings(steps).encode() == text


def test_a_reply_is_an_error():
    assert SetRegionMappings(()).parse_reply("") is None
    with pytest.raises(ParseError):
        SetRegionMappings(()).parse_reply("done")


@pytest.mark.parametrize(
    ("field", "make"),
    [
        ("path", lambda: Map(-1)),
        ("path", lambda: Map(2**32)),
        ("region", lambda: Map(0, -1)),
        ("region", lambda: Map(0, 2**64)),
        ("cycle", lambda: Repeat(0, 1)),
        ("count", lambda: Repeat(1, -1)),
        ("steps", lambda: SetRegionMappings([Map(1)])),
        ("steps[1]", lambda: SetRegionMappings((Map(1), ":1"))),
    ],
)
def test_refuses_bad_messages(field, make):
    with pytest.raises(SpecError) as caught:
        make()
    assert caught.value.field == field


REGION, LENGTH = 3, 40  # 14 regions, the last of one sector


@pytest.fixture
def switch(lab):
    """A switch over two disks which tell themselves apart, and a function that reads where its regions go."""
    for index in range(2):
        with lab.disk(index) as below:
            below.write(index * 512, bytes([65 + index]) * (LENGTH * 512))
    value = targets.Switch(region=REGION, paths=(Leg(lab.refs[0]), Leg(lab.refs[1], 1)))
    with lab.open(value, LENGTH) as (device, file):
        assert device.table() == Table.of(value, LENGTH)
        assert device.status() == [NoStatus()]

        def goes() -> str:
            data = file.read(0, LENGTH * 512)
            sectors = [chr(data[at]) for at in range(0, len(data), 512)]
            regions = [set(sectors[at : at + REGION]) for at in range(0, LENGTH, REGION)]
            assert all(len(region) == 1 for region in regions)
            return "".join(region.pop() for region in regions)

        yield device, file, goes


@pytest.mark.dm
def test_regions_go_round_at_first_and_where_messages_say_then(switch):
    device, _, goes = switch
    assert goes() == "ABABABABABABAB"
    device.send(SetRegionMappings(()))
    assert goes() == "ABABABABABABAB"
    device.send(SetRegionMappings((Map(0, 1), Map(0), Map(0), Map(1, 13))))
    assert goes() == "AAAAABABABABAB"
    device.send(SetRegionMappings((Map(1),)))
    assert goes() == "ABAAABABABABAB", "a message counts from region 0"


@pytest.mark.dm
def test_repeats(switch):
    device, _, goes = switch
    device.send(SetRegionMappings((Map(0, 0), Repeat(1, 13))))
    assert goes() == "A" * 14
    device.send(SetRegionMappings((Map(1, 0), Map(1), Map(0), Repeat(3, 8), Repeat(1, 3))))
    assert goes() == "BBABBABBABBBBB"
    device.send(SetRegionMappings((Map(0, 12), Repeat(3, 1), Repeat(1, 0))))
    assert goes() == "BBABBABBABBBAB"


@pytest.mark.dm
@pytest.mark.parametrize(
    "bad",
    [Map(0, 14), Map(2, 1), Repeat(3, 1), Repeat(1, 13), Repeat(1, 2**64 - 1)],
    ids=["region", "path", "cycle", "count", "overflow"],
)
def test_steps_before_a_wrong_one_stay_done(switch, bad):
    device, _, goes = switch
    with pytest.raises(IoctlError) as caught:
        device.send(SetRegionMappings((Map(1, 0), Map(0, 1), bad, Map(1, 2))))
    assert caught.value.errno == errno.EINVAL
    assert goes() == "BAABABABABABAB"


@pytest.mark.dm
def test_a_new_table_begins_anew(switch):
    device, _, goes = switch
    device.send(SetRegionMappings((Map(1, 0),)))
    with device.suspended():
        pass
    assert goes() == "BBABABABABABAB"
    device.reload(device.table())
    assert goes() == "ABABABABABABAB"


@pytest.mark.dm
def test_writes_go_where_the_mapping_says(lab, switch):
    device, file, goes = switch
    device.send(SetRegionMappings((Map(1, 2),)))
    file.write(0, b"w" * (LENGTH * 512))
    with lab.disk(0) as first, lab.disk(1) as second:
        assert first.read(6 * 512, 512) == b"A" * 512
        assert second.read(7 * 512, 512) == b"w" * 512
        assert first.read(0, 512) == b"w" * 512
        assert second.read(512, 512) == b"B" * 512
    assert goes() == "w" * 14


@pytest.mark.dm
def test_a_bad_path_fails_and_switching_away_heals(lab):
    with lab.device(targets.Error(), 64) as bad:
        value = targets.Switch(region=8, paths=(Leg(bad.ref), Leg(lab.refs[0])))
        with lab.open(value, 64) as (device, file):
            file.flush()
            with pytest.raises(OSError) as caught:
                file.read(0, 512)
            assert caught.value.errno == errno.EIO
            device.send(SetRegionMappings((Map(1, 0), Repeat(1, 7))))
            assert file.read(0, 64 * 512) == bytes(64 * 512)
