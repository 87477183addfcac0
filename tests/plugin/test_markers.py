"""The `dm` marker: wrong arguments fail at collection, with one message."""

from __future__ import annotations

import pytest

pytest_plugins = ["pytester"]


@pytest.mark.parametrize(
    ("arguments", "argument", "value"),
    [
        ("size='64Q'", "size", "'64Q'"),
        ("size=0", "size", "0"),
        ("size='100'", "size", "'100'"),
        ("size=True", "size", "True"),
        ("size=None", "size", "None"),
        ("size=-512", "size", "-512"),
        ("block_size=300", "block_size", "300"),
        ("block_size='8K'", "block_size", "'8K'"),
        ("block_size=1536", "block_size", "1536"),
        ("filesystem='ntfs'", "filesystem", "'ntfs'"),
        ("filesystem=4", "filesystem", "4"),
        ("needs=[]", "needs", "[]"),
        ("needs=''", "needs", "''"),
        ("needs=['dust', 3]", "needs", "['dust', 3]"),
        ("needs=3", "needs", "3"),
        ("timeout=0", "timeout", "0"),
        ("timeout='1s'", "timeout", "'1s'"),
        ("sise='64M'", "sise", "'64M'"),
        ("'64M'", "positional arguments", "('64M',)"),
    ],
)
def test_a_wrong_argument(pytester, arguments, argument, value):
    pytester.makepyfile(
        test_wrong=f"import pytest\n@pytest.mark.dm({arguments})\ndef test_it(dm_loop): ...\n",
        test_right="def test_right(): ...\n",
    )
    run = pytester.runpytest_inprocess("-W", "error", "--continue-on-collection-errors")
    run.assert_outcomes(errors=1, passed=1)
    lines = [
        line
        for line in run.outlines
        if f"test_wrong.py::test_it: pytest.mark.dm: {argument}={value}: " in line
    ]
    assert lines, run.stdout.str()
    assert "Traceback" not in run.stdout.str()


def test_it_names_the_parameters(pytester):
    pytester.makepyfile(
        """
        import pytest

        @pytest.mark.parametrize("x", [1, pytest.param(2, marks=pytest.mark.dm(size="huge"))])
        def test_it(x, dm_loop): ...
        """
    )
    run = pytester.runpytest_inprocess("--collect-only")
    run.stdout.fnmatch_lines(["*::test_it[[]2]: pytest.mark.dm: size='huge':*"])
    run.assert_outcomes(errors=1)


def test_in_a_class_and_a_module(pytester):
    pytester.makepyfile(
        """
        import pytest

        class TestIt:
            pytestmark = pytest.mark.dm(block_size=7)
            def test_it(self, dm_loop): ...
        """
    )
    run = pytester.runpytest_inprocess("--collect-only")
    run.stdout.fnmatch_lines(["*TestIt::test_it: pytest.mark.dm: block_size=7:*"])


def test_it_is_known_and_selects_all_that_need_a_kernel(pytester):
    pytester.makepyfile(
        """
        import pytest

        def test_pure(): ...
        def test_fixture(dm_flakey): ...
        @pytest.fixture
        def store(dm_loop): ...
        def test_indirect(store): ...
        @pytest.mark.dm(size="1M")
        def test_marked(): ...
        """
    )
    run = pytester.runpytest_inprocess("--collect-only", "-q", "-m", "dm", "--strict-markers", "-W", "error")
    assert [line.partition("::")[2] for line in run.outlines if "::" in line] == [
        "test_fixture", "test_indirect", "test_marked",
    ]  # fmt: skip
    run = pytester.runpytest_inprocess("--markers")
    run.stdout.fnmatch_lines(["@pytest.mark.dm(size=*block_size=*filesystem=*needs=*"])


def test_without_the_plugin_there_is_no_trace(pytester):
    pytester.makepyfile("def test_pure(): ...\n")
    run = pytester.runpytest_subprocess("-p", "no:dm", "-W", "error")
    run.assert_outcomes(passed=1)
    run = pytester.runpytest_subprocess("-p", "no:dm", "--dm-require")
    assert run.ret == pytest.ExitCode.USAGE_ERROR
