"""`dmcore log`: look at a dm-log-writes log, or replay it, whoever wrote it."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from dmcore.errors import SpecError
from dmcore.formats.log_index import LogIndex
from dmcore.formats.log_writes import LogFlag
from dmcore.kernel.files import mapped

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator

    from dmcore.formats.log_writes import Entry

__all__ = ["add_parser", "run"]


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> argparse.ArgumentParser:  # pyright: ignore[reportPrivateUsage] - argparse has no public name for it
    """Add `log` and its commands."""
    text = "look at a log of dm-log-writes (or of QEMU's blklogwrites), or replay it"
    parser = subparsers.add_parser("log", help=text, description=text)
    commands = parser.add_subparsers(required=True, metavar="COMMAND", dest="log_command")

    text = "list its entries"
    show = commands.add_parser("show", help=text, description=text)
    _common(show)
    _range(show)
    show.add_argument("--json", action="store_true", help="one JSON object a line")

    text = "say what is in it: entries by kind, marks with their numbers, how far it reaches"
    index = commands.add_parser("index", help=text, description=text)
    _common(index)
    index.add_argument("--json", action="store_true", help="as one JSON object")
    index.add_argument(
        "--save", action="store_true",
        help="write the index beside the log, to LOG.index: the log is not scanned again as long as it is not changed",
    )  # fmt: skip

    text = "apply its entries to an image, which is made if it is not there, or to a block device"
    replay = commands.add_parser("replay", help=text, description=text)
    _common(replay)
    replay.add_argument("target", metavar="TARGET", help="image or block device")
    _range(replay)
    replay.add_argument("--no-discard", action="store_true", help="leave discards out (they give zeros)")
    return parser


def _common(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("log", metavar="LOG", help="the log: a file or a block device")
    parser.add_argument(
        "--entries", type=int, metavar="N", help="how many entries it has, if its super block is stale"
    )
    parser.add_argument("--salvage", action="store_true", help="use what stands before a damaged entry")


def _range(parser: argparse.ArgumentParser) -> None:
    begin = parser.add_mutually_exclusive_group()
    begin.add_argument("--start", type=int, default=0, metavar="N", help="first entry (default 0)")
    begin.add_argument("--start-mark", metavar="MARK", help="begin at that mark")
    end = parser.add_mutually_exclusive_group()
    end.add_argument("--limit", type=int, metavar="N", help="how many entries")
    end.add_argument("--end", type=int, metavar="N", help="entry to stop before")
    end.add_argument("--end-mark", metavar="MARK", help="stop at that mark")
    end.add_argument("--next-flush", action="store_true", help="up to and with the next flush")
    end.add_argument("--next-fua", action="store_true", help="up to and with the next FUA write")


def run(arguments: argparse.Namespace) -> int:
    """Do it: 0 done, 1 not (the reason is on standard error)."""
    meter = _Meter()
    try:
        with LogIndex(
            arguments.log,
            nr_entries=arguments.entries,
            salvage=arguments.salvage,
            progress=meter.indexing,
            view=mapped,
        ) as index:
            meter.clear()
            for warning in index.warnings:
                sys.stderr.write(f"dmcore: warning: {warning}\n")
            command = {"show": _show, "index": _index, "replay": _replay}[arguments.log_command]
            return command(arguments, index)
    except BrokenPipeError:
        raise
    except OSError as error:
        meter.clear()
        sys.stderr.write(f"dmcore: {error.filename or arguments.log}: {error.strerror}\n")
        return 1


def _bounds(arguments: argparse.Namespace, index: LogIndex) -> tuple[int, int]:
    """Return the first entry asked for, and the one behind the last."""
    start = arguments.start if arguments.start_mark is None else index.find_mark(arguments.start_mark)
    if not 0 <= start <= len(index):
        raise SpecError("start", start, f"the log has {len(index)} entries")
    stop = len(index)
    if arguments.limit is not None:
        stop = start + arguments.limit
    elif arguments.end is not None:
        stop = arguments.end
    elif arguments.end_mark is not None:
        stop = index.find_mark(arguments.end_mark, start=start)
    elif arguments.next_flush or arguments.next_fua:
        flag = LogFlag.FLUSH if arguments.next_flush else LogFlag.FUA
        found = index.next(flag, start)
        if found is None:
            raise SpecError(
                f"next-{(flag.name or '').lower()}", start, "there is none at or behind that entry"
            )
        stop = found + 1
    if stop < start:
        raise SpecError("end", stop, f"is before entry {start}")
    return start, min(stop, len(index))


def _flags(entry: Entry) -> str:
    names = [name for flag in LogFlag if entry.flags & flag and (name := flag.name)]
    return "|".join(names) or "WRITE"


def _show(arguments: argparse.Namespace, index: LogIndex) -> int:
    import json  # noqa: PLC0415 - a replay does without

    start, stop = _bounds(arguments, index)
    for number in range(start, stop):
        entry = index[number]
        offset, length = index.extent_of(number)
        if arguments.json:
            row = {"entry": number, "flags": _flags(entry), "offset": offset, "length": length,
                   "data_offset": index.data_offset(number), "mark": entry.mark}  # fmt: skip
            sys.stdout.write(json.dumps(row) + "\n")
        else:
            what = entry.mark if entry.mark is not None else f"{length} bytes at {offset}" if length else ""
            sys.stdout.write(f"{number:>8}  {_flags(entry):<16}  {what}".rstrip() + "\n")
    return 0


def _index(arguments: argparse.Namespace, index: LogIndex) -> int:
    kinds = {flag.name or "": len(index.positions(flag)) for flag in LogFlag}
    written = sum(index.extent_of(n)[1] for n in range(len(index)) if index.data_offset(n) >= 0)
    saved = index.save() if arguments.save else None
    if arguments.json:
        found = {
            "log": index.path, "version": index.super_block.version, "sector_size": index.sector_size,
            "entries": len(index), "super_block_entries": index.super_block.nr_entries, "complete": index.complete,
            "kinds": kinds, "written": written, "extent": index.extent, "warnings": index.warnings,
            "saved": saved,
            "marks": [{"entry": number, "mark": mark} for number, mark in index.marks.items()],
        }  # fmt: skip
        import json  # noqa: PLC0415 - a replay does without

        sys.stdout.write(json.dumps(found, indent=1) + "\n")
        return 0
    sys.stdout.writelines(f"{line}\n" for line in _summary(index, kinds, written))
    if saved is not None:
        sys.stdout.write(f"saved to {saved}\n")
    return 0


def _summary(index: LogIndex, kinds: dict[str, int], written: int) -> Iterator[str]:
    from dmcore.units import format_size  # noqa: PLC0415 - a replay does without

    closed = "closed" if index.complete else "not closed: its last entry is no end mark"
    yield f"version {index.super_block.version}, log sectors of {index.sector_size} bytes, {closed}"
    parts = ", ".join(f"{count} {name}" for name, count in kinds.items())
    yield f"{len(index)} entries: {parts}"
    yield f"writes {written} bytes, within the first {index.extent} ({format_size(index.extent)}) of the device"
    for number, mark in index.marks.items():
        yield f"{number:>8}  {mark}"


def _replay(arguments: argparse.Namespace, index: LogIndex) -> int:
    from dmcore.kernel.log_replay import replay  # noqa: PLC0415 - the others do without

    start, stop = _bounds(arguments, index)
    meter = _Meter()
    done = replay(
        index,
        arguments.target,
        start=start,
        stop=stop,
        discards=not arguments.no_discard,
        progress=meter.replaying,
    )
    meter.clear()
    sys.stdout.write(f"entries {start}..{stop}: {done.written} bytes written, {done.discarded} discarded\n")
    return 0


class _Meter:
    """Progress on standard error, where that is a terminal."""

    def __init__(self) -> None:
        self._terminal = sys.stderr.isatty()
        self._shown = False

    def _say(self, what: str, done: int, of: int) -> None:
        if self._terminal:
            self._shown = True
            sys.stderr.write(f"\r\x1b[K{what}: {100 * done // max(of, 1)} %")
            sys.stderr.flush()

    def indexing(self, done: int, of: int) -> None:
        self._say("indexing", done, of)

    def replaying(self, done: int, of: int) -> None:
        self._say("replaying", done, of)

    def clear(self) -> None:
        if self._shown:
            sys.stderr.write("\r\x1b[K")
            self._shown = False
