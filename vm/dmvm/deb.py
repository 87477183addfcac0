"""Unpacks Debian packages without installing them, with dpkg-deb where it is, else by itself."""

from __future__ import annotations

import io
import lzma
import tarfile
import zlib
from typing import TYPE_CHECKING, BinaryIO, Final, cast

from dmcore.errors import ParseError, Unsupported
from dmvm import tools

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

__all__ = ["data_member", "members", "unpack", "zstd_decompress"]

_AR_MAGIC: Final = b"!<arch>\n"
_SECONDS: Final = 300.0


def unpack(package: Path, into: Path) -> None:
    """Unpack the files of a package below `into`, which is made.

    Raises:
        Unsupported: The package is broken, or nothing here can decompress it.
    """
    into.mkdir(parents=True, exist_ok=True)
    dpkg_deb = tools.find("dpkg-deb")
    if dpkg_deb:
        tools.run([dpkg_deb, "-x", package, into], need=f"the files of {package.name}", seconds=_SECONDS)
        return
    with package.open("rb") as file:
        name, data = data_member(file)
    with tarfile.open(fileobj=io.BytesIO(_decompress(name, data))) as archive:
        _extract(archive, into)


def _extract(archive: tarfile.TarFile, into: Path) -> None:
    # Packages have absolute symbolic links, which the stricter "data" filter refuses.
    if hasattr(tarfile, "tar_filter"):
        archive.extractall(into, filter="tar")
    else:
        archive.extractall(into)  # noqa: S202 - signed by the distribution; Python < 3.11.4 has no filters


def members(file: BinaryIO) -> Iterator[tuple[str, bytes]]:
    """Yield name and content of each member of an ar archive (ar(5)).

    Raises:
        ParseError: It is none, or ends early.
    """
    if file.read(8) != _AR_MAGIC:
        raise ParseError("ar archive", 0, None, "the magic !<arch>")
    while header := file.read(60):
        if len(header) != 60 or header[58:] != b"`\n":
            raise ParseError("ar archive", 0, repr(header[:16]), "a member's header")
        size = int(header[48:58])
        content = file.read(size)
        if len(content) != size:
            raise ParseError("ar archive", 0, repr(header[:16]), f"{size} bytes of content")
        file.read(size % 2)
        yield header[:16].decode("ascii").strip().rstrip("/"), content


def data_member(file: BinaryIO) -> tuple[str, bytes]:
    """Return name and content of a package's data.tar member.

    Raises:
        ParseError: It has none.
    """
    for name, content in members(file):
        if name.startswith("data.tar"):
            return name, content
    raise ParseError("deb package", 0, None, "a member data.tar")


def _decompress(name: str, data: bytes) -> bytes:
    suffix = name.removeprefix("data.tar")
    if suffix == ".xz":
        return lzma.decompress(data)
    if suffix == ".gz":
        return zlib.decompress(data, wbits=31)
    if suffix == ".zst":
        return zstd_decompress(data)
    if suffix:
        raise Unsupported(f"to unpack {name}", "this compression is not known", "install dpkg")
    return data


def zstd_decompress(data: bytes) -> bytes:
    """Return what zstd packed, by Python's module (3.14) or the zstd program; data after the first frame is left.

    Raises:
        Unsupported: Neither is there, or the data is broken.
    """
    import importlib  # noqa: PLC0415 - only for kernels packed so
    import tempfile  # noqa: PLC0415 - as above
    from pathlib import Path  # noqa: PLC0415 - as above

    need = "to unpack data that zstd packed"
    try:
        module = importlib.import_module("compression.zstd")
    except ImportError:
        module = None
    if module is not None:
        try:
            return cast("bytes", module.ZstdDecompressor().decompress(data))
        except module.ZstdError as error:
            raise Unsupported(need, str(error)) from error
    program = tools.find("zstd") or tools.find("unzstd")
    if program is None:
        raise Unsupported(need, "there is no zstd program on PATH", "apt-get install zstd")
    with tempfile.TemporaryDirectory(prefix="pytest-dm-") as folder:
        packed, plain = Path(folder, "packed.zst"), Path(folder, "plain")
        packed.write_bytes(data)
        tools.run([program, "-d", "-q", "-f", packed, "-o", plain], need=need, seconds=_SECONDS)
        return plain.read_bytes()
