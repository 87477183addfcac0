"""The command `dmcore`: what dmsetup does, over our own ioctl core, and commands of our own.

A command of our own is a module (or package) of this folder, named after it with `_` for `-`, that defines
`add_parser(subparsers)`, which adds one parser of that name with its help, and `run(arguments) -> int`, which returns
the exit status. It is found by its file name and imported only when it is asked for, so it costs the others nothing;
what begins with `_` is no command. Everything else is dmsetup's grammar.
"""

from __future__ import annotations

import sys
from importlib import import_module
from pkgutil import iter_modules
from typing import TYPE_CHECKING

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


__all__ = ["command_names", "main"]

_USAGE = 2
_INTERRUPTED = 130


def command_names() -> tuple[str, ...]:
    """Return the names of the commands that are modules of this folder, sorted."""
    return tuple(
        sorted(name.replace("_", "-") for _, name, _ in iter_modules(__path__) if not name.startswith("_"))
    )


def _load(name: str) -> Command:
    return import_module(f"{__name__}.{name.replace('-', '_')}")  # pyright: ignore[reportReturnType] - a module with these functions


def _run(name: str, words: Sequence[str]) -> int:
    import argparse  # noqa: PLC0415 - dmsetup's commands do without

    parser = argparse.ArgumentParser(prog="dmcore")
    command = _load(name)
    command.add_parser(parser.add_subparsers(required=True, metavar="COMMAND"))
    return command.run(parser.parse_args([name, *words]))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit status: 0 done, 1 failed (the reason is on stderr), 2 wrong usage of a command of ours."""
    words = sys.argv[1:] if arguments is None else list(arguments)
    from dmcore.errors import DmError  # noqa: PLC0415 - after the quick exits

    try:
        if words and words[0] in command_names():
            return _run(words[0], words[1:])
        sys.stderr.write("dmcore: no such command\n")
    except DmError as error:
        sys.stderr.write(f"dmcore: {error}\n")
        return 1
    except KeyboardInterrupt:
        return _INTERRUPTED
    except BrokenPipeError:
        sys.stderr.close()
        return 1
    return _USAGE
