"""Progress of long work in a test, for whoever watches the session: past pytest's capture, out of a guest too."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pytest_dm import guest_worker

if TYPE_CHECKING:
    from collections.abc import Callable

    import pytest

    from dmcore.crash.explore import Progress

__all__ = ["Meter", "teller"]

_FIRST_SECONDS = 2.0
_EVERY_SECONDS = 10.0


def teller(config: pytest.Config) -> Callable[[str], None]:
    """Return what says a line in the terminal of the session; nothing is said where a worker of another kind has none."""
    guest: guest_worker.GuestWorker | None = config.pluginmanager.get_plugin(guest_worker.PLUGIN_NAME)
    if guest is not None:
        return guest.tell
    terminal: pytest.TerminalReporter | None = config.pluginmanager.get_plugin("terminalreporter")
    capture = config.pluginmanager.get_plugin("capturemanager")
    if terminal is None or capture is None:
        return lambda _line: None

    def tell(line: str) -> None:
        with capture.global_and_fixture_disabled():
            terminal.ensure_newline()
            terminal.write_line(f"dm: {line}")

    return tell


class Meter:
    """Says how far an exploration is: after two seconds, then every ten.

    Args:
        tell: Says a line.
        test: The test that explores, for the line's begin.
    """

    def __init__(self, tell: Callable[[str], None], test: str) -> None:
        self._tell = tell
        self._test = test.rpartition("::")[2]
        self._next = _FIRST_SECONDS

    def __call__(self, progress: Progress) -> None:
        """Take the state of things, as `dmcore.crash.explore.explore` gives it a few times a second."""
        if progress.seconds >= self._next:
            self._next = progress.seconds + _EVERY_SECONDS
            self._tell(f"{self._test}: {progress}")
