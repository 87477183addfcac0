"""Guests of one session boot side by side: their worker processes start before xdist, which takes one at a time, asks.

execnet starts a worker's process and waits until it answers before it turns to the next. A guest takes seconds to
answer, and most of them it needs no answer from anybody.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from typing import TYPE_CHECKING, Any, cast

from execnet import gateway_io

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import execnet
    from execnet.gateway_base import ExecModel
    from execnet.gateway_io import Popen2IOMaster

__all__ = ["BootAhead"]

_PATIENCE = 20.0
_START = "create_io"


class BootAhead:
    """Stands in for execnet's way to start a worker's process, from its making until `done` or `cancel`.

    A worker whose turn it is has been started already, as have the next ones, up to one per core. Those that are not of
    this session, and replacements of lost ones, start as ever.
    """

    def __init__(self, specs: Sequence[execnet.XSpec], limit: int = 0) -> None:
        """Take over.

        Args:
            specs: The workers in the order in which they will be asked for.
            limit: How many may boot at a time; 0: as many as there are cores.
        """
        self._waiting = list(specs)
        self._limit = limit or len(os.sched_getaffinity(0))
        self._started: list[tuple[execnet.XSpec, Popen2IOMaster]] = []
        self._current: Popen2IOMaster | None = None
        self._plain: Callable[[execnet.XSpec, ExecModel], Popen2IOMaster] = gateway_io.create_io
        setattr(gateway_io, _START, self._create)

    def _create(self, spec: execnet.XSpec, execmodel: ExecModel) -> Popen2IOMaster:
        if any(each is spec for each in self._waiting):
            while self._waiting and len(self._started) < self._limit:
                following = self._waiting.pop(0)
                self._started.append((following, self._start(following, execmodel)))
        for place, (each, process) in enumerate(self._started):
            if each is spec:
                del self._started[place]
                self._current = process
                return process
        return self._plain(spec, execmodel)

    def _start(self, spec: execnet.XSpec, execmodel: ExecModel) -> Popen2IOMaster:
        """Start a worker with Ctrl-C blocked: it takes it when it has a handler, not in the middle of its imports."""
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            return self._plain(spec, execmodel)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def done(self) -> None:
        """Give execnet its way back: every worker was asked for and answered."""
        setattr(gateway_io, _START, self._plain)
        self._current = None

    def cancel(self) -> None:
        """Give execnet its way back, and end the workers that nobody asked for and the one that did not answer yet."""
        setattr(gateway_io, _START, self._plain)
        self._waiting.clear()
        unanswered = [process for _, process in self._started]
        if self._current is not None:
            unanswered.append(self._current)
        ending = [cast("Any", process).popen for process in unanswered]
        for popen in ending:
            popen.terminate()
        for popen in ending:
            _end(popen)
        self._started.clear()
        self._current = None


def _end(popen: subprocess.Popen[bytes]) -> None:
    for stream in (popen.stdin, popen.stdout):
        if stream is not None:
            with contextlib.suppress(OSError):
                stream.close()
    try:
        popen.wait(_PATIENCE)
    except subprocess.TimeoutExpired:
        popen.kill()
        popen.wait()
