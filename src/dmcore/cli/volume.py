"""`dmcore volume`: read and write what a table describes, in userspace: no kernel, no root."""

from __future__ import annotations

import errno
import os
import stat
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Literal, cast

from dmcore.errors import DmError, SpecError
from dmcore.units import parse_size
from dmcore.volume import open_volume

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator

    from dmcore.model.device import ModelDevice
    from dmcore.volume import Volume

__all__ = ["add_parser", "run"]

_PIECE = 1 << 20
_ZEROS = bytes(1 << 16)
_QUIET_SECONDS = 2.0


class _Failed(Exception):
    """A request that failed, in words that say where."""

    def __init__(self, what: str, cause: OSError) -> None:
        super().__init__(what)
        self.cause = cause


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
    parser.add_argument(
        "--hash-offset", metavar="SIZE", help="where its superblock begins there (default: 0)"
    )
    parser.add_argument("--root-hash", metavar="HEX", help="what the tree is trusted for")
    parser.add_argument("--fec-device", metavar="IMAGE", help="where the parity of --verity is, to repair")
    parser.add_argument("--fec-offset", metavar="SIZE", help="where it begins there (default: 0)")
    parser.add_argument(
        "--fec-roots", type=int, metavar="N", help="bytes of parity for each 255, 2..24 (default: 2)"
    )
    parser.add_argument(
        "--device",
        action="append",
        default=[],
        metavar="NAME=PATH",
        help="what stands for a name of the table",
    )
    parser.add_argument("--top", metavar="NAME", help="which device of a stack (default: the last)")
    parser.add_argument(
        "--message",
        action="append",
        default=[],
        metavar="TEXT",
        help="message to the top device's first target before all else; may be repeated",
    )
    parser.add_argument(
        "--message-to",
        action="append",
        default=[],
        nargs=3,
        dest="message_to",
        metavar=("NAME", "SECTOR", "TEXT"),
        help="the same to any device of a stack, as `dmsetup message`, when it is up and before those above it are made",
    )


def run(arguments: argparse.Namespace) -> int:
    """Do it: 0 done, 1 not (the reason is on standard error)."""
    try:
        with _open(arguments) as volume:
            for text in arguments.message:
                _reply(volume.message(text))
            {"read": _read, "write": _write, "info": _info, "export": _export}[arguments.volume_command](
                arguments, volume
            )
    except BrokenPipeError:
        raise
    except (OSError, _Failed, ExceptionGroup) as error:
        for text in _texts(error):
            sys.stderr.write(f"dmcore: {text}\n")
        return 1
    return 0


def _texts(error: BaseException) -> Iterator[str]:
    """Yield what to say of an error: an errno in words, and its name."""
    if isinstance(error, _Failed):
        yield from (f"{error}: {text}" for text in _texts(error.cause))
    elif isinstance(error, ExceptionGroup):
        group = cast("ExceptionGroup[Exception]", error)
        yield from (f"{group.message}: {text}" for each in group.exceptions for text in _texts(each))
    elif isinstance(error, OSError) and error.errno and not isinstance(error, DmError):
        where = f"{error.filename}: " if error.filename else ""
        yield f"{where}{os.strerror(error.errno)} ({errno.errorcode.get(error.errno, error.errno)})"
    else:
        yield str(error)


def _reply(text: str) -> None:
    if text:
        sys.stderr.write(f"{text}\n")


def _open(arguments: argparse.Namespace) -> Volume:
    _check_usage(arguments)
    mode: Literal["r", "r+"] = "r+" if arguments.volume_command == "write" else "r"
    if arguments.luks is not None:
        from dmcore.luks import open_luks  # noqa: PLC0415 - brings in what the other tables do without

        return open_luks(arguments.luks, key_file=arguments.key_file, mode=mode)
    if arguments.verity is not None:
        return _open_verity(arguments)
    text = arguments.table.read_text(encoding="utf-8")
    waiting = [(name, _sector(sector), text) for name, sector, text in arguments.message_to]

    def started(name: str, device: ModelDevice) -> None:
        for wanted, sector, message in waiting:
            if wanted == name:
                try:
                    _reply(device.message(message, sector))
                except OSError as error:
                    raise _Failed(f"message to {name}, {message!r}", error) from None
        unsent.discard(name)

    unsent = {name for name, _, _ in waiting}
    volume = open_volume(text, _devices(arguments.device), mode, top=arguments.top, started=started)
    if unsent:
        volume.close()
        raise SpecError("message-to", min(unsent), "the volume does not use a table of that name")
    return volume


def _check_usage(arguments: argparse.Namespace) -> None:
    """Refuse options that do not go with what is opened.

    Raises:
        SpecError: One that would say nothing, or one that misses.
    """
    if arguments.luks is not None and arguments.key_file is None:
        raise SpecError("key-file", None, "--luks needs it")
    if arguments.verity is not None and (arguments.hashes is None or arguments.root_hash is None):
        raise SpecError("verity", arguments.verity, "needs --hashes and --root-hash")
    belongs = {
        "luks": ("key_file",),
        "verity": ("hashes", "hash_offset", "root_hash", "fec_device", "fec_offset", "fec_roots"),
        "table": ("device", "top", "message_to"),
    }
    for what, options in belongs.items():
        for option in options:
            value = getattr(arguments, option)
            if value not in (None, []) and getattr(arguments, what) is None:
                raise SpecError(option.replace("_", "-"), value, f"goes with --{what}")
    if arguments.fec_device is None:
        for option in ("fec_offset", "fec_roots"):
            if getattr(arguments, option) is not None:
                raise SpecError(option.replace("_", "-"), getattr(arguments, option), "needs --fec-device")


