"""What a failing test shows; on a real kernel, in a pytest run inside the pytest run."""

from __future__ import annotations

from pathlib import Path

import pytest

# pytester drops from sys.modules what an inner run was the first to import, but not from the package it belongs to.
import pytest_dm.clean
import pytest_dm.factory  # noqa: F401 - as above

pytest_plugins = ["pytester"]
pytestmark = pytest.mark.dm(needs=("flakey", "dust"))


def ours(dm_backend):
    return {entry.name for entry in dm_backend.runtime.control.list_devices(uuid_prefix="PYTESTDM-")}


@pytest.fixture(autouse=True)
def nothing_is_left(dm_backend):
    """Whatever a test does here, the devices of its inner run must be gone."""
    before = ours(dm_backend)
    yield
    assert ours(dm_backend) == before


LEAN = ("-W", "error", "-p", "no:hypothesispytest", "-p", "no:cacheprovider", "-p", "no:xdist")
"""Without the plugin of hypothesis, which imports all of it to sum up a failed run: seconds in a guest."""


def run(pytester, code, *arguments):
    pytester.makepyfile(code)
    return pytester.runpytest_inprocess(*LEAN, *arguments)


def sections(result, title):
    """Return the lines of the sections of that title."""
    found, inside = [], False
    for line in result.outlines:
        if line.startswith(("---", "===", "___")):
            inside = f" {title} " in line
        elif inside:
            found.append(line)
    return found


def test_tables_status_and_log(pytester):
    result = run(
        pytester,
        """
        def test_it(dm, dm_dust):
            dm.zero("1M")
            dm_dust.enable()
            with open("/dev/kmsg", "w") as log:
                log.write("a line of the test\\n")
            assert False
        """,
    )
    result.assert_outcomes(failed=1)
    tables = sections(result, "dm tables")
    assert any("131072 dust 7:" in line for line in tables)
    assert any(line.endswith("0 2048 zero") for line in tables)
    assert any("131072 sectors of 512 bytes" in line for line in tables)
    assert any("fail_read_on_bad_block quiet" in line for line in sections(result, "dm status"))
    assert "a line of the test" in sections(result, "kernel log")


def test_the_log_of_earlier_tests_is_not_shown(pytester):
    result = run(
        pytester,
        """
        def test_before(dm):
            with open("/dev/kmsg", "w") as log:
                log.write("a line of another test\\n")
        def test_it(dm):
            assert False
        """,
    )
    result.assert_outcomes(failed=1, passed=1)
    assert "another test" not in result.stdout.str()


def test_a_failing_setup(pytester):
    result = run(
        pytester,
        """
        import pytest
        @pytest.fixture
        def store(dm_flakey):
            raise RuntimeError("no store")
        def test_it(store): ...
        """,
    )
    result.assert_outcomes(errors=1)
    assert any("flakey" in line for line in sections(result, "dm tables"))


def test_a_rejected_table_says_what_the_kernel_said(pytester):
    result = run(
        pytester, "def test_it(dm): dm.create('0 999999 linear x 0', devices={'x': dm.loop('1M')})\n"
    )
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["E *TableRejected*", "E *too small for target*"])


def test_a_scope_that_has_ended(pytester):
    result = run(
        pytester,
        """
        def test_it(dm_session):
            for number in range(3):
                with dm_session.scope() as dm:
                    dm.flakey(size="64K").fail()
                    assert number < 2
        """,
    )
    result.assert_outcomes(failed=1)
    tables = sections(result, "dm tables")
    assert "(of a scope that has ended)" in tables
    assert len([line for line in tables if "128 flakey" in line]) == 1


def test_a_passing_test_shows_nothing(pytester):
    result = run(pytester, "def test_it(dm_flakey): ...\n", "-rA")
    result.assert_outcomes(passed=1)
    assert "dm tables" not in result.stdout.str()


def test_an_open_file_of_a_failed_test_is_no_second_failure(pytester):
    pytester.makepyfile(
        """
        import os

        class Store:
            def __init__(self, path):
                self.fd = os.open(path, os.O_RDONLY)
            def __del__(self):
                os.close(self.fd)

        def test_it(dm_flakey):
            store = Store(dm_flakey.path)
            assert store is None

        def test_mounted(dm):
            disk = dm.loop("16M")
            dm.mkfs(disk)
            store = Store(dm.mount(disk).mountpoint)
            assert store is None
        """
    )
    result = pytester.runpytest_subprocess(
        *LEAN
    )  # not in this process, where pytester keeps what it has seen
    result.assert_outcomes(failed=2)


