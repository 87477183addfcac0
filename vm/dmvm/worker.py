"""``python -m dmvm.worker --kernel NAME [--exchange DIR | --exchange-root DIR] -- COMMAND...``: one command in one guest.

Its stdin, stdout and stderr are the command's, its exit status the command's (128 + signal; 125 if the guest was lost
or did not boot). What ended the guest or killed the command is in EXCHANGE/lost.json, the console in
EXCHANGE/console.log. This is what execnet starts as a worker's "python".
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from dmcore.errors import DmError, VmError
from dmvm import launch
from dmvm.exchange import make
from dmvm.machine import BootCancelled, Cancel, start
from dmvm.relay import Job, Outcome
from dmvm.session import Session, caught_signals, guest_environment

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dmvm.kernels import GuestKernel

__all__ = ["main", "write_lost"]

_LOST = 125


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m dmvm.worker", description="Run one command in a guest.")
    parser.add_argument("--kernel", required=True, help="name of a guest kernel, or a path")
    parser.add_argument("--exchange", type=Path, help="folder the guest may write (default: a temporary one)")
    text = "use DIR/<pid of this process> for it, end with stdin, and remove DIR if the parent process is gone then"
    parser.add_argument("--exchange-root", type=Path, metavar="DIR", help=text)
    parser.add_argument("--memory", type=int, default=1024, metavar="MB", help="the guest's memory")
    parser.add_argument(
        "--visible", action="append", default=[], metavar="PATH", help="host path to show in the guest"
    )
    parser.add_argument("--boot-seconds", type=float, help="boot deadline")
    parser.add_argument("--verbose", action="store_true", help="say on stderr what goes on")
    parser.add_argument("command", nargs=argparse.REMAINDER, help="-- COMMAND ARGUMENT...")
    return parser


def write_lost(exchange: Path, *, reason: str, test: str, console_tail: str, kernel: str) -> None:
    """Write EXCHANGE/lost.json in one step: there whole or not at all."""
    fields = {"reason": reason, "test": test, "console_tail": console_tail, "kernel": kernel}
    fd, partial = tempfile.mkstemp(prefix=".lost-", dir=exchange)  # never through a link that the guest made
    os.write(fd, json.dumps(fields).encode())
    os.close(fd)
    Path(partial).replace(exchange / "lost.json")


def _why(outcome: Outcome, notes: Sequence[str]) -> str:
    """Return why the command did not end by itself, "" if it did."""
    if outcome.lost:
        return outcome.lost
    if outcome.signal is None:
        return ""
    name = (
        signal.Signals(outcome.signal).name if outcome.signal in set(signal.Signals) else str(outcome.signal)
    )
    return "; ".join([f"the process was ended by {name}", *notes])


def _run(options: argparse.Namespace, argv: Sequence[str], exchange: Path, kernel: GuestKernel) -> Outcome:
    def say(text: str) -> None:
        if options.verbose and text:
            sys.stderr.write(f"[dmvm] {text}\n")

    umask = os.umask(0)
    os.umask(umask)
    root = options.exchange_root
    numbers = (signal.SIGTERM, signal.SIGHUP) if root else (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    if root:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    with caught_signals(numbers) as signals:
        try:
            guest = start(
                kernel,
                exchange=exchange,
                memory_mb=options.memory,
                visible=options.visible,
                seconds=options.boot_seconds,
                remove=() if options.exchange or root else (exchange,),
                cancel=Cancel(signals, 0, os.getppid(), str(root)) if root else Cancel(signals),
                progress=say,
            )
        except BootCancelled:
            raise
        except VmError as error:
            write_lost(
                exchange, reason=error.message, test="", console_tail=error.console, kernel=kernel.name
            )
            raise
        try:
            say(f"{guest.release} up after {guest.seconds:.1f} s, host files guarded by {guest.guard}")
            job = Job(tuple(argv), guest_environment(kernel.name, exchange), str(Path.cwd()), umask)
            streams = {"stdin": 0, "stdout": 1, "stderr": 2}
            session = Session(guest, job, **streams, signals=signals, end_with_stdin=root is not None)
            outcome = session.run()
            reason = _why(outcome, guest.notes)
            if reason:
                tail = guest.console_tail()
                write_lost(exchange, reason=reason, test=outcome.test, console_tail=tail, kernel=kernel.name)
                say(reason)
            return outcome
        finally:
            guest.kill()


def _make_exchange(options: argparse.Namespace) -> Path:
    if options.exchange_root:
        folder = Path(options.exchange_root) / str(os.getpid())
        folder.mkdir(parents=True, exist_ok=True)
        return folder.resolve()
    return (options.exchange or make("pytest-dm-")).resolve()


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the worker; returns its exit status."""
    parser = _parser()
    options = parser.parse_args(arguments)
    argv: list[str] = options.command[1:] if options.command[:1] == ["--"] else options.command
    if not argv:
        parser.error("no command")
    parent = os.getppid()
    exchange = _make_exchange(options)
    try:
        from dmvm import store  # noqa: PLC0415 - brings the fetching machinery along

        outcome = _run(options, argv, exchange, store.ensure(options.kernel))
    except DmError as error:
        sys.stderr.write(f"pytest-dm: {error}\n")
        return _LOST
    finally:
        if options.exchange_root:
            launch.remove_orphaned(str(options.exchange_root), parent)
        elif not options.exchange:
            shutil.rmtree(exchange, ignore_errors=True)
    if outcome.error:
        sys.stderr.write(f"pytest-dm: {outcome.error}\n")
    return outcome.status


if __name__ == "__main__":
    raise SystemExit(main())
