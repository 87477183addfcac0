"""--dm-backend=model: fixtures and verbs without a kernel, and what needs one says so."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from dmcore.owner import Owner
from pytest_dm import backend
from pytest_dm.runtime import backing_roots

pytest_plugins = ["pytester"]
ROOT = Path(__file__).parents[2]

TESTS = """
    import errno, threading

    import pytest

    from dmcore.errors import SpecError, TableRejected
    from dmcore.targets import Flakey, Linear, Striped, Zero
    from dmcore.targets.striped import Leg

    def fails(request, *args):
        with pytest.raises(OSError) as caught:
            request(*args)
        return caught.value.errno

    def test_time_is_virtual(dm, dm_backend, dm_delay):
        assert (dm_backend.kind, dm_backend.machine, dm_backend.has("dust"), dm_backend.has("kernel")) == (
            "model", "model", True, False)
        dm_delay.set(read_ms=3_600_000)
        dm_delay.read(0, 512)
        assert dm_backend.monotonic() == 3600
        table = Flakey(dev=dm_delay.ref, up=2, down=1)
        scheduled = dm.create(table, size="1M")
        scheduled.write(0, bytes(512))
        dm_backend.sleep(2)
        assert fails(scheduled.write, 0, bytes(512)) == errno.EIO
        dm_backend.sleep(1)
        scheduled.write(0, bytes(512))

    def test_stacks(dm):
        legs = [dm.loop("1M") for _ in range(2)]
        table = Striped(chunk=8, legs=tuple(Leg(leg.ref) for leg in legs))
        top = dm.dust(dm.create(table, size="2M"))
        top.write(0, b"x" * 8192)
        assert legs[1].read(0, 4096) == b"x" * 4096 == legs[1].backing.read_bytes()[:4096]
        top.add_bad(1)
        with top.enable():
            assert fails(top.read, 0, 8192) == errno.EIO
        assert top.read(0, 8192) == b"x" * 8192

    def test_refusals_are_those_of_a_kernel(dm, dm_linear, dm_loop):
        with pytest.raises(TableRejected, match="past the end"):
            dm.create(f"0 8 linear {dm_loop.ref} {dm_loop.size // 512}")
        with pytest.raises(SpecError, match="no device of this test"):
            dm.create("0 8 linear 8:0 0")
        with pytest.raises(SpecError, match="on itself"):
            dm_linear.swap(Linear(dev=dm_linear.ref))
        above = dm.linear(dm_linear)
        with pytest.raises(OSError, match=f"{above.name} stands on it") as caught:
            dm_linear.device.remove()
        assert caught.value.errno == errno.EBUSY
        above.write(0, b"x" * 512)
        assert dm_linear.read(0, 512) == b"x" * 512

    def test_requests_of_other_threads_wait_for_a_resume(dm_linear):
        done = threading.Event()
        def write():
            dm_linear.write(0, b"w" * 512)
            done.set()
        with dm_linear.suspended():
            writer = threading.Thread(target=write)
            writer.start()
            assert not done.wait(0.1)
            dm_linear.swap(Zero())
        assert done.wait(10)
        assert dm_linear.read(0, 512) == bytes(512)

    def test_buffered_io_takes_any_offset(dm_loop):
        with dm_loop.open(direct=False) as file:
            file.write(1000, b"hello")
            assert file.read(999, 7) == b"\\0hello\\0"
        with dm_loop.open(readonly=True) as file:
            assert fails(file.write, 0, bytes(512)) == errno.EBADF
        with pytest.raises(SpecError):
            dm_loop.read(1, 512)

    def test_readonly(dm):
        disk = dm.loop("4K", readonly=True)
        assert fails(disk.write, 0, bytes(512)) == errno.EPERM

    def test_path(dm_loop): dm_loop.path
    @pytest.mark.dm(filesystem="ext4")
    def test_file_system(dm_loop): ...
    @pytest.mark.dm(needs="thin-nonsense")
    def test_program(dm_loop): ...
    def test_no_model(dm, dm_loop): dm.create(f"0 8 ebs {dm_loop.ref} 0 1")
    def test_fails(dm_flakey): dm_flakey.drop_writes(); assert False
"""


@pytest.fixture
def run(pytester):
    pytester.makepyfile(TESTS)
    return lambda *arguments: pytester.runpytest_subprocess("-rs", "--dm-backend=model", *arguments)


def test_devices_behave_and_the_rest_is_skipped(run):
    result = run("-W", "error")
    result.assert_outcomes(passed=6, skipped=4, failed=1)
    found = {match[1] for line in result.outlines if (match := re.match(r"SKIPPED .*: needs (.*?);", line))}
    assert {"a block device node (path)", "a file system on a device", "thin-nonsense"} < found
    result.stdout.re_match_lines([r"pytest-dm-\d+-\d+-flakey: 0 131072 flakey 7:\d+ 0 0 1 1 drop_writes"])


def test_require_makes_errors_of_skips(run):
    run("--dm-require", "-k", "path or file_system").assert_outcomes(failed=1, errors=1)


def test_it_leaves_nothing(run):
    before = set(backing_roots()[0].iterdir())
    run("-k", "stacks")
    new = (Owner.find(path.name) for path in set(backing_roots()[0].iterdir()) - before)
    assert all(owner is None or owner.alive() for owner in new)


@pytest.mark.parametrize("more", ["--dm-vm", "--dm-kernel=uml-7.2"])
def test_it_cannot_be_combined_with_a_kernel(run, more):
    result = run(more)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*--dm-backend=model needs no kernel; it cannot be combined*"])


@pytest.mark.skipif(backend.in_guest(), reason="a guest runs these files on its kernel")
def test_the_fixtures_own_tests_pass_on_models():
    """The very files that hold on every kernel; what they need of one is skipped."""
    files = sorted(str(path) for path in ROOT.glob("tests/kernel/test_fixtures_*.py"))
    command = [sys.executable, "-m", "pytest", "--dm-backend=model", "-q", "-p", "no:cacheprovider", *files]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr
    passed = re.search(r"(\d+) passed", done.stdout)
    assert passed is not None
    assert int(passed[1]) > 120
