"""The models of the snapshot family against kernels: the same outcomes, the same bytes, stores in both directions."""

from __future__ import annotations

import contextlib
import time

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from twins import outcome, twins

from dmcore.volume import Volume, open_volume

pytestmark = pytest.mark.dm
LENGTH = 100
PIECES = {"base": (0, 0, LENGTH), "cow": (1, 0, 130), "cow2": (1, 200, 70)}
ORIGIN, SNAP, SNAP2 = "origin", "snap", "snap2"
SECTORS = st.integers(0, LENGTH - 1)
STEPS = st.lists(
    st.tuples(
        st.sampled_from([ORIGIN, SNAP, SNAP2]),
        st.tuples(
            st.sampled_from(["write", "write", "write", "read", "flush"]),
            SECTORS,
            st.sampled_from([1, 2, 5, 8, 16, 40]),
            st.integers(1, 255),
        ),
    ),
    min_size=1,
    max_size=12,
)
STORES = st.tuples(st.sampled_from(["P", "PO", "N"]), st.sampled_from([1, 4, 8, 16]))


def _text(first, second):
    return {
        SNAP: f"0 {LENGTH} snapshot {{base}} {{cow}} {first[0]} {first[1]}",
        SNAP2: f"0 {LENGTH} snapshot {{base}} {{cow2}} {second[0]} {second[1]}",
        ORIGIN: f"0 {LENGTH} snapshot-origin {{base}}",
    }


@contextlib.contextmanager
def _both(pair, tables):
    """Open the same tables on both sides: `(kernel, model)` by name, each `(device, disk)`."""
    with contextlib.ExitStack() as stack:
        kernel = {name: stack.enter_context(pair.kernel(text)) for name, text in tables.items()}
        text = "\n".join(f"{name}: {line.format(**pair.words)}" for name, line in tables.items())
        disks = {pair.words[name]: store for name, store in pair.stores.items()}
        volume = stack.enter_context(
            open_volume(text, disks, top=list(tables)[-1], features=pair.lab.features)
        )
        model = {
            name: (device, Volume({name: device}, [], volume.clock))
            for name, device in volume.devices.items()
        }
        yield kernel, model


def _fresh(pair):
    pair.wipe()
    pair.fill("base", b"".join(bytes([sector]) * 512 for sector in range(LENGTH)))


def _same_status(kernel, model):
    for name, (device, _) in kernel.items():
        assert model[name][0].status_text() == device.status_text().rstrip(), name
        assert model[name][0].table_text() == device.table_text().rstrip(), name


def test_origins_and_snapshots_agree(lab):
    with twins(lab, **PIECES) as pair:

        @settings(max_examples=5, deadline=None, database=None, suppress_health_check=list(HealthCheck))
        @given(STORES, STORES, STEPS)
        @example(("P", 8), ("P", 16), [(ORIGIN, ("write", 7, 40, 1)), (SNAP, ("write", 60, 5, 2))])
        @example(("P", 1), ("PO", 1), [(SNAP2, ("write", 0, 40, 1)), (ORIGIN, ("write", 0, 70, 2))])
        @example(("N", 4), ("PO", 8), [(SNAP2, ("write", 8 * c, 1, 1)) for c in range(9)])
        def check(first, second, script):
            _fresh(pair)
            lost = False
            with _both(pair, _text(first, second)) as (kernel, model):
                for name, step in script:
                    (device, disk), (mirror, volume) = kernel[name], model[name]
                    assert outcome(mirror, volume, step) == outcome(device, disk, step), (name, step)
                _same_status(kernel, model)
                lost = any("Invalid" in device.status_text() for device, _ in kernel.values())
            assert pair.bytes("base") == pair.stores["base"].read(0, LENGTH)
            if not lost:
                for name in ("cow", "cow2"):
                    assert pair.bytes(name) == pair.stores[name].read(0, PIECES[name][2]), name

        check()


@pytest.mark.parametrize("chunk", [1, 8])
def test_a_store_that_one_side_wrote_is_read_by_the_other(lab, chunk):
    snap = {SNAP: f"0 {LENGTH} snapshot {{base}} {{cow}} P {chunk}"}
    with twins(lab, **PIECES) as pair:
        _fresh(pair)
        with pair.kernel(snap[SNAP]) as (_, disk):
            for sector in (90, 3, 4, 50):
                disk.write(sector * 512, bytes([sector]) * 1024)
            expected = disk.read(0, LENGTH * 512)
        pair.pull()
        with pair.model(snap[SNAP]) as volume:
            assert volume.read(0, LENGTH * 512) == expected
            volume.write(20 * 512, b"m" * 30 * 512)
            expected = volume.read(0, LENGTH * 512)
            status = volume.status_text()
        pair.push()
        with pair.kernel(snap[SNAP]) as (device, disk):
            assert disk.read(0, LENGTH * 512) == expected
            assert device.status_text().rstrip() == status


def _wait_for_the_merge(device):
    end = time.monotonic() + 10
    while not device.status()[0].empty and time.monotonic() < end:
        time.sleep(0.02)


def test_a_merge_leaves_the_same_bytes(lab):
    chunks = [(24, 1), (32, 2), (8, 3), (97, 4), (0, 5)]
    with twins(lab, **PIECES) as pair:
        _fresh(pair)
        with _both(pair, {SNAP: f"0 {LENGTH} snapshot {{base}} {{cow}} P 8"}) as (kernel, model):
            for side in (kernel, model):
                for sector, byte in chunks:
                    side[SNAP][1].write(sector * 512, bytes([byte]) * 512)
        tables = {
            SNAP2: f"0 {LENGTH} snapshot {{base}} {{cow2}} P 4",
            "merge": f"0 {LENGTH} snapshot-merge {{base}} {{cow}} P 8",
        }
        with _both(pair, tables) as (kernel, model):
            model["merge"][0].settle()
            _wait_for_the_merge(kernel["merge"][0])
            for name in tables:
                mine, theirs = model[name][1].read(0, LENGTH * 512), kernel[name][1].read(0, LENGTH * 512)
                assert mine == theirs, name
            assert model["merge"][0].status_text() == kernel["merge"][0].status_text().rstrip()
        assert pair.bytes("base") == pair.stores["base"].read(0, LENGTH)
        assert pair.bytes("cow") == pair.stores["cow"].read(0, 130)


def test_a_discard_that_does_not_begin_at_a_chunk_zeroes_data_beside_it_on_both(lab):
    """Chunks of at least 512 sectors only: see `dmcore.targets.snapshot`."""
    length, chunk = 3072, 1024
    with twins(lab, base=(0, 0, length), cow=(1, 0, 4096)) as pair:
        for words in ("1 discard_zeroes_cow", "2 discard_zeroes_cow discard_passdown_origin"):
            pair.wipe()
            pair.fill("base", b"o" * length * 512)
            text = {SNAP: f"0 {length} snapshot {{base}} {{cow}} P {chunk} {words}"}
            with _both(pair, text) as (kernel, model):
                (device, disk), (mirror, volume) = kernel[SNAP], model[SNAP]
                for step in [
                    ("write", 1030, 1, 1),
                    ("write", 5, 1, 2),
                    ("discard", 1124, 1024, 0),
                    ("discard", 2048, 1024, 0),
                    ("discard", 7, 2000, 0),
                ]:
                    assert outcome(mirror, volume, step) == outcome(device, disk, step), step
                    assert volume.read(0, length * 512) == disk.read(0, length * 512), step
                    if step[1] == 1124:
                        assert volume.read(0, 512 * 100) == bytes(512 * 100), "which nobody discarded"
                _same_status(kernel, model)
