"""What holds for every target, whoever adds it: found by the registry, run on all of them."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import json
import os
import pickle
import re
import sys
from pathlib import Path

import ground
import pytest
import witness
from hypothesis import HealthCheck, Phase, assume, event, given, settings
from hypothesis import strategies as st

import dmcore.targets
from dmcore import targets as targets_of
from dmcore.abi.dm import TableLine
from dmcore.errors import ParseError, SpecError, TableRejected, Unsupported
from dmcore.kernel.probe import require
from dmcore.params import quote, split_words
from dmcore.ref import Ref
from dmcore.registry import find, targets
from dmcore.table import Table
from dmcore.target import NO_FEATURES, Features, Requirement, Space, Target

ROOT = Path(__file__).parents[2]
ALL = frozenset(name for kind in targets().values() for name in kind.features)
REFS = {Ref("7:0"): 4096, Ref("7:1"): 2048}
LENGTHS = st.sampled_from([1, 2, 7, 24, 64, 1000, 1024])

each = pytest.mark.parametrize("kind", targets().values(), ids=targets())
# zoned and vdo want devices that were formatted: their own tests load the few values that such devices take.
PRINTED = {name: kind for name, kind in targets().items() if name not in {"zoned", "vdo"}}
each_printed = pytest.mark.parametrize("kind", PRINTED.values(), ids=PRINTED)
CAMPAIGN = int(os.environ.get("PYTEST_DM_EXAMPLES", "0"))
host = settings(max_examples=CAMPAIGN or 30)
# The first difference is told as it was found: lines are short, and to shrink one could take longer than a guest lets a test run.
kernel = settings(
    deadline=None, database=None, phases=[Phase.generate],
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],  # where all is emulated
)  # fmt: skip


def _tables(kind, refs, features: Features):
    """Draw tables of one target."""
    return LENGTHS.flatmap(
        lambda length: kind.strategy(Space(refs, length, features)).map(lambda value: Table.of(value, length))
    )


def _module(kind) -> str:
    return kind.kernel_name.replace("-", "_")


@each
def test_has_its_file_its_tests_and_its_docs(kind):
    module = sys.modules[kind.__module__]
    assert kind.__name__ == kind.kernel_name.title().replace("-", "")
    assert getattr(dmcore.targets, kind.__name__) is kind
    assert find(kind.kernel_name) is kind
    assert kind.__name__ in module.__all__
    assert "Sources: drivers/md/" in (module.__doc__ or "")
    assert (ROOT / f"tests/targets/test_{_module(kind)}.py").exists()
    docs = (ROOT / "docs/reference/targets.md").read_text(encoding="utf-8")
    assert f"\n## {kind.kernel_name}\n" in docs


@each
def test_type_checkers_see_it(kind):
    line = f"    from {kind.__module__} import {kind.__name__} as {kind.__name__}\n"
    text = Path(dmcore.targets.__file__).read_text(encoding="utf-8")
    assert line in text, f"add to the TYPE_CHECKING block of dmcore/targets/__init__.py: {line.strip()}"


@each
def test_is_a_frozen_value(kind):
    assert dataclasses.is_dataclass(kind)
    assert kind.__dataclass_params__.frozen  # type: ignore[attr-defined]
    assert "__slots__" in vars(kind)
    assert all(name.startswith(f"{kind.kernel_name}.") for name in kind.features)
    assert kind.kernel_module


@each
@host
@given(st.data())
def test_text_goes_both_ways(kind, data):
    table = data.draw(_tables(kind, REFS, ALL))
    if table.secret:
        with pytest.raises((ParseError, SpecError)):
            Table.parse(str(table))
    else:
        assert Table.parse(str(table)) == table
        assert hash(Table.parse(str(table))) == hash(table)
    assert Table.from_lines(table.encode(str)) == table
    assert pickle.loads(pickle.dumps(table)) == table
    assert set(table.refs()) <= set(REFS)


@each
@host
@given(st.data(), st.sets(st.sampled_from(sorted(ALL))).map(frozenset))
def test_values_need_only_what_the_space_offers_and_read_back_stably(kind, data, features):
    table = data.draw(_tables(kind, REFS, features))
    for requirement in table.needs():
        assert requirement.target == kind.kernel_name
        assert requirement.features <= features & kind.features.keys()
    again = table.readback(features)
    assert again.readback(features) == again
    assert Table.from_lines(again.encode(str)) == again


@each
@host
@given(st.data())
def test_refs_are_resolved_one_by_one(kind, data):
    target = data.draw(_tables(kind, REFS, ALL)).lines[0].target
    asked: list[Ref] = []

    def resolve(ref: Ref) -> str:
        asked.append(ref)
        return f"252:{len(asked)}"

    text = target.encode(resolve)
    assert tuple(asked) == target.refs()
    assert re.findall("(?<![0-9])252:[0-9]+", text) == [f"252:{number + 1}" for number in range(len(asked))]


@each
@host
@given(st.text(max_size=40))
def test_any_words_are_a_table_or_refused(kind, text):
    assume("\0" not in text)
    try:
        table = Table.from_lines([TableLine(0, 8, kind.kernel_name, text)])
    except (ParseError, SpecError):
        return
    assert Table.from_lines(table.encode(str)) == table


@each
@host
@given(st.data(), st.text(max_size=60))
def test_any_status_is_one_or_refused(kind, data, text):
    target = data.draw(_tables(kind, REFS, NO_FEATURES)).lines[0].target
    with contextlib.suppress(ParseError, SpecError):
        target.parse_status(text)


# On a kernel.


def _ground(lab, kind):
    """Return the context of what the target's lines stand on: its own test file's `ground`, or the plain one."""
    module = importlib.import_module(f"test_{_module(kind)}")
    return getattr(module, "ground", ground.plain)(lab)


def _supported(lab, kind) -> None:
    try:
        require(lab.control, Requirement(kind.kernel_name))
    except Unsupported as missing:
        pytest.skip(str(missing))


def test_forms_are_told_of_every_status():
    """The support table counts them; one that is not told here would count as seen everywhere."""
    assert {name for name, kind in targets().items() if witness.forms(kind)} == {
        name for name, kind in targets().items() if kind.parse_status is not Target.parse_status
    }
    named = [message for kind in targets().values() for message in witness.messages(kind)]
    assert len(named) == len(set(named)), "a message is told by its class's name alone"
    assert "PoolMode.READ_ONLY" in witness.forms(targets_of.ThinPool)
    assert {"Failed", "ThinPoolStatus.needs_check", "ThinPoolStatus.held_root"} <= set(
        witness.forms(targets_of.ThinPool)
    )
    failed = targets_of.Raid.__module__  # a status inside a status, and members of enumerations in tuples
    state = sys.modules[failed].DeviceState
    assert f"DeviceState.{state.FAILED.name}" in witness.forms(targets_of.Raid)


@pytest.mark.dm
def test_which_targets_this_kernel_has(lab, record_property):
    versions: dict[str, str | None] = {}
    for name in [*targets(), "thin"]:  # which comes with thin-pool's module, and not by its own name
        try:
            versions[name] = ".".join(map(str, lab.control.target_version(name)))
        except Unsupported:
            versions[name] = None
    assert versions["linear"]
    record_property("dm_kernel", json.dumps({"release": os.uname().release, "targets": versions}))


@pytest.mark.dm
@each_printed
def test_the_kernel_takes_every_value_and_prints_its_readback(lab, kind, record_property):
    _supported(lab, kind)
    count = 0
    with _ground(lab, kind) as below:

        @settings(kernel, max_examples=CAMPAIGN or 12)
        @given(_tables(kind, below.refs, lab.features))
        def check(table: Table) -> None:
            nonlocal count
            (line,) = table.encode(str)
            below.prepare(line)
            with lab.empty() as device:
                lab.control.load(device, [line], readonly=table.readonly)
                printed = lab.control.table(device, inactive=True)
                assert Table.from_lines(printed) == below.printed(table)
                (status,) = lab.control.status(device, inactive=True)
                table.lines[0].target.parse_status(status.params)
            count += 1

        check()
    # With few parameters or none hypothesis stops when it has drawn all.
    every = " all" if count < 100 <= CAMPAIGN else ""
    record_property("dm_read_back", f"{kind.kernel_name} {count}{every}")


NASTY = st.sampled_from([
    "0", "1", "2", "3", "+1", "-1", "01", "0x1", "1.5", "1e3", "x", "r", "W", "\\ 7", "7\\\n", "+", "255", "256",
    "512", "1000000000", "1000000001", "4294967295", "4294967296", "4294967297", "18446744073709551615",
    "18446744073709551616", "18446744073709551617", "٣", "\\à", "drop_writes", "DROP_WRITES", "error_reads", "error_writes",
    "corrupt_bio_byte", "random_read_corrupt", "random_write_corrupt", "sync", "8", "11", "12",
])  # fmt: skip


def _nudged(word: str, draw) -> str:
    """Return a number's neighbour, one that wraps to it, or its words in the other case: what lies at the borders."""
    if not word.isdecimal():
        return word.swapcase()
    number = int(word)
    return str(
        draw(
            st.sampled_from(
                [number + 1, max(number - 1, 0), 2 * number, number // 2, number + 2**16, number + 2**32]
            )
        )
    )


@st.composite
def _almost(draw, tables) -> TableLine:
    """Draw a valid line and change a few of its words, by nasty ones, by their neighbours and by those of another line."""
    (line,) = draw(tables).encode(str)
    (other,) = draw(tables).encode(str)
    words = [quote(word) for word in split_words(line.params)]
    others = [quote(word) for word in split_words(other.params)]
    wrong = NASTY | st.sampled_from(others) if others else NASTY
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, len(words)))
        match draw(st.sampled_from(["insert", "replace", "delete", "repeat", "swap", "nudge", "length"])):
            case "insert":
                words.insert(at, draw(wrong))
            case "replace":
                words[at : at + 1] = [draw(wrong)]
            case "delete":
                del words[at : at + 1]
            case "repeat":
                words[at:at] = words[at : at + draw(st.integers(1, 3))]
            case "swap":
                words[at : at + 2] = reversed(words[at : at + 2])
            case "nudge":
                words[at : at + 1] = [
                    quote(_nudged(word, draw)) for word in split_words(" ".join(words[at : at + 1]))
                ]
            case "length":
                line = dataclasses.replace(line, length=draw(st.integers(1, 70)))
    return dataclasses.replace(line, params=draw(st.sampled_from([" ", "  ", "\t"])).join(words))


