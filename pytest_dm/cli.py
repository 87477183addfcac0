"""The command `pytest-dm`: doctor, clean, explore, replay, vm."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from dmcore.errors import DmError
from pytest_dm.crash_commands import add_explore, add_replay

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

__all__ = ["main"]

_FAILED = 125
"""Exit status of `vm run` when there was no guest to run the command in; else it is the command's own."""


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def _progress(line: str) -> None:
    if line:
        sys.stderr.write(f"pytest-dm: {line}\n")
        sys.stderr.flush()


def _doctor(_arguments: argparse.Namespace) -> int:
    from pytest_dm import doctor  # noqa: PLC0415 - each command brings its own

    return doctor.report(_say, colour=sys.stdout.isatty())


def _clean(arguments: argparse.Namespace) -> int:
    from pytest_dm.clean import clean  # noqa: PLC0415 - each command brings its own

    return 1 if clean(_say, dry_run=arguments.dry_run) else 0


def _kernel(asked: str | None) -> str:
    from dmvm import machine  # noqa: PLC0415 - each command brings its own

    return machine.choose("auto", asked)[1]


def _vm_build(arguments: argparse.Namespace) -> int:
    from dmvm import store  # noqa: PLC0415 - each command brings its own

    for asked in arguments.kernels or [None]:
        name = _kernel(asked)
        kernel = store.ensure(name, progress=_progress, refresh=arguments.refresh)
        _say(f"{name}: Linux {kernel.release} ({kernel.machine}), {kernel.image.parent}")
    return 0


def _vm_list(_arguments: argparse.Namespace) -> int:
    from dmvm import store  # noqa: PLC0415 - each command brings its own
    from dmvm.tools import human  # noqa: PLC0415 - the same

    for row in store.describe():
        size = human(row.size) if row.size else ""
        _say(f"{row.name:<12} {row.machine:<5} {row.release:<16} {size:>9}  {row.state}".rstrip())
    return 0


def _vm_run(arguments: argparse.Namespace) -> int:
    from dmvm import session, store  # noqa: PLC0415 - each command brings its own

    command: list[str] = arguments.command
    command = command[1:] if command[:1] == ["--"] else command
    if not command:
        sys.stderr.write("pytest-dm: vm run: say which command: pytest-dm vm run -- COMMAND ...\n")
        return 2
    kernel = store.ensure(_kernel(arguments.kernel), progress=_progress)
    outcome = session.run(
        command,
        kernel=kernel,
        tty=arguments.tty if arguments.tty is not None else sys.stdin.isatty(),
        exchange=arguments.exchange,
        memory_mb=arguments.memory,
        visible=[Path.cwd(), *arguments.visible],
        progress=_progress if sys.stderr.isatty() else lambda _line: None,
    )
    if outcome.error:
        sys.stderr.write(f"pytest-dm: {outcome.error}\n")
    if outcome.lost:
        kept = "" if arguments.exchange else " (--exchange=DIR keeps its console.log)"
        sys.stderr.write(f"pytest-dm: the guest is lost: {outcome.lost}{kept}\n")
    return outcome.status


def _guest_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--kernel", metavar="NAME|PATH", help="guest kernel (default: the usual one here)")
    parser.add_argument(
        "--memory", type=int, default=1024, metavar="MB", help="the guest's memory (default 1024)"
    )
    parser.add_argument("--exchange", type=Path, metavar="DIR", help="folder that the guest may write")
    parser.add_argument(
        "--visible", action="append", default=[], type=Path, metavar="PATH",
        help="host path below /tmp, /run or /dev/shm to show in the guest",
    )  # fmt: skip


def _does(
    parser: argparse.ArgumentParser, run: Callable[[argparse.Namespace], int]
) -> argparse.ArgumentParser:
    parser.set_defaults(run=run)
    return parser


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="pytest-dm", description="Device-mapper fault injection for pytest."
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    text = "say what this machine can do, and the one command that fixes each lack"
    _does(commands.add_parser("doctor", help=text, description=text), _doctor)
    text = "remove what killed sessions and --dm-keep left, and nothing else"
    cleaning = _does(commands.add_parser("clean", help=text, description=text), _clean)
    cleaning.add_argument("--dry-run", action="store_true", help="only say what would be removed")
    text = "visit the states a power cut could have left, from a log of what was written, and check each"
    exploring = commands.add_parser("explore", help=text, description=text)
    _does(exploring, add_explore(exploring))
    text = "make one crash state again by its id: judge it alone, write it out as an image"
    replaying = commands.add_parser("replay", help=text, description=text)
    _does(replaying, add_replay(replaying))
    vm = commands.add_parser("vm", help="guest kernels and guests").add_subparsers(
        required=True, metavar="COMMAND"
    )
    text = "list the guest kernels"
    _does(vm.add_parser("list", help=text, description=text), _vm_list)
    text = "fetch and prepare guest kernels; no root needed, nothing is installed"
    build = _does(vm.add_parser("build", help=text, description=text), _vm_build)
    build.add_argument("kernels", nargs="*", metavar="NAME|PATH", help="which (default: the usual one here)")
    build.add_argument("--refresh", action="store_true", help="make them anew from the newest packages")
    text = "run one command in a fresh guest; exit with its status"
    running = _does(vm.add_parser("run", help=text, description=text), _vm_run)
    _guest_options(running)
    running.add_argument(
        "--tty", action=argparse.BooleanOptionalAction, help="a terminal (default: if stdin is one)"
    )
    running.add_argument("command", nargs=argparse.REMAINDER, metavar="-- COMMAND ...")
    text = "a shell in a fresh guest; leave it to end the guest"
    shell = _does(vm.add_parser("shell", help=text, description=text), _vm_run)
    _guest_options(shell)
    shell.set_defaults(command=[os.environ.get("SHELL", "/bin/sh")], tty=True)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit status: 0 done, 1 not all well, 2 wrong usage, 125 no guest."""
    options = _parser().parse_args(arguments)
    try:
        return int(options.run(options))
    except DmError as error:
        sys.stderr.write(f"pytest-dm: {error}\n")
        return _FAILED
