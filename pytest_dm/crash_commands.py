"""The commands `pytest-dm explore` and `pytest-dm replay`: crash states of any log-writes log, without root.

File systems that only a kernel recovers are mounted in guests (`pytest_dm.crash.guests`).
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import traceback
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

from dmcore.errors import DmError, SpecError
from dmcore.units import parse_size

if TYPE_CHECKING:
    from collections.abc import Callable, Generator
    from contextlib import AbstractContextManager
    from typing import Any

    from dmcore.crash.checkers import FileSystem
    from dmcore.crash.explore import Progress
    from dmcore.crash.log import CrashLog

__all__ = ["add_explore", "add_replay"]

_FOUND, _FAILED = 1, 2


def add_explore(parser: argparse.ArgumentParser) -> Callable[[argparse.Namespace], int]:
    """Add the options of `explore`; return what does it."""
    parser.add_argument("log", metavar="LOG", help="a dm-log-writes log: a file or a block device")
    _source(parser)
    parser.add_argument(
        "--oracle", metavar="CMD",
        help="command that judges a state: exits 0 if it is sound, 1 with the reason on its first line if not; {image} is the "
        "image's path, {acknowledged} the names of the acknowledged marks with commas between",
    )  # fmt: skip
    parser.add_argument(
        "--max-states", type=int, default=10_000, metavar="N", help="states to visit at most (default 10000)"
    )
    parser.add_argument("--max-seconds", type=float, metavar="N", help="when to stop")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the random choices (default 0)")
    parser.add_argument(
        "--workers",
        type=int,
        metavar="N",
        help="processes, or guests where states are mounted (default: one per core)",
    )
    parser.add_argument(
        "--json", type=Path, metavar="OUT", help="write all that was found here; - for standard output"
    )
    parser.add_argument("--quiet", action="store_true", help="no progress on standard error")
    return _explore


def add_replay(parser: argparse.ArgumentParser) -> Callable[[argparse.Namespace], int]:
    """Add the options of `replay`; return what does it."""
    parser.add_argument("state", metavar="ID", help="id of a state, such as e12:5 or e12:5:t2.f1")
    parser.add_argument("log", metavar="LOG", nargs="?", help="the log (default: that of --run)")
    parser.add_argument(
        "--run",
        dest="from_run",
        metavar="JSON",
        type=Path,
        help="what explore --json wrote: log, base, level and all else as then",
    )
    _source(parser)
    parser.add_argument("--oracle", metavar="CMD", help="command that judges the state, as of explore")
    parser.add_argument(
        "--image",
        metavar="OUT",
        type=Path,
        help="write the image of the state here, as the power cut left it",
    )
    return _replay


def _source(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--oracle-timeout", type=float, default=60, metavar="SECONDS", help="for one state (default 60)"
    )
    parser.add_argument("--base", metavar="IMAGE", help="the device before the log (default: zeros)")
    parser.add_argument(
        "--size",
        metavar="SIZE",
        help="of the device, without a base (default: what the log or its file system reaches)",
    )
    parser.add_argument(
        "--fs", default="none", choices=["none", "ext2", "ext3", "ext4", "xfs", "btrfs", "f2fs"],
        help="file system that recovers and judges each state first (default none)",
    )  # fmt: skip
    parser.add_argument(
        "--level",
        default="L1",
        choices=["L0", "L1", "L2", "L3"],
        help="how much order is assumed (default L1)",
    )
    parser.add_argument(
        "--times", metavar="FILE", help="for L2: ENTRY ISSUED COMPLETED, a line for each entry"
    )
    parser.add_argument(
        "--window",
        type=int,
        default=6,
        metavar="N",
        help="for L3: flushes back that a write may be lost (default 6)",
    )
    parser.add_argument(
        "--torn",
        metavar="SIZE|no",
        help="bytes of a sector that is written whole or not (default: the log's sectors)",
    )
    parser.add_argument("--salvage", action="store_true", help="use what stands before a damaged entry")
    parser.add_argument(
        "--kernel", metavar="NAME|PATH",
        help="guest kernel that mounts the states; xfs, btrfs and f2fs are mounted anyway (default: the usual one here), "
        "ext2, ext3 and ext4 need none",
    )  # fmt: skip
    parser.add_argument(
        "--mount-options", default="", metavar="OPTS", help="as for mount -o, where states are mounted"
    )
    parser.add_argument("--memory", type=int, default=1024, metavar="MB", help="of a guest (default 1024)")
    parser.add_argument(
        "--share", type=_share, help=argparse.SUPPRESS
    )  # given in a guest: which part it judges


def _share(text: str) -> tuple[int, int]:
    number, _, count = text.partition("/")
    return int(number), int(count)


@contextmanager
def _opened(arguments: argparse.Namespace) -> Generator[CrashLog]:
    from dmcore.crash.filesystems import device_size  # noqa: PLC0415 - each command brings its own
    from dmcore.crash.log import CrashLog  # noqa: PLC0415 - the same

    size = None if arguments.size is None else parse_size(arguments.size)
    with CrashLog(arguments.log, base=arguments.base, size=size, salvage=arguments.salvage) as log:
        if arguments.base is None and size is None and arguments.fs != "none":
            log.size = max(log.size, device_size(log))
        yield log


def _torn(text: str | None) -> int | None:
    if text is None:
        return None
    return 0 if text == "no" else parse_size(text, field="torn")


class _Meter:
    """Progress on standard error: one line that is rewritten on a terminal, one every ten seconds elsewhere."""

    def __init__(self, *, quiet: bool) -> None:
        self._quiet = quiet
        self._terminal = sys.stderr.isatty()
        self._next = 0.0

    def __call__(self, progress: Progress) -> None:
        if self._quiet or (not self._terminal and progress.seconds < self._next):
            return
        self._next = progress.seconds + 10
        sys.stderr.write(f"\r\x1b[K{progress}" if self._terminal else f"pytest-dm: {progress}\n")
        sys.stderr.flush()

    def end(self) -> None:
        if self._terminal and not self._quiet and self._next:
            sys.stderr.write("\r\x1b[K")


def _writable(path: Path | None) -> None:
    """See that the result has a place before hours go into it.

    Raises:
        SpecError: It has none.
    """
    if path is None or str(path) == "-":
        return
    if path.is_dir():
        raise SpecError("json", str(path), "is a folder")
    if not os.access(path if path.exists() else path.absolute().parent, os.W_OK):
        raise SpecError("json", str(path), "cannot be written")


def _save(path: Path | None, value: object) -> None:
    if path is None:
        return
    text = json.dumps(value, indent=1) + "\n"
    if str(path) == "-":
        sys.stdout.write(text)
    else:
        path.write_text(text, encoding="utf-8", errors="surrogateescape")


_KEPT = (
    "base", "size", "fs", "level", "times", "window", "torn", "salvage", "oracle", "oracle_timeout", "kernel", "mount_options",
)  # fmt: skip
"""Options that a state's id and verdict depend on; `explore` saves them for `replay`."""


