"""Processes that test crash states side by side, each with files of its own.

A worker is forked, so that an oracle may be any function of the caller's. One that dies (an oracle that crashes in C) or
hangs past every bound costs the state it was at, which is a finding; another takes its place. A worker whose parent is
gone removes its files and ends.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
import warnings
from collections import deque
from contextlib import suppress
from multiprocessing.connection import Connection, wait
from typing import TYPE_CHECKING, NamedTuple

from dmcore.crash.checkers import OracleFailed, Problem
from dmcore.errors import DmError
from dmcore.kernel.libc import die_with_parent

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator
    from multiprocessing.context import ForkProcess

    from dmcore.crash.states import State
    from dmcore.crash.tester import Tester

__all__ = ["Job", "Result", "run"]

_ENOUGH = 0.2
"""Seconds that a batch should take: long enough to cost nothing, short enough to tell."""
_MOST = 2048
_BROKEN, _IMPOSSIBLE = "!", "?"
"""What an answer begins with that ends the exploration: by a fault of this program, by one of the machine, as no space."""
_TELL = 0.02
"""Seconds after which a worker tells what it has, while it is at a batch."""


class Job(NamedTuple):
    """A state to test.

    Attributes:
        state: The state.
        marks: How many marks had been made.
        image: Id of its image.
    """

    state: State
    marks: int
    image: int


class Result(NamedTuple):
    """What came of it.

    Attributes:
        job: The job.
        problem: What is wrong with the state; None for nothing.
        error: Why it could not be judged; "" if it was.
    """

    job: Job
    problem: Problem | None
    error: str


def judge(tester: Tester, job: Job) -> Result:
    """Test one state in this process."""
    try:
        return Result(job, tester.test(job.state, job.marks), "")
    except OracleFailed as error:
        return Result(job, None, str(error))


def run(
    jobs: Iterator[Job], make: Callable[[str], Tester], *, workers: int, silence: float = 600
) -> Generator[Result | None]:
    """Test states, and yield results as they come; None once in a while when there are none.

    Closing the iterator ends the workers and removes their files.

    Args:
        jobs: The states; asked for only as fast as they are tested.
        make: Makes a tester; is given a name for its files.
        workers: How many processes; 0 tests in this one.
        silence: Seconds after which a worker that gives no result is killed; what it was at is then a finding.
    """
    if workers:
        pool = _Pool(make, workers, silence)
        try:
            yield from pool.run(jobs)
        finally:
            pool.close()
        return
    tester = make("state")
    try:
        for job in jobs:
            yield judge(tester, job)
    finally:
        tester.close()


class _Worker:
    """One process, and the jobs it has."""

    def __init__(self, process: ForkProcess, line: Connection, *, careful: bool) -> None:
        self.process = process
        self.line = line
        self.careful = careful
        self.jobs: deque[Job] = deque()
        self.heard = time.monotonic()


class _Pool:
    def __init__(self, make: Callable[[str], Tester], count: int, silence: float) -> None:
        self._make = make
        self._count = count
        self._silence = silence
        self._workers: list[_Worker] = []
        self._made = 0
        self._batch = 4

    def _start(self, *, careful: bool = False) -> _Worker:
        mine, its = multiprocessing.Pipe()
        self._made += 1
        name = f"worker{self._made}"
        others = [worker.line for worker in self._workers]
        with warnings.catch_warnings():
            warnings.simplefilter(
                "ignore", DeprecationWarning
            )  # forking beside xdist's threads; the child starts none
            process = multiprocessing.get_context("fork").Process(
                target=_serve,
                args=(its, [mine, *others], self._make, name, careful),
                daemon=True,
            )
            process.start()
        its.close()
        worker = _Worker(process, mine, careful=careful)
        self._workers.append(worker)
        return worker

    def run(self, jobs: Iterator[Job]) -> Iterator[Result | None]:
        done = False
        while True:
            while not done and len(self._workers) < self._count:
                self._start()
            for worker in self._workers:
                while not done and len(worker.jobs) < 2 * self._batch:
                    batch = _take(jobs, self._batch)
                    done = len(batch) < self._batch
                    self._send(worker, batch)
            busy = [worker for worker in self._workers if worker.jobs]
            if not busy:
                if done:
                    return
                continue
            began = time.monotonic()
            count = 0
            for result in self._hear(busy):
                count += 1
                yield result
            self._adapt(count, time.monotonic() - began)
            if not count:
                yield None

    def _adapt(self, count: int, seconds: float) -> None:
        if count and seconds < _ENOUGH / 8 and self._batch < _MOST:
            self._batch = min(_MOST, self._batch * 2)
        elif seconds > _ENOUGH and self._batch > 1:
            self._batch = max(1, self._batch // 2)

    def _send(self, worker: _Worker, batch: list[Job]) -> None:
        if not batch:
            return
        if not worker.jobs:
            worker.heard = time.monotonic()
        worker.jobs.extend(batch)
        with suppress(BrokenPipeError, ConnectionResetError):  # it died: `_hear` finds that out
            worker.line.send(batch)

    def _hear(self, busy: list[_Worker]) -> Iterator[Result]:
        ready = wait([worker.line for worker in busy], timeout=0.25)
        now = time.monotonic()
        for worker in busy:
            if worker.line in ready:
                worker.heard = now
                yield from self._receive(worker)
            elif now - worker.heard > self._silence:
                worker.process.kill()
                yield from self._lost(worker, Problem("timeout", f"no answer for {self._silence:g} s"))

    def _receive(self, worker: _Worker) -> Iterator[Result]:
        try:
            answers: list[tuple[Problem | None, str]] = worker.line.recv()
        except (EOFError, ConnectionResetError):
            worker.process.join(10)
            code = worker.process.exitcode
            how = f"signal {-code}" if code is not None and code < 0 else f"exit status {code}"
            yield from self._lost(worker, Problem("crash", f"the process that judged it died: {how}"))
            return
        for problem, error in answers:
            if error.startswith(_BROKEN):
                raise RuntimeError(error.removeprefix(_BROKEN))
            if error.startswith(_IMPOSSIBLE):
                raise DmError(error.removeprefix(_IMPOSSIBLE))
            yield Result(worker.jobs.popleft(), problem, error)

    def _lost(self, worker: _Worker, problem: Problem) -> Iterator[Result]:
        """A worker is gone: the state that it was at is a finding, another worker gets the rest.

        Which state that was is known of a careful worker, which tells each result before it goes on.
        """
        worker.process.join(10)
        worker.line.close()
        self._workers.remove(worker)
        left = list(worker.jobs)
        if left and worker.careful:
            yield Result(left.pop(0), problem, "")
        if left:
            self._send(self._start(careful=True), left)

    def close(self) -> None:
        for worker in self._workers:
            worker.line.close()
            worker.process.terminate()
        for worker in self._workers:
            worker.process.join(10)
            if worker.process.is_alive():
                worker.process.kill()
                worker.process.join(10)
        self._workers = []


def _take(jobs: Iterator[Job], count: int) -> list[Job]:
    batch: list[Job] = []
    for job in jobs:
        batch.append(job)
        if len(batch) == count:
            break
    return batch


def _serve(
    line: Connection,
    others: list[Connection],
    make: Callable[[str], Tester],
    name: str,
    careful: bool,  # noqa: FBT001 - a process's arguments
) -> None:
    """Be a worker: batches in, answers out, until the line is closed or the parent gone, which ends what runs then."""
    for other in others:
        other.close()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _leave)
    parent = multiprocessing.parent_process()
    if parent is not None and parent.pid is not None and not die_with_parent(parent.pid, signal.SIGTERM):
        return
    try:
        tester = make(name)
    except Exception as error:  # noqa: BLE001 - told to the parent, which raises it
        line.send([(None, _told(error))])
        return
    try:
        while True:
            try:
                batch: list[Job] = line.recv()
            except (EOFError, ConnectionResetError):
                return
            _answer(line, tester, batch, 0.0 if careful else _TELL)
    except (BrokenPipeError, SystemExit):
        return
    finally:
        tester.close()


def _answer(line: Connection, tester: Tester, batch: list[Job], pause: float) -> None:
    answers: list[tuple[Problem | None, str]] = []
    sent = time.monotonic()
    for job in batch:
        try:
            _, problem, error = judge(tester, job)
        except Exception as failure:
            line.send([*answers, (None, _told(failure, f"at {job.state}: "))])
            raise SystemExit(1) from failure
        answers.append((problem, error))
        now = time.monotonic()
        if problem is not None or now - sent >= pause:
            line.send(answers)
            answers, sent = [], now
    if answers:
        line.send(answers)


def _told(error: Exception, where: str = "") -> str:
    """Return an exception as the parent is told it."""
    kind = _IMPOSSIBLE if isinstance(error, DmError | OSError) else _BROKEN
    return f"{kind}{where}{type(error).__name__}: {error}"


def _leave(_number: int, _frame: object) -> None:
    raise SystemExit(os.EX_OK)
