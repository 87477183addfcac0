from __future__ import annotations

import contextlib
from collections.abc import Iterator

import ground as grounds
import pytest

from dmcore.errors import ParseError, SpecError
from dmcore.ref import Ref
from dmcore.table import Table
from dmcore.target import NO_FEATURES
from dmcore.targets.multipath import (
    FailPath,
    Group,
    GroupState,
    GroupStatus,
    Handler,
    Multipath,
    MultipathStatus,
    Path,
    PathStatus,
    QueueMode,
    Selector,
    SwitchGroup,
)

A, B = Ref("7:0"), Ref("7:1")
RETAINS = frozenset({"multipath.retain_attached_hw_handler"})
ONE = Group((Path(A),))


@pytest.mark.parametrize(
    ("words", "value"),
    [
        ("0 0 0 0", Multipath(groups=())),
        ("0 0 1 1 round-robin 0 1 0 7:0", Multipath(groups=(ONE,))),
        ("0 0 1 1 round-robin 2 a b 1 0 7:0", Multipath(groups=(ONE,))),
        (
            (
                "8 QUEUE_if_no_path retain_attached_hw_handler pg_init_retries 50 pg_init_delay_msecs 0 queue_mode bio"
                " 2 alua 1 2 2 queue-length 0 2 1 7:0 7 7:1 4294967297 service-time 0 1 2 7:1 1 100"
            ),
            Multipath(
                groups=(
                    Group((Path(A, 7), Path(B, 1)), Selector.QUEUE_LENGTH),
                    Group((Path(B, 1, 100),), Selector.SERVICE_TIME),
                ),
                initial=2,
                queue_if_no_path=True,
                retain_attached_hw_handler=True,
                pg_init_retries=50,
                pg_init_delay_msecs=0,
                queue_mode=QueueMode.BIO,
            ),
        ),
        ("2 queue_mode mq 3 emc 1 0 0 0", Multipath(groups=(), handler=Handler("emc", ("1", "0")))),
        (
            "0 0 1 9 historical-service-time 2 1023 5 1 1 7:0 3",
            Multipath(groups=(Group((Path(A, 3),), Selector.HISTORICAL_SERVICE_TIME, 1023, 5),), initial=9),
        ),
        (
            "0 0 1 1 io-affinity 0 2 1 7:0 f 7:1 1,00000000",
            Multipath(groups=(Group((Path(A, cpus=15), Path(B, cpus=1 << 32)), Selector.IO_AFFINITY),)),
        ),
    ],
)
def test_reads_what_the_kernel_reads(words, value):
    assert Table.parse(f"0 8 multipath {words}") == Table.of(value, 8)
    assert Table.parse(str(Table.of(value, 8))) == Table.of(value, 8)


@pytest.mark.parametrize(
    ("words", "index"),
    [
        ("", 3),
        ("9 0 0 0", 3),
        ("2 queue_if_no_path", 4),
        ("1 pg_init_retries 5 0 0 0", 4),
        ("2 pg_init_retries 0 0 0 0", 5),
        ("2 pg_init_retries 51 0 0 0", 5),
        ("2 pg_init_delay_msecs 60001 0 0 0", 5),
        ("2 queue_mode fast 0 0 0", 5),
        ("1 no_partitions 0 0 0", 4),
        ("0 4 alua 0 0", 5),
        ("0 0 1 0 round-robin 0 1 0 7:0", 6),
        ("0 0 0 1", 6),
        ("0 0 2 1 round-robin 0 1 0 7:0", 12),
        ("0 0 0 0 round-robin 0 1 0 7:0", 7),
        ("0 0 1 1 Round-robin 0 1 0 7:0", 7),
        ("0 0 1 1 round-robin 2 x", 9),
        ("0 0 1 1 round-robin 0 0 0", 9),
        ("0 0 1 1 round-robin 0 2 0 7:0", 11),
        ("0 0 1 1 round-robin 0 1 2 7:0 1 1", 11),
        ("0 0 1 1 round-robin 0 1 1 7:0 +1", 12),
        ("0 0 1 1 service-time 0 1 2 7:0 1 101", 13),
        ("0 0 1 1 historical-service-time 1 1024 1 0 7:0", 9),
        ("0 0 1 1 historical-service-time 3 1 1 1 1 0 7:0", 8),
        ("0 0 1 1 io-affinity 0 1 0 7:0", 11),
        ("0 0 1 1 io-affinity 0 1 1 7:0 xy", 12),
    ],
)
def test_refuses_what_the_kernel_refuses_and_names_the_word(words, index):
    with pytest.raises(ParseError) as caught:
        Table.parse(f"0 8 multipath {words}")
    assert caught.value.index == index