def _recall(arguments: argparse.Namespace) -> None:
    """Take from a run's JSON what was not said anew."""
    if arguments.from_run is None:
        return
    try:
        run = json.loads(arguments.from_run.read_text(encoding="utf-8", errors="surrogateescape"))
        options = run["options"]
        log = run["log"]
    except (ValueError, KeyError, TypeError) as error:
        raise SpecError(
            "run", str(arguments.from_run), f"is not what explore --json writes: {error!r}"
        ) from None
    arguments.log = arguments.log or log
    defaults = {
        "fs": "none",
        "level": "L1",
        "window": 6,
        "salvage": False,
        "oracle_timeout": 60,
        "mount_options": "",
    }
    for name in _KEPT:
        if getattr(arguments, name) == defaults.get(name) and name in options:
            setattr(arguments, name, options[name])


def _replay(arguments: argparse.Namespace) -> int:
    try:
        return _replayed(arguments)
    except (DmError, OSError) as error:
        sys.stderr.write(f"pytest-dm: {error}\n")
        return _FAILED
    except Exception:  # noqa: BLE001 - told whole; exit status 1 would be a finding
        sys.stderr.write(traceback.format_exc())
        return _FAILED


def _filesystem(arguments: argparse.Namespace, log: CrashLog) -> AbstractContextManager[FileSystem]:
    """Return what recovers the states: mounts in a guest, tools elsewhere."""
    from dmcore.crash.filesystems import filesystem  # noqa: PLC0415 - each command brings its own
    from pytest_dm.crash import guests  # noqa: PLC0415 - the same

    if arguments.share is None:
        return nullcontext(filesystem(arguments.fs))
    return guests.mounting(arguments.fs, arguments.mount_options, log.sector_size)


def _replayed(arguments: argparse.Namespace) -> int:
    from dmcore.crash.checkers import NoFileSystem  # noqa: PLC0415 - each command brings its own
    from dmcore.crash.epochs import read_times, timeline  # noqa: PLC0415 - the same
    from dmcore.crash.explore import replay  # noqa: PLC0415 - the same
    from dmcore.crash.materialise import write_image  # noqa: PLC0415 - the same
    from dmcore.crash.oracles import CommandOracle  # noqa: PLC0415 - the same
    from dmcore.crash.states import parse_state  # noqa: PLC0415 - the same
    from pytest_dm.crash import guests  # noqa: PLC0415 - the same

    _recall(arguments)
    if arguments.log is None:
        raise SpecError("log", None, "say which log, or --run with what explore --json wrote")
    oracle = (
        None
        if arguments.oracle is None
        else CommandOracle(arguments.oracle, timeout=arguments.oracle_timeout)
    )
    with _opened(arguments) as log:
        times = None if arguments.times is None else read_times(arguments.times, len(log.index))
        line = timeline(log, arguments.level, times=times, window=arguments.window)
        state = parse_state(arguments.state, line)
        torn = _torn(arguments.torn)
        torn_size = log.sector_size if torn is None else torn
        if arguments.image is not None:
            write_image(log, line, state, arguments.image, torn_size)
            sys.stderr.write(f"{arguments.image}: the disk as the power cut left it\n")
        if guests.wants_guest(arguments):
            return guests.replay(arguments)
        with _filesystem(arguments, log) as fs:
            if isinstance(fs, NoFileSystem) and oracle is None:
                if arguments.image is None:
                    sys.stderr.write(
                        f"{state}: nothing judges it; say --fs, --oracle, or --image to look at it\n"
                    )
                return 0
            replayed = replay(log, line, state, filesystem=fs, oracle=oracle, torn_size=torn_size)
        if replayed is None:
            sys.stderr.write(f"{state}: sound\n")
            return 0
        sys.stderr.write(f"{replayed.minimal.problem.kind}: {state}\n")
        sys.stderr.writelines(f"  {text}\n" for text in replayed.words)
        return _FOUND


