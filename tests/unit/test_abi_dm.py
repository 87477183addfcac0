"""struct dm_ioctl and its payloads: bytes of real kernels, round trips, and replies that are torn or lie."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dmcore.abi.devt import DevT
from dmcore.abi.dm import (
    CLIENT_VERSION,
    HEADER_SIZE,
    Command,
    DeviceEntry,
    DeviceInfo,
    DmFlag,
    DmIoctl,
    TableLine,
)
from dmcore.abi.dm_records import (
    pack_lines,
    pack_message,
    unpack_deps,
    unpack_lines,
    unpack_names,
    unpack_reply,
    unpack_versions,
)
from dmcore.errors import AbiError, SpecError

DATA = Path(__file__).parent.parent / "data" / "abi"
RELEASES = {"6.1": (4, 47, 0), "6.12": (4, 48, 0), "7.2": (4, 50, 0)}
DM = 254
WALKERS = [unpack_lines, unpack_names, unpack_versions, unpack_deps, unpack_reply]
CAPTURES = sorted(DATA.glob("*/dm_*.bin"))
CAP_LINES = [TableLine(0, 8, "zero"), TableLine(8, 16, "error")]
CAP_TABLE = [
    *CAP_LINES,
    TableLine(24, 1000, "dust", "7:0 0 512"),
    TableLine(1024, 512, "striped", "2 8 7:0 1024 7:0 1536"),
]
CAP_STATUS = [
    *CAP_LINES,
    TableLine(24, 1000, "dust", "7:0 bypass verbose"),
    TableLine(1024, 512, "striped", "2 7:0 7:0 1 AA"),
]

U32 = st.integers(0, 2**32 - 1)
U64 = st.integers(0, 2**64 - 1)


def text(most, least=0):
    """Any bytes without NUL that fit, as they come out of the kernel."""
    raw = st.binary(min_size=least, max_size=most).filter(lambda value: b"\0" not in value)
    return raw.map(lambda value: value.decode("utf-8", "surrogateescape"))


headers = st.builds(
    DmIoctl,
    flags=U32,
    name=text(127),
    uuid=text(128),
    dev=U64,
    event_nr=U32,
    target_count=U32,
    open_count=st.integers(-(2**31), 2**31 - 1),
    data_size=st.integers(0, HEADER_SIZE),
    data_start=U32,
    version=st.tuples(U32, U32, U32),
)
lines = st.builds(TableLine, U64, U64, text(15, 1), text(40))


@pytest.fixture(params=sorted(RELEASES))
def capture(request):
    def load(label):
        data = (DATA / request.param / f"dm_{label}.bin").read_bytes()
        return DmIoctl.unpack(data), data

    load.version = RELEASES[request.param]
    return load


def test_captured_version(capture):
    assert capture("version")[0].version == capture.version


def test_captured_device_states(capture):
    created = DeviceInfo(capture("create")[0])
    assert (created.name, created.uuid, created.dev) == ("cap", "CAP-1", DevT(DM, 0))
    assert not any((created.live, created.inactive, created.suspended, created.readonly))
    resumed = DeviceInfo(capture("resume")[0])
    assert (resumed.live, resumed.uevent_generated, resumed.target_count, resumed.open_count) == (
        True,
        True,
        4,
        0,
    )
    suspended = DeviceInfo(capture("suspend")[0])
    assert (suspended.suspended, suspended.live, suspended.uevent_generated) == (True, True, False)
    odd = DeviceInfo(capture("status_no_table")[0])
    assert (odd.name, odd.uuid, odd.dev) == ("c\u00e4p \udcff", "", DevT(DM, 1))
    assert DeviceInfo(capture("remove")[0]).dev == DevT(0, 0)


def test_captured_lists(capture):
    cap = DeviceEntry("cap", DevT(DM, 0), 0, "CAP-1")
    assert unpack_names(*capture("list_empty")) == []
    assert unpack_names(*capture("list_filtered")) == [cap]
    odd, long = (
        DeviceEntry("c\u00e4p \udcff", DevT(DM, 1), 0, ""),
        DeviceEntry("n" * 127, DevT(DM, 70000), 0, "u" * 128),
    )
    assert unpack_names(*capture("list")) == [cap, odd, long]


def test_captured_tables(capture):
    assert unpack_lines(*capture("table")) == CAP_TABLE
    assert unpack_lines(*capture("status")) == CAP_STATUS
    assert unpack_lines(*capture("table_no_table")) == []
    staged, data = capture("table_inactive")
    assert unpack_lines(staged, data) == CAP_TABLE
    assert staged.flags & DmFlag.INACTIVE_PRESENT
    assert not staged.flags & DmFlag.ACTIVE_PRESENT


def test_captured_dependencies_versions_and_replies(capture):
    assert unpack_deps(*capture("deps")) == (DevT(7, 0),)
    versions = unpack_versions(*capture("versions"))
    assert {"linear", "striped", "error", "zero", "dust", "flakey", "delay", "log-writes"} <= set(versions)
    assert unpack_versions(*capture("target_version")) == {"linear": versions["linear"]}
    assert unpack_reply(*capture("message_reply")) == "61\n"
    assert unpack_reply(*capture("message_silent")) == ""


def test_captured_reply_that_did_not_fit(capture):
    header, data = capture("message_full")
    assert header.flags & DmFlag.BUFFER_FULL
    with pytest.raises(AbiError, match="without an end"):
        unpack_reply(header, data)


def test_captured_refusal_still_has_the_version(capture):
    assert DmIoctl.version_of(capture("refused")[1]) == capture.version


def test_request_numbers():
    assert [command.request for command in Command] == [0xC138FD00 + number for number in range(18)]


def test_a_request_byte_by_byte():
    raw = DmIoctl(DmFlag.READONLY, "n\u00e4\udcff", "u", 0x700, 5, 2, 0, 400, 312).pack()
    assert raw[:48] == struct.pack("=10IQ", 4, 0, 0, 400, 312, 2, 0, 1, 5, 0, 0x700)
    assert raw[48:176] == b"n\xc3\xa4\xff".ljust(128, b"\0")
    assert raw[176:] == b"u".ljust(136, b"\0")
    assert len(raw) == HEADER_SIZE
    assert DmIoctl().version == CLIENT_VERSION == (4, 0, 0)


@given(headers)
def test_headers_round_trip(header):
    assert DmIoctl.unpack(header.pack()) == header


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("name", "n" * 128),
        ("name", "\u00e4" * 64),
        ("uuid", "u" * 129),
        ("name", "a\0b"),
        ("uuid", "\0"),
        ("name", "\ud800"),
    ],
)
def test_text_that_the_kernel_would_cut_is_refused(field, value):
    with pytest.raises(SpecError):
        DmIoctl(**{field: value}).pack()


@given(st.lists(lines, max_size=5))
def test_load_records_are_the_kernels(table):
    payload, count = pack_lines(table)
    assert count == len(table)
    offset = 0
    for line in table:
        start, length, status, step, kind = struct.unpack_from("=QQiI16s", payload, offset)
        params = payload[offset + 40 : payload.index(0, offset + 40)].decode("utf-8", "surrogateescape")
        assert (start, length, status, step % 8, params) == (line.start, line.length, 0, 0, line.params)
        assert kind.rstrip(b"\0").decode("utf-8", "surrogateescape") == line.type
        offset += step
    assert offset == len(payload)


def reply_of(table):
    """The bytes of a status reply: each `next` counts from the first record, as retrieve_status() writes it."""
    payload = bytearray()
    for line in table:
        params = line.params.encode("utf-8", "surrogateescape")
        record = 40 + len(params) + 1
        record += -record % 8
        kind = line.type.encode("utf-8", "surrogateescape")
        payload += struct.pack("=QQiI16s", line.start, line.length, 0, len(payload) + record, kind)
        payload += params.ljust(record - 40, b"\0")
    size = HEADER_SIZE + len(payload)
    return DmIoctl(target_count=len(table), data_size=size).pack() + bytes(payload)


@given(st.lists(lines, max_size=5))
def test_status_records_round_trip(table):
    data = reply_of(table)
    assert unpack_lines(DmIoctl.unpack(data), data) == table


def test_only_the_count_ends_a_status():
    data = reply_of(CAP_TABLE)
    header = DmIoctl(target_count=2, data_size=len(data))
    assert unpack_lines(header, data) == CAP_TABLE[:2]


@pytest.mark.parametrize("count", [5, 1 << 20, 2**32 - 1])
def test_a_count_that_lies_ends_in_an_error(count):
    data = reply_of(CAP_TABLE)
    with pytest.raises(AbiError):
        unpack_lines(DmIoctl(target_count=count, data_size=len(data)), data)


@pytest.mark.parametrize("step", [0, 39, 40])
def test_records_that_do_not_move_forward_end_in_an_error(step):
    data = bytearray(reply_of(CAP_TABLE))
    struct.pack_into("=I", data, HEADER_SIZE + 20, step)
    with pytest.raises(AbiError, match="inside this one"):
        unpack_lines(DmIoctl.unpack(data), data)


@pytest.mark.parametrize("walker", [unpack_names, unpack_versions])
def test_chains_that_turn_in_circles_end_in_an_error(walker):
    record = struct.pack("=QI", 0x700, 4) if walker is unpack_names else struct.pack("=I3I", 4, 1, 2, 3)
    data = DmIoctl(data_size=HEADER_SIZE + 64).pack() + (record + b"name\0").ljust(64, b"\0")
    with pytest.raises(AbiError, match="inside this one"):
        walker(DmIoctl.unpack(data), data)


@pytest.mark.parametrize("path", CAPTURES, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_torn_captures(path):
    """Every prefix of a reply, with and without its size put right, is a value or an AbiError."""
    data = path.read_bytes()
    for size in range(len(data)):
        torn = bytearray(data[:size])
        if size < max(HEADER_SIZE, DmIoctl.unpack(data).data_size):
            with pytest.raises(AbiError):
                DmIoctl.unpack(torn)
        if size >= HEADER_SIZE:
            struct.pack_into("=I", torn, 12, size)
            walk_all(torn)


def walk_all(data):
    """Run every walker; anything but a value or AbiError fails the test."""
    try:
        header = DmIoctl.unpack(data)
    except AbiError:
        return
    for walker in WALKERS:
        try:
            walker(header, data)
        except AbiError:
            continue


@given(st.sampled_from(CAPTURES), st.lists(st.tuples(st.integers(0, 800), st.integers(0, 255)), max_size=6))
def test_captures_with_changed_bytes(path, changes):
    data = bytearray(path.read_bytes())
    for offset, value in changes:
        data[offset % len(data)] = value
    walk_all(data)


@given(
    st.binary(max_size=200),
    st.integers(0, 600),
    U32,
    st.sampled_from([0, DmFlag.DATA_OUT]),
    st.integers(300, 330),
)
def test_hostile_payloads(payload, size, count, flags, start):
    header = DmIoctl(flags, target_count=count, data_size=size, data_start=start)
    walk_all(header.pack() + payload)


@given(text(50, 1).filter(str.strip), U64)
def test_messages(message, sector):
    raw = pack_message(sector, message)
    assert raw == struct.pack("=Q", sector) + message.encode("utf-8", "surrogateescape") + b"\0"


@pytest.mark.parametrize(("sector", "message"), [(0, ""), (0, " \t"), (-1, "a"), (1 << 64, "a"), (0, "a\0b")])
def test_messages_that_mean_nothing(sector, message):
    with pytest.raises(SpecError):
        pack_message(sector, message)


@pytest.mark.parametrize(
    "values",
    [
        (-1, 1, "zero"),
        (0, 1 << 64, "zero"),
        (0, 1, ""),
        (0, 1, "t" * 16),
        (0, 1, "z\0"),
        (0, 1, "zero", "secret\0"),
    ],
)
def test_lines_that_no_record_can_hold(values):
    with pytest.raises(SpecError) as caught:
        TableLine(*values)
    assert "secret" not in str(caught.value)


def test_lines_as_text():
    assert str(TableLine(0, 8, "zero")) == "0 8 zero"
    assert str(TableLine(8, 16, "linear", "7:0 0")) == "8 16 linear 7:0 0"
