"""What several kernel tests do: wait until something is gone, and interrupt work at each of its lines."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from types import ModuleType

LEAST_LINES = 50


def gone(there: Callable[[], bool], what: str) -> None:
    """Wait until something is not there any more, at most 20 seconds."""
    deadline = time.monotonic() + 20
    while there():
        assert time.monotonic() < deadline, f"{what} is still there"
        time.sleep(0.01)


def interrupted_everywhere(
    work: Callable[[], object], *modules: ModuleType, first: int = 1, step: int = 1
) -> Iterator[None]:
    """Call `work` with KeyboardInterrupt before the `first` line that it runs in the modules, before the one `step` later ...

    Yields after each; the last one was not interrupted. Lines of `__del__` do not count.
    """
    files = {module.__file__ for module in modules}
    line, interrupted = first - step, True
    while interrupted:
        line += step
        left = line

        def trace(frame, event, argument):
            nonlocal left
            names = {frame.f_code.co_name, frame.f_back.f_code.co_name if frame.f_back else ""}
            if frame.f_code.co_filename not in files or "__del__" in names:
                return None
            if event == "line":
                left -= 1
                if left == 0:
                    sys.settrace(None)
                    raise KeyboardInterrupt
            return trace

        interrupted = False
        sys.settrace(trace)
        try:
            work()
        except KeyboardInterrupt:
            interrupted = True
        finally:
            sys.settrace(None)
        yield
    assert line > LEAST_LINES