def _terminated(_number: int, _frame: object) -> None:
    raise SystemExit(128 + signal.SIGTERM)


def _explore(arguments: argparse.Namespace) -> int:
    from dmcore.crash.report import failure  # noqa: PLC0415 - each command brings its own

    try:
        _writable(arguments.json)
    except SpecError as error:
        sys.stderr.write(f"pytest-dm: {error}\n")
        return _FAILED
    before = signal.signal(signal.SIGTERM, _terminated)  # so that images are removed
    try:
        return _explored(arguments)
    except KeyboardInterrupt:
        sys.stderr.write("\npytest-dm: interrupted\n")
        return 128 + signal.SIGINT
    except (DmError, OSError) as error:
        where = f"{arguments.log}: " if not isinstance(error, SpecError | OSError) else ""
        reason = f"{where}{error}"
        _save(arguments.json, failure(arguments.log, reason))
        sys.stderr.write(f"pytest-dm: {reason}\n")
        return _FAILED
    except Exception as error:  # noqa: BLE001 - told whole; exit status 1 would be a finding
        sys.stderr.write(traceback.format_exc())
        _save(arguments.json, failure(arguments.log, f"{type(error).__name__}: {error}"))
        return _FAILED
    finally:
        signal.signal(signal.SIGTERM, before)


def _explored(arguments: argparse.Namespace) -> int:
    from pytest_dm.crash import guests  # noqa: PLC0415 - each command brings its own

    options = {name: getattr(arguments, name) for name in _KEPT}
    if guests.wants_guest(arguments):
        result = {**guests.explore(arguments), "options": options}
    else:
        result = {**_explored_here(arguments), "options": options}
    _save(arguments.json, result)
    if arguments.share is None:
        _tell(result)
    return _FOUND if result["violations"] else _FAILED if result["error"] else 0


def _explored_here(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return what was found, as JSON has it."""
    from dmcore.crash.epochs import read_times  # noqa: PLC0415 - each command brings its own
    from dmcore.crash.explore import explore  # noqa: PLC0415 - the same
    from dmcore.crash.oracles import CommandOracle  # noqa: PLC0415 - the same
    from dmcore.crash.report import to_json  # noqa: PLC0415 - the same

    oracle = (
        None
        if arguments.oracle is None
        else CommandOracle(arguments.oracle, timeout=arguments.oracle_timeout)
    )
    meter = _Meter(quiet=arguments.quiet)
    with _opened(arguments) as log, _filesystem(arguments, log) as fs:
        times = None if arguments.times is None else read_times(arguments.times, len(log.index))
        found = explore(
            log, level=arguments.level, filesystem=fs, oracle=oracle, share=arguments.share or (0, 1),
            max_states=arguments.max_states, max_seconds=arguments.max_seconds, seed=arguments.seed,
            torn=_torn(arguments.torn), times=times, window=arguments.window, workers=arguments.workers, progress=meter,
        )  # fmt: skip
        meter.end()
        return to_json(log, found)


def _tell(result: dict[str, Any]) -> None:
    """Say on standard error what was found."""
    for warning in result["warnings"]:
        sys.stderr.write(f"pytest-dm: warning: {warning}\n")
    for proof in result.get("minimal", ()):
        sys.stderr.write(f"\n{proof['kind']}{', torn' if proof['torn'] else ''}: {proof['id']}\n")
        sys.stderr.writelines(f"  {line}\n" for line in proof["words"])
    if result.get("minimal"):
        sys.stderr.write("\n")
    for error in result["errors"][:3]:
        sys.stderr.write(f"pytest-dm: {error}\n")
    if "level" in result:
        sys.stderr.write(
            f"{result['checked']} distinct states of {result['generated']} checked in {result['seconds']:.1f} s at "
            f"{result['level']}, seed {result['seed']}: {result['violating']} fail, {result['violating_torn']} more torn ones do\n"
        )
