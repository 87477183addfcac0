"""A stranger's test file under `-n 2`: exactly the expected outcomes, and nothing left."""

from __future__ import annotations

from pathlib import Path

from vm_session_tools import Session, junit

STRANGER = Path(__file__).parent.parent / "data" / "stranger" / "stranger_tests.py"
BAD = {"test_that_fails", "test_that_panics", "test_that_hangs"}


def test_exactly_the_expected_outcomes(session: Session) -> None:
    session.write("test_stranger.py", STRANGER.read_text(encoding="utf-8"))
    out = session.run("--dm-vm=uml", "-n", "2", "--junitxml=out.xml", "test_stranger.py", timeout=300)
    cases = junit(session.folder / "out.xml")
    failed = {
        name
        for name, case in cases.items()
        if case.find("failure") is not None or case.find("error") is not None
    }
    assert failed == BAD, out
    assert len(cases) == session.counts["passed"] + 3
    assert "skipped" not in session.counts, out
    assert "dm tables" in out
    assert "error_writes" in out
    assert "Kernel panic" in out
    assert "test_that_hangs ran longer than 4 s" in out
    session.assert_nothing_left()
