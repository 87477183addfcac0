"""The command `dmcore`: what dmsetup does, over our own ioctl core, and commands of our own.

A command of our own is a module (or package) of this folder, named after it with `_` for `-`, that defines
`add_parser(subparsers)`, which adds one parser of that name with its help, and `run(arguments) -> int`, which returns
the exit status. It is found by its file name and imported only when it is asked for, so it costs the others nothing;
what begins with `_` is no command. Everything else is dmsetup's grammar.
"""

from __future__ import annotations

import io
import os
import sys
from importlib import import_module
from typing import TYPE_CHECKING

from dmcore.errors import DmError

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence
    from typing import Protocol

    class Command(Protocol):
        """What a module of this folder defines."""

        def add_parser(self, subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> object:  # pyright: ignore[reportPrivateUsage] - argparse has no public name for it
            """Add the command's parser."""
            ...

        def run(self, arguments: argparse.Namespace) -> int:
            """Do it; return the exit status."""
            ...


__all__ = ["command_names", "main", "summary"]

_INTERRUPTED = 130


def command_names() -> tuple[str, ...]:
    """Return the names of the commands that are modules of this folder, sorted."""
    found = {
        name.removesuffix(".py")
        for folder in __path__
        for name in os.listdir(folder)  # noqa: PTH208 - pathlib would cost more than the rest of this
        if not name.startswith("_") and (name.endswith(".py") or "." not in name)
    }
    return tuple(sorted(name.replace("_", "-") for name in found))


def _load(name: str) -> Command:
    return import_module(f"{__name__}.{name.replace('-', '_')}")  # pyright: ignore[reportReturnType] - a module with these functions


def summary(name: str) -> str:
    """Return what a command of our own does, in the words that it gives its parser."""
    import argparse  # noqa: PLC0415 - only for the help

    subparsers = argparse.ArgumentParser().add_subparsers()
    _load(name).add_parser(subparsers)
    pseudo = subparsers._choices_actions  # noqa: SLF001  # pyright: ignore[reportPrivateUsage] - nowhere public
    return next((str(action.help) for action in pseudo if action.help), "")


def _run(name: str, words: Sequence[str]) -> int:
    import argparse  # noqa: PLC0415 - dmsetup's commands do without

    parser = argparse.ArgumentParser(prog="dmcore")
    command = _load(name)
    command.add_parser(parser.add_subparsers(required=True, metavar="COMMAND"))
    return command.run(parser.parse_args([name, *words]))


def _text(word: str) -> str:
    """Return a word of the command line as the rest of the library has text: UTF-8, other bytes as surrogates."""
    return os.fsencode(word).decode("utf-8", "surrogateescape")


def _do(words: Sequence[str]) -> int:
    if words and words[0] in command_names():
        return _run(words[0], words[1:])
    from dmcore.cli._dmsetup.commands import run  # noqa: PLC0415 - commands of our own do without

    return run(words)


def _command_line() -> list[str]:
    """Return the process's words; by the name dmstats it is `dmcore stats`, as dmsetup is."""
    own = ["stats"] if os.path.basename(sys.argv[0]) == "dmstats" else []  # noqa: PTH119 - pathlib would cost more than the rest of this
    return [*own, *map(_text, sys.argv[1:])]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit status: 0 done, 1 failed (the reason is on stderr), 2 wrong usage of a command of ours."""
    words = _command_line() if arguments is None else list(arguments)
    for stream in (sys.stdin, sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(encoding="utf-8", errors="surrogateescape")
    try:
        status = _do(words)
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        return _INTERRUPTED
    except DmError as error:
        sys.stderr.write(f"dmcore: {error}\n")
        return 1
    return status
