"""`dmcore volume`: read and write what a table describes, in userspace: no kernel, no root."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Literal

from dmcore.errors import SpecError
from dmcore.units import parse_size
from dmcore.volume import open_volume

if TYPE_CHECKING:
    import argparse

    from dmcore.volume import Volume

__all__ = ["add_parser", "run"]

_PIECE = 1 << 20
_QUIET_SECONDS = 2.0


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> argparse.ArgumentParser:  # pyright: ignore[reportPrivateUsage] - argparse has no public name for it
    """Add `volume` and its commands."""
    text = "read and write what a table describes, over image files, without a kernel"
    parser = subparsers.add_parser("volume", help=text, description=text)
    commands = parser.add_subparsers(required=True, metavar="COMMAND", dest="volume_command")
    for name, does in (
        ("read", "write bytes of it to standard output"),
        ("write", "write standard input to it"),
        ("info", "say its size, table and status"),
        ("export", "copy it into a file, whose holes stay holes"),
    ):
        command = commands.add_parser(name, help=does, description=does)
        _common(command)
        if name != "info":
            command.add_argument(
                "--offset", default="0", metavar="SIZE", help='first byte, like 4096 or "1M"'
            )
        if name in {"read", "export"}:
            command.add_argument("--length", metavar="SIZE", help="how many bytes (default: to the end)")
        if name == "export":
            command.add_argument("output", metavar="FILE", type=Path, help="file to make")
    return parser


def _common(parser: argparse.ArgumentParser) -> None:
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--table", type=Path, metavar="FILE", help="one table, or a stack as dmsetup prints it")
    what.add_argument("--luks", metavar="IMAGE", help="a LUKS image instead of a table; needs --key-file")
    what.add_argument("--verity", metavar="IMAGE", help="a verity image; needs --hashes and --root-hash")
    parser.add_argument("--key-file", metavar="FILE", help="file that is the passphrase, all of it")
    parser.add_argument("--hashes", metavar="IMAGE", help="where the tree of --verity is")
    parser.add_argument("--root-hash", metavar="HEX", help="what the tree is trusted for")
    parser.add_argument(
        "--device",
        action="append",
        default=[],
        metavar="NAME=PATH",
        help="what stands for a name of the table",
    )
    parser.add_argument("--top", metavar="NAME", help="which device of a stack (default: the last)")
    parser.add_argument(
        "--message", action="append", default=[], metavar="TEXT", help="message to its target before all else"
    )


def run(arguments: argparse.Namespace) -> int:
    """Do it: 0 done, 1 not (the reason is on standard error)."""
    try:
        with _open(arguments) as volume:
            for message in arguments.message:
                reply = volume.message(message)
                if reply:
                    sys.stderr.write(f"{reply}\n")
            {"read": _read, "write": _write, "info": _info, "export": _export}[arguments.volume_command](
                arguments, volume
            )
    except BrokenPipeError:
        raise
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        sys.stderr.write(f"dmcore: {where}{error.strerror or error}\n")
        return 1
    return 0


def _open(arguments: argparse.Namespace) -> Volume:
    mode: Literal["r", "r+"] = "r+" if arguments.volume_command == "write" else "r"
    if arguments.luks is not None:
        from dmcore.luks import open_luks  # noqa: PLC0415 - brings in what the other tables do without

        if arguments.key_file is None:
            raise SpecError("key-file", None, "--luks needs it")
        return open_luks(arguments.luks, key_file=arguments.key_file, mode=mode)
    if arguments.verity is not None:
        from dmcore.verity import open_verity  # noqa: PLC0415 - the same

        if arguments.hashes is None or arguments.root_hash is None:
            raise SpecError("verity", arguments.verity, "needs --hashes and --root-hash")
        try:
            root = bytes.fromhex(arguments.root_hash)
        except ValueError:
            raise SpecError("root-hash", arguments.root_hash, "must be pairs of hexadecimal digits") from None
        return open_verity(arguments.verity, arguments.hashes, root)
    text = arguments.table.read_text(encoding="utf-8")
    return open_volume(text, _devices(arguments.device), mode, top=arguments.top)


def _devices(words: list[str]) -> dict[str, str]:
    found: dict[str, str] = {}
    for word in words:
        name, sign, path = word.partition("=")
        if not (name and sign and path):
            raise SpecError("device", word, "must be NAME=PATH")
        found[name] = path
    return found


def _range(arguments: argparse.Namespace, volume: Volume) -> tuple[int, int]:
    """Return the first byte, and the one behind the last."""
    begin = parse_size(arguments.offset)
    if begin > volume.size:
        raise SpecError("offset", arguments.offset, f"the volume has {volume.size} bytes")
    if arguments.length is None:
        return begin, volume.size
    end = begin + parse_size(arguments.length)
    if end > volume.size:
        raise SpecError("length", arguments.length, f"ends past the volume's {volume.size} bytes")
    return begin, end


class _Progress:
    """A line on standard error, if it is a terminal, for what takes more than two seconds."""

    def __init__(self, whole: int) -> None:
        self._whole = max(whole, 1)
        self._begun = self._said = time.monotonic()

    def at(self, done: int) -> None:
        """Tell how far it is, now and then."""
        now = time.monotonic()
        if now - self._begun > _QUIET_SECONDS and now - self._said > 1 and sys.stderr.isatty():
            sys.stderr.write(f"\r{100 * done // self._whole} %")
            self._said = now


def _read(arguments: argparse.Namespace, volume: Volume) -> None:
    begin, end = _range(arguments, volume)
    _copy(volume, begin, end, sys.stdout.buffer, sparse=False)


def _export(arguments: argparse.Namespace, volume: Volume) -> None:
    begin, end = _range(arguments, volume)
    with arguments.output.open("wb") as output:
        _copy(volume, begin, end, output, sparse=True)
        output.truncate(end - begin)


def _copy(volume: Volume, begin: int, end: int, output: BinaryIO, *, sparse: bool) -> None:
    progress = _Progress(end - begin)
    with volume.file() as file:
        file.seek(begin)
        for at in range(begin, end, _PIECE):
            buffer = bytearray(min(_PIECE, end - at))
            file.readinto(buffer)
            if sparse and not any(buffer):
                output.seek(len(buffer), os.SEEK_CUR)
            else:
                output.write(buffer)
            progress.at(at - begin)


def _write(arguments: argparse.Namespace, volume: Volume) -> None:
    with volume.file() as file:
        file.seek(parse_size(arguments.offset))
        while data := sys.stdin.buffer.read(_PIECE):
            done = 0
            while done < len(data):
                done += file.write(memoryview(data)[done:])


def _info(arguments: argparse.Namespace, volume: Volume) -> None:
    del arguments
    print(f"size: {volume.size} bytes, blocks of {volume.block_size}")
    for name, device in volume.devices.items():
        print(f"table {name or '-'}: {device.table_text()}\nstatus {name or '-'}: {device.status_text()}")
