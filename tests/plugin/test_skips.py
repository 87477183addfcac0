"""Where no kernel is at hand: models serve, and what they cannot is skipped with a reason and what would help."""

from __future__ import annotations

import os
import re

import pytest

from pytest_dm import backend
from pytest_dm.options import Options

pytest_plugins = ["pytester"]
pytestmark = pytest.mark.skipif(
    backend.choose(Options()).kind == "kernel",
    reason="this kernel can run device-mapper tests, none is skipped",
)

TESTS = """
    import pytest

    def test_pure(): ...
    def test_device(dm_flakey): ...
    def test_backend(dm_backend): ...
    @pytest.mark.dm
    def test_marked(): assert False, "must not run"
    def test_late(request): request.getfixturevalue("dm")
"""


@pytest.fixture
def run(pytester, monkeypatch, tmp_path):
    """Run the tests where no guest kernel has been fetched."""
    monkeypatch.setenv("PYTEST_DM_CACHE", str(tmp_path / "cache"))
    pytester.makepyfile(TESTS)
    return lambda *arguments: pytester.runpytest_subprocess("-W", "error", "-rs", *arguments)


def test_models_serve_what_asks_for_devices(run):
    result = run()
    result.assert_outcomes(passed=4, skipped=1)
    result.stdout.re_match_lines(
        [r"SKIPPED .*needs a kernel, having no device of our fixtures: .* try: pytest --dm-vm$"]
    )


def test_on_this_kernel_only_they_skip_with_reason_and_command(run):
    result = run("--dm-backend=kernel")
    result.assert_outcomes(passed=1, skipped=4)
    reasons = [line for line in result.outlines if line.startswith("SKIPPED")]
    assert reasons
    why = "root" if os.geteuid() else re.escape(os.uname().release)
    for line in reasons:
        assert re.search(rf"needs device-mapper: .*{why}.* -- try: pytest --dm-vm$", line), line


def test_require_makes_them_errors(run):
    result = run("--dm-require", "--dm-backend=kernel")
    result.assert_outcomes(passed=1, errors=3, failed=1)
    result.stdout.fnmatch_lines(["*needs device-mapper:*--dm-require*"])
    assert "Traceback" not in result.stdout.str()


def test_under_xdist(run):
    run("-n", "2").assert_outcomes(passed=4, skipped=1)


def test_the_header_says_so_with_v(run):
    run("-v").stdout.fnmatch_lines(["dm: models, for what needs no kernel: *pytest --dm-vm"])
    run("-v", "--dm-backend=kernel").stdout.fnmatch_lines(["dm: *pytest --dm-vm"])
