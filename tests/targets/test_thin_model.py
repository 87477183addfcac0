"""The models of thin-pool and thin against kernels: the same outcomes and contents, pools in both directions."""

from __future__ import annotations

import contextlib
import errno
import time

import pytest
from ground import check_offline
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from twins import outcome, twins

from dmcore.volume import open_volume

pytestmark = pytest.mark.dm
BLOCK = 128
BYTES = BLOCK * 512
DATA = 12
"""Blocks of data: less than two thin devices take, so that the pool gets full."""
COMMIT_SECONDS = 0.9
"""The kernel commits by itself a second after the last commit, the model never does."""
PIECES = {"meta": (0, 0, 2048), "data": (1, 0, DATA * BLOCK), "origin": (0, 2048, 3 * BLOCK - 28)}
LENGTH = 6 * BLOCK + 40
POOL = f"0 {DATA * BLOCK} thin-pool {{meta}} {{data}} {BLOCK} 2"
STEP = st.tuples(
    st.sampled_from(["write", "write", "write", "read", "discard", "flush"]),
    st.integers(0, LENGTH - 1),
    st.sampled_from([1, 8, BLOCK, BLOCK, 2 * BLOCK + 3]),
    st.integers(1, 255),
).map(lambda step: (step[0], step[1] // BLOCK * BLOCK, *step[2:]) if step[2] == BLOCK else step)
FLUSH = (0, ("flush", 0, 0, 0))
STEPS = st.lists(st.tuples(st.sampled_from([0, 1]), STEP), min_size=1, max_size=8)


class _Sides:
    """A pool on the kernel and as a model, and thin devices on each."""

    def __init__(self, pair, text, stack):
        self.pair = pair
        self.stack = stack
        self.kernel, _ = stack.enter_context(pair.kernel(text))
        self.model = stack.enter_context(pair.model(text))

    def message(self, text):
        assert _message(self.model.device, text) == _message(self.kernel, text), text

    @contextlib.contextmanager
    def thin(self, dev_id, origin=False, length=LENGTH):
        words = self.pair.words
        text = f"0 {length} thin {{pool}} {dev_id}" + (" {origin}" if origin else "")
        with contextlib.ExitStack() as stack:
            names = {**words, "pool": self.kernel.ref.name}
            device, disk = stack.enter_context(self.pair.kernel_of(text, names))
            below = {"pool": self.model, words["origin"]: self.pair.stores["origin"]}
            line = text.format(**{**words, "pool": "pool"})
            volume = stack.enter_context(open_volume(line, below, features=self.pair.lab.features))
            yield (device, disk), (volume.device, volume)

    def same_status(self):
        kernel, model = self.kernel.status()[0], self.model.status()[0]
        assert (model.data, model.mode, model.transaction_id, model.discards, model.no_space) == (
            kernel.data,
            kernel.mode,
            kernel.transaction_id,
            kernel.discards,
            kernel.no_space,
        )
        assert (model.metadata.total, model.metadata_low_water) == (
            kernel.metadata.total,
            kernel.metadata_low_water,
        )


def _message(device, text):
    try:
        return device.message(text)
    except OSError as error:
        return error.errno


@contextlib.contextmanager
def _sides(pair, options=""):
    with contextlib.ExitStack() as stack:
        yield _Sides(pair, f"{POOL} {options}", stack)


def _fill(pair):
    pair.wipe()
    pair.fill("origin", b"o" * ((3 * BLOCK - 28) * 512))
    pair.fill("data", b"d" * (DATA * BYTES))


class _Steps:
    """The same steps on both sides, as long as no commit of the kernel's own can have come between."""

    def __init__(self):
        self.begun = time.monotonic()

    def do(self, sides, step):
        """Do a step on both sides: the same outcome; return it, or None if it took too long to tell."""
        kernel, model = (outcome(device, disk, step) for device, disk in sides)
        if time.monotonic() - self.begun > COMMIT_SECONDS:
            return None
        assert model == kernel, step
        if step[0] == "flush":
            self.begun = time.monotonic()
        return kernel, model


def _same(sides, step):
    kernel, model = (outcome(device, disk, step) for device, disk in sides)
    assert model == kernel, step
    return kernel


def test_a_full_pool_gives_only_blocks_that_were_free_at_the_last_commit(lab):
    with twins(lab, **PIECES) as pair:
        _fill(pair)
        with _sides(pair, "1 error_if_no_space") as sides:
            sides.message("create_thin 0")
            sides.message("create_thin 1")
            with sides.thin(0, length=7 * BLOCK) as one, sides.thin(1) as two:
                _same(one, ("write", 0, 6 * BLOCK, 1))
                _same(two, ("write", 0, 6 * BLOCK, 2))
                _same(two, ("flush", 0, 0, 0))
                assert _same(one, ("write", 6 * BLOCK, 8, 3)) == errno.ENOSPC, "not a block is free"
                sides.same_status()
                tried = 0
                while tried < 5:
                    tried += 1
                    begun = time.monotonic()
                    _same(one, ("flush", 0, 0, 0))
                    _same(two, ("discard", 0, BLOCK, 0))
                    found = [outcome(*side, ("write", 6 * BLOCK, 8, 3)) for side in one]
                    if time.monotonic() - begun < COMMIT_SECONDS:
                        assert found == [errno.ENOSPC] * 2, (
                            "a block was freed, but not before the last commit"
                        )
                        break
                    _same(one, ("discard", 6 * BLOCK, BLOCK, 0))
                    _same(one, ("flush", 0, 0, 0))
                    _same(two, ("write", 0, BLOCK, 2))
                sides.same_status()
                assert _same(one, ("write", 6 * BLOCK, 8, 3)) is None, "the status committed"
                _same(two, ("discard", BLOCK, BLOCK, 0))
                _same(one, ("flush", 0, 0, 0))
                _same(one, ("read", 0, 7 * BLOCK, 0))
                sides.same_status()


def test_pools_and_thin_devices_agree(lab):
    with twins(lab, **PIECES) as pair:

        @settings(max_examples=5, deadline=None, database=None, suppress_health_check=list(HealthCheck))
        @given(st.booleans(), st.booleans(), STEPS, STEPS)
        @example(
            False,
            True,
            [(0, ("write", 0, 2 * BLOCK + 3, 1)), (0, ("write", 5 * BLOCK, BLOCK, 2))],
            [
                (1, ("write", 8, 1, 3)),
                (0, ("discard", 0, 3 * BLOCK, 0)),
                (1, ("discard", 5 * BLOCK, BLOCK, 0)),
            ],
        )
        def check(skip, origin, before, after):
            _fill(pair)
            words = ["error_if_no_space", *(["skip_block_zeroing"] if skip else [])]
            with _sides(pair, f"{len(words)} {' '.join(words)}") as sides:
                for text in ("create_thin 0", "create_thin 0", "create_snap 1 2", "set_transaction_id 0 5"):
                    sides.message(text)
                with sides.thin(0, origin) as thin:
                    steps = _Steps()
                    for _, step in [*before, FLUSH]:
                        if steps.do(thin, step) is None:
                            return
                sides.message("create_snap 1 0")
                with sides.thin(0, origin) as one, sides.thin(1, origin) as two:
                    steps = _Steps()
                    for which, step in after:
                        if steps.do((one, two)[which], step) is None:
                            return
                    for each in (one, two):
                        if not skip:
                            _same(each, ("read", 0, LENGTH, 0))
                        assert each[1][0].status_text() == each[0][0].status_text().rstrip()
                    sides.same_status()
                sides.message("delete 0")
                sides.same_status()

        check()


def test_a_pool_that_one_side_wrote_is_used_by_the_other(lab):
    with twins(lab, **PIECES) as pair:
        _fill(pair)
        with pair.kernel(POOL) as (device, _):
            words = {**pair.words, "pool": device.ref.name}
            device.message("create_thin 3")
            with pair.kernel_of(f"0 {LENGTH} thin {{pool}} 3", words) as (_, disk):
                disk.write(512, b"k" * BYTES * 2)
            device.message("create_snap 70000 3")
            device.message("reserve_metadata_snap")
            with pair.kernel_of(f"0 {LENGTH} thin {{pool}} 3", words) as (_, disk):
                disk.write(5 * BYTES, b"l" * 512)
                expected = disk.read(0, LENGTH * 512)
        pair.pull()
        with pair.model(POOL) as pool:
            with open_volume(f"0 {LENGTH} thin pool 3", {"pool": pool}) as thin:
                assert thin.read(0, LENGTH * 512) == expected
                thin.write(0, b"m" * 2 * BYTES)
                expected = thin.read(0, LENGTH * 512)
            with open_volume(f"0 {LENGTH} thin pool 70000", {"pool": pool}) as thin:
                shot = thin.read(0, LENGTH * 512)
                assert shot[512 : 512 + 2 * BYTES] == b"k" * 2 * BYTES
            pool.message("create_snap 4 3")
            pool.message("release_metadata_snap")
            used = pool.status()[0].data.used
        pair.push()
        check_offline("thin_check", pair.devices["meta"].path)
        with pair.kernel(POOL) as (device, _):
            words = {**pair.words, "pool": device.ref.name}
            assert device.status()[0].data.used == used
            for dev_id, content in ((3, expected), (70000, shot), (4, expected)):
                with pair.kernel_of(f"0 {LENGTH} thin {{pool}} {dev_id}", words) as (_, disk):
                    assert disk.read(0, LENGTH * 512) == content, dev_id
            device.message("delete 70000")
            with pair.kernel_of(f"0 {LENGTH} thin {{pool}} 4", words) as (_, disk):
                disk.write(0, b"n" * LENGTH * 512)
            device.message("delete 3")
            device.message("delete 4")
            assert device.status()[0].data.used == 0
        check_offline("thin_check", pair.devices["meta"].path)