def test_a_leak_of_a_passing_test_is_an_error(pytester):
    result = run(
        pytester,
        """
        import os, pytest

        @pytest.fixture
        def late(request):
            fds = []
            yield fds
            for fd in fds:
                os.close(fd)

        def test_it(late, monkeypatch, dm_linear):
            late.append(os.open(dm_linear.path, os.O_RDONLY))
            remove = dm_linear.device.remove
            monkeypatch.setattr(dm_linear.device, "remove", lambda **given: remove(**{**given, "timeout": 0.1}))
        """.replace(
            "def test_it(late, dm_linear, monkeypatch):", "def test_it(late, monkeypatch, dm_linear):"
        ),
    )
    result.assert_outcomes(passed=1, errors=1)
    result.stdout.fnmatch_lines(["*DeviceBusy*", "*LeakError*left behind*linear*"])


def test_needs(pytester):
    code = """
        import pytest
        @pytest.mark.dm(needs="no-such-program")
        def test_tool(): assert False, "must not run"
        @pytest.mark.dm(needs=["flakey", "flakey.no_such_feature"])
        def test_feature(): assert False, "must not run"
        @pytest.mark.dm(needs="dm-dust")
        class TestDust:
            @pytest.mark.dm(needs="mkfs.ext4")
            def test_there(self, dm_dust): ...
            @pytest.mark.dm(needs="mkfs.none")
            def test_adds_up(self): assert False, "must not run"
        def test_inside(dm, dm_loop): dm.mkfs(dm_loop, "none")
    """
    result = run(pytester, code, "-rs")
    result.assert_outcomes(passed=1, skipped=3, errors=1)
    result.stdout.fnmatch_lines(["SKIPPED*needs no-such-program; * -- install no-such-program"])
    result.stdout.fnmatch_lines(["*flakey.no_such_feature*no such feature; there are: flakey.error_reads*"])
    result = run(pytester, code, "--dm-require")
    result.assert_outcomes(passed=1, errors=3, failed=1)


def test_what_cannot_hold_a_file_system(pytester):
    result = run(
        pytester,
        """
        import pytest
        pytestmark = pytest.mark.dm(filesystem="ext4")
        def test_zero(dm_zero): ...
        def test_error(dm_error): ...
        """,
    )
    result.assert_outcomes(errors=2)
    result.stdout.fnmatch_lines(["*dm_zero cannot hold a file system (ext4)*"])


def test_keep_has_no_effect_in_a_guest_that_ends_anyway(pytester, monkeypatch):
    monkeypatch.setenv("PYTEST_DM_GUEST", "uml-6.12")
    result = run(pytester, "def test_it(dm_flakey): assert False\n", "--dm-keep")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["* --dm-keep *", "nothing is kept: *"])


def test_keep(pytester, dm_backend, monkeypatch):
    monkeypatch.delenv("PYTEST_DM_GUEST", raising=False)
    code = "def test_it(dm_flakey): assert False\ndef test_fine(dm_linear): ...\n"
    before = ours(dm_backend)
    result = run(pytester, code, "--dm-keep")
    result.assert_outcomes(failed=1, passed=1)
    left = list(ours(dm_backend) - before)
    assert len(left) == 1
    assert left[0].endswith("-flakey")
    result.stdout.fnmatch_lines([f"*{left[0]}: 0 131072 flakey*", "* --dm-keep *", "*pytest-dm clean*"])
    dm_backend.runtime.control.remove(left[0])
    Path("/dev/mapper", left[0]).unlink()


def test_artifacts(pytester, monkeypatch):
    monkeypatch.delenv("PYTEST_DM_EXCHANGE", raising=False)
    code = "import pytest\n@pytest.mark.parametrize('x', ['a/b'])\ndef test_it(dm_flakey, x): assert False\n"
    run(pytester, code, "--dm-artifacts=out").assert_outcomes(failed=1)
    (made,) = (pytester.path / "out").iterdir()
    assert made.name.endswith("test_it[a-b]-call.txt")
    assert "131072 flakey" in made.read_text()


def test_under_xdist(pytester):
    pytester.makepyfile(
        "def test_a(dm_flakey): assert False\ndef test_b(dm_linear): ...\ndef test_c(dm): ...\n"
    )
    result = pytester.runpytest_subprocess(*LEAN[:-2], "-n", "2")
    result.assert_outcomes(failed=1, passed=2)
    assert any("flakey" in line for line in sections(result, "dm tables"))