def _library_accepts(line: TableLine, lab, below) -> bool:
    try:
        table = Table.from_lines([line])
    except (ParseError, SpecError):
        return False
    # Which other devices exist, and how large they are, the library cannot know.
    assume(set(table.refs()) <= set(below.refs))
    assume(below.fits(table.lines[0].target, line.length))
    return all(requirement.features <= lab.features for requirement in table.needs())


def _on_purpose(line: TableLine, features: Features) -> bool:
    """Whether the library refuses on purpose what some kernel accepts."""
    words = [word.lower() for word in split_words(line.params)]
    if any(word.isdecimal() and int(word) >= 2**64 for word in words):
        # 6.1 and 6.12 wrap such numbers, 7.2 takes the largest number for them.
        return True
    if line.type == "error":
        # Kernels without "error.device" ignore two words too; newer ones take them for device and offset.
        return "error.device" not in features and len(words) == 2
    if line.type == "raid":
        # 0 is printed as something else that may not fit; a repeated write_mostly counts twice.
        return "region_size" in words or words.count("write_mostly") > 1
    if line.type == "verity":
        # Half a block at the end is refused at resume only.
        size = int(words[3]) % 2**32 if len(words) > 3 and words[3].isdecimal() else 512
        return line.length * 512 % (size or 512) != 0
    if line.type == "crypt" and len(words) > 4:
        # An odd digit of a key is dropped, and a start that is not whole sectors is refused at resume only.
        sizes = {int(word[12:]) // 512 for word in words if re.fullmatch("sector_size:[0-9]+", word)}
        start = int(words[4]) if words[4].isdecimal() else 0
        return len(words[1]) % 2 != 0 or any(size and start % size for size in sizes)
    # Kernels before 7.2 let the last of two corruptions of one kind win.
    return line.type == "flakey" and any(
        words.count(word) > 1 for word in ("corrupt_bio_byte", "random_read_corrupt", "random_write_corrupt")
    )


@pytest.mark.dm
@each_printed
def test_kernel_and_library_accept_the_same_lines(lab, kind, record_property):
    """The size of the devices below is not compared: a live device's next table is checked for it at resume only."""
    _supported(lab, kind)
    counts = {"accepted": 0, "refused": 0}
    with lab.device(targets_of.Linear(dev=lab.refs[0]), 8) as live, _ground(lab, kind) as below:

        @settings(kernel, max_examples=CAMPAIGN or 25)
        @given(_almost(_tables(kind, below.refs, lab.features)))
        def check(line: TableLine) -> None:
            assume(not _on_purpose(line, lab.features))
            assume(not below.later(line))
            library = _library_accepts(line, lab, below)
            lab.control.clear(live.dev)  # what it holds cannot be prepared anew
            below.prepare(line)
            kernel_says = ["accepted"]
            with lab.empty() if below.fresh else contextlib.nullcontext(live.dev) as device:
                try:
                    lab.control.load(device, [line], readonly=kind.readonly)
                except TableRejected as refused:
                    kernel_says = ["refused", *refused.kernel_log]
            assert library == (kernel_says[0] == "accepted"), f"{line}: {kernel_says}"
            event(kernel_says[0])
            counts[kernel_says[0]] += 1

        try:
            check()
        finally:
            lab.control.clear(live.dev)
    record_property("dm_lines", f"{kind.kernel_name} {counts['accepted']} {counts['refused']}")