@pytest.mark.parametrize(
    ("field", "make"),
    [
        ("dev", lambda: Path("7:0")),
        ("repeat", lambda: Path(A, 2**32)),
        ("throughput", lambda: Path(A, 1, 101)),
        ("throughput", lambda: Path(A, None, 1)),
        ("cpus", lambda: Path(A, cpus=0)),
        ("paths", lambda: Group(())),
        ("paths", lambda: Group([Path(A)])),
        ("paths", lambda: Group((Path(A),) * 1025)),
        ("paths[1]", lambda: Group((Path(A), B))),
        ("paths[1]", lambda: Group((Path(A), Path(B, 1)))),
        ("paths[0]", lambda: Group((Path(A, 1, 1),))),
        ("paths[0]", lambda: Group((Path(A),), Selector.IO_AFFINITY)),
        ("paths[0]", lambda: Group((Path(A, cpus=1),))),
        ("selector", lambda: Group((Path(A),), "round-robin")),
        ("base_weight", lambda: Group((Path(A),), base_weight=1)),
        ("base_weight", lambda: Group((Path(A),), Selector.HISTORICAL_SERVICE_TIME, 1024)),
        ("threshold", lambda: Group((Path(A),), Selector.HISTORICAL_SERVICE_TIME, None, 1)),
        ("name", lambda: Handler("")),
        ("args[0]", lambda: Handler("alua", (1,))),
        ("groups", lambda: Multipath(groups=[ONE])),
        ("groups[0]", lambda: Multipath(groups=(A,))),
        ("initial", lambda: Multipath(groups=(), initial=1)),
        ("initial", lambda: Multipath(groups=(ONE,), initial=0)),
        ("pg_init_retries", lambda: Multipath(groups=(), pg_init_retries=0)),
        ("pg_init_delay_msecs", lambda: Multipath(groups=(), pg_init_delay_msecs=60001)),
        ("queue_mode", lambda: Multipath(groups=(), queue_mode="bio")),
        ("queue_if_no_path", lambda: Multipath(groups=(), queue_if_no_path=1)),
        ("handler", lambda: Multipath(groups=(), handler=Handler("alua"), queue_mode=QueueMode.BIO)),
        ("dev", lambda: FailPath(Ref("sda"))),
        ("group", lambda: SwitchGroup(0)),
    ],
)
def test_refuses_bad_values_and_names_the_field(field, make):
    with pytest.raises(SpecError) as caught:
        make()
    assert caught.value.field == field


def test_readback():
    value = Multipath(
        groups=(
            Group((Path(A, 9), Path(B, 0))),
            Group((Path(A),), Selector.SERVICE_TIME),
            Group((Path(A),), Selector.HISTORICAL_SERVICE_TIME),
        ),
        initial=4,
        queue_mode=QueueMode.BIO,
    )
    printed = (
        "0 0 3 1 round-robin 0 2 1 7:0 1 7:1 0 service-time 0 1 2 7:0 1 1"
        " historical-service-time 2 972 0 1 1 7:0 0"
    )
    assert str(Table.of(value.readback(NO_FEATURES), 8)) == f"0 8 multipath 2 queue_mode bio{printed[1:]}"
    retained = f"0 8 multipath 3 retain_attached_hw_handler queue_mode bio{printed[1:]}"
    assert str(Table.of(value.readback(RETAINS), 8)) == retained
    assert value.needs().features == {"multipath.historical-service-time"}
    assert Multipath(groups=(), handler=Handler("a", ("b",))).readback(NO_FEATURES).handler == Handler("a")


def test_status():
    text = "2 1 3 0 2 2 D 0 2 0 7:0 A 0 7:1 F 4 A 0 1 2 7:0 A 1 4096 100 "
    assert Multipath(groups=()).parse_status(text) == MultipathStatus(
        queueing=True,
        activations=3,
        current=2,
        groups=(
            GroupStatus(GroupState.DISABLED, (), (PathStatus(A, True, 0, ()), PathStatus(B, False, 4, ()))),
            GroupStatus(GroupState.ACTIVE, (), (PathStatus(A, True, 1, (4096, 100)),)),
        ),
    )
    weighted = Multipath(groups=()).parse_status("2 0 0 0 1 1 E 2 972 0 1 3 7:0 A 0 1024 0 0 ")
    assert weighted.groups[0].selector == (972, 0)
    assert weighted.paths == (PathStatus(A, True, 0, (1024, 0, 0)),)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "0 0 0 0",
        "2 2 0 0 0 0",
        "2 1 0 0 1 1",
        "2 1 0 0 1 1 X 0 1 0 7:0 A 0",
        "2 1 0 0 1 1 E 0 1 0 7:0 Q 0",
        "2 1 0 0 1 1 E 0 1 1 7:0 A 0",
        "2 1 0 0 0 0 1",
    ],
)
def test_bad_status(text):
    with pytest.raises(ParseError):
        Multipath(groups=()).parse_status(text)


# On a kernel.


class Whole(grounds.Ground):
    """Disks, each line on a new device: the first table decides between bios and requests."""

    fresh = True

    def fits(self, target, length: int) -> bool:
        return not (target.handler and target.groups)


@contextlib.contextmanager
def ground(lab) -> Iterator[grounds.Ground]:
    yield Whole(lab)