def _open_verity(arguments: argparse.Namespace) -> Volume:
    from dmcore.verity import open_verity  # noqa: PLC0415 - the same

    try:
        root = bytes.fromhex(arguments.root_hash)
    except ValueError:
        raise SpecError("root-hash", arguments.root_hash, "must be pairs of hexadecimal digits") from None
    return open_verity(
        arguments.verity,
        arguments.hashes,
        root,
        hash_offset=parse_size(arguments.hash_offset or "0"),
        fec=arguments.fec_device,
        fec_offset=parse_size(arguments.fec_offset or "0"),
        fec_roots=2 if arguments.fec_roots is None else arguments.fec_roots,
    )


def _sector(word: str) -> int:
    if not (word.isascii() and word.isdecimal()):
        raise SpecError("message-to", word, "the sector must be a number")
    return int(word)


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
    """A line on standard error, if it is a terminal, for what takes more than two seconds; `whole` 0 is not known."""

    def __init__(self, whole: int) -> None:
        self._whole = whole
        self._begun = self._said = time.monotonic()
        self._open = False

    def at(self, done: int) -> None:
        """Tell how far it is, now and then."""
        now = time.monotonic()
        if now - self._begun > _QUIET_SECONDS and now - self._said > 1 and sys.stderr.isatty():
            speed = done / (now - self._begun) / 1e6
            part = f"{100 * done // self._whole} %" if self._whole else f"{done >> 20} MiB"
            sys.stderr.write(f"\r{part}, {speed:.0f} MB/s \033[K")
            self._said, self._open = now, True

    def end(self) -> None:
        """Leave the line to whatever comes next."""
        if self._open:
            sys.stderr.write("\r\033[K")


def _read(arguments: argparse.Namespace, volume: Volume) -> None:
    begin, end = _range(arguments, volume)
    progress = _Progress(end - begin)
    try:
        for at, data in _pieces(volume, begin, end):
            sys.stdout.buffer.write(data)
            progress.at(at - begin)
    finally:
        progress.end()


def _pieces(volume: Volume, begin: int, end: int) -> Iterator[tuple[int, memoryview]]:
    """Yield `(offset, data)` of a range; what cannot be read comes after all that can be read before it.

    Raises:
        _Failed: A block cannot be read.
    """
    buffer = memoryview(bytearray(_PIECE))
    unit = volume.block_size
    with volume.file() as file:
        file.seek(begin)
        for at in range(begin, end, _PIECE):
            data = buffer[: min(_PIECE, end - at)]
            try:
                file.readinto(data)
            except OSError:
                break
            yield at, data
        else:
            return
        while at < end:
            data = buffer[: min(unit - at % unit, end - at)]
            file.seek(at)
            try:
                file.readinto(data)
            except OSError as error:
                raise _Failed(f"reading {len(data)} bytes at {at}", error) from None
            yield at, data
            at += len(data)


def _export(arguments: argparse.Namespace, volume: Volume) -> None:
    begin, end = _range(arguments, volume)
    _not_a_disk_of(volume, arguments.output)
    progress = _Progress(end - begin)
    with arguments.output.open("wb") as output:
        try:
            for first, length in volume.extents():
                for at, data in _pieces(volume, max(first, begin), min(first + length, end)):
                    _write_data(output, at - begin, data)
                    progress.at(at - begin)
        finally:
            progress.end()
        output.truncate(end - begin)


def _not_a_disk_of(volume: Volume, output: Path) -> None:
    if output.exists() and any(path.exists() and output.samefile(path) for path in volume.paths):
        raise SpecError("FILE", str(output), "is a disk of the volume")


def _write_data(output: BinaryIO, at: int, data: memoryview) -> None:
    """Write what is no zeros."""
    for begin in range(0, len(data), len(_ZEROS)):
        part = data[begin : begin + len(_ZEROS)]
        if part.tobytes() != _ZEROS[: len(part)]:
            output.seek(at + begin)
            output.write(part)


def _write(arguments: argparse.Namespace, volume: Volume) -> None:
    at = begin = parse_size(arguments.offset)
    if begin > volume.size:
        raise SpecError("offset", arguments.offset, f"the volume has {volume.size} bytes")
    source = os.fstat(sys.stdin.fileno())
    progress = _Progress(source.st_size if stat.S_ISREG(source.st_mode) else 0)
    try:
        with volume.file() as file:
            file.seek(begin)
            while data := sys.stdin.buffer.read(_PIECE):
                done = 0
                while done < len(data):
                    try:
                        step = file.write(memoryview(data)[done:])
                    except OSError as error:
                        raise _Failed(f"writing at byte {at}", error) from None
                    done, at = done + step, at + step
                progress.at(at - begin)
    finally:
        progress.end()


def _info(arguments: argparse.Namespace, volume: Volume) -> None:
    del arguments
    print(f"size: {volume.size} bytes, blocks of {volume.block_size}")
    for name, device in volume.devices.items():
        print(f"table {name or '-'}: {device.table_text()}\nstatus {name or '-'}: {device.status_text()}")
