"""Kernel images: what a file is, which release it holds, and the uncompressed ELF kernel within a bzImage.

An emulated guest spends seconds unpacking its own kernel; unpacked once on the host it starts at once through
the PVH entry point (arch/x86/platform/pvh). Layout: Documentation/arch/x86/boot.rst, "The Real-Mode Kernel Header".
"""

from __future__ import annotations

import bz2
import lzma
import re
import struct
import zlib
from typing import TYPE_CHECKING, Final

from dmcore.errors import SpecError, Unsupported
from dmvm import tools
from dmvm.deb import zstd_decompress

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["extract", "kind", "release"]

_BANNER: Final = re.compile(rb"Linux version (\d+\.\d+[^\s\0%]*) ")
_BOOT_VERSION: Final = re.compile(rb"^(\d+\.\d+\S*) ")
_UML: Final = b"uml_dir="
_SETUP_SECTORS, _BOOT_FLAG, _MAGIC, _VERSION_POINTER, _PAYLOAD = 0x1F1, 0x1FE, 0x202, 0x20E, 0x248


def kind(image: bytes) -> str:
    """Return what a file is: "uml", "vmlinux", "bzimage", or "" if it is no kernel.

    Args:
        image: The whole file.
    """
    if image[:4] == b"\x7fELF":
        if _UML in image:
            return "uml"
        return "vmlinux" if _BANNER.search(image) else ""
    if image[_BOOT_FLAG : _BOOT_FLAG + 2] == b"\x55\xaa" and image[_MAGIC : _MAGIC + 4] == b"HdrS":
        return "bzimage"
    return ""


def release(image: bytes) -> str:
    """Return the kernel release a file holds (`uname -r`), from its banner.

    Raises:
        SpecError: It has none.
    """
    if kind(image) == "bzimage":
        offset = int.from_bytes(image[_VERSION_POINTER : _VERSION_POINTER + 2], "little") + 0x200
        match = _BOOT_VERSION.match(image[offset : offset + 256])
    else:
        match = _BANNER.search(image)
    if match is None:
        raise SpecError("kernel", "", "the file names no kernel release")
    return match[1].decode("ascii", "replace")


def extract(image: bytes) -> bytes:
    """Return the ELF kernel within a bzImage; an ELF kernel is returned as it is.

    Raises:
        SpecError: It is no kernel, or too old to say where its payload lies (boot protocol before 2.08).
        Unsupported: Nothing here can decompress it.
    """
    if kind(image) == "vmlinux":
        return image
    if kind(image) != "bzimage":
        raise SpecError("kernel", "", "the file is neither an ELF kernel nor a bzImage")
    protocol = int.from_bytes(image[0x206:0x208], "little")
    if protocol < 0x208:
        raise SpecError("kernel", "", f"boot protocol {protocol >> 8}.{protocol & 255:02} is older than 2.08")
    setup = (image[_SETUP_SECTORS] or 4) * 512 + 512
    offset, length = struct.unpack_from("<II", image, _PAYLOAD)
    payload = image[setup + offset : setup + offset + length]
    if len(payload) != length:
        raise SpecError("kernel", "", "the file ends before its payload does")
    plain = _decompress(payload)
    if plain[:4] != b"\x7fELF":
        raise SpecError("kernel", "", "its payload is no ELF file")
    return plain


def _decompress(payload: bytes) -> bytes:
    for magic, decompress in _FORMATS.items():
        if payload.startswith(magic):
            return decompress(payload)
    raise SpecError("kernel", "", f"its payload is compressed in an unknown way ({payload[:6].hex()})")


def _xz(payload: bytes) -> bytes:
    return lzma.LZMADecompressor(lzma.FORMAT_XZ).decompress(payload)


def _lzma(payload: bytes) -> bytes:
    return lzma.LZMADecompressor(lzma.FORMAT_ALONE).decompress(payload)


def _gzip(payload: bytes) -> bytes:
    return zlib.decompressobj(wbits=31).decompress(payload)


def _bzip2(payload: bytes) -> bytes:
    return bz2.BZ2Decompressor().decompress(payload)


def _zstd(payload: bytes) -> bytes:
    return zstd_decompress(
        payload[:-4]
    )  # the kernel's build appends the unpacked size (scripts/Makefile.lib, size_append)


def _by_tool(program: str, package: str) -> Callable[[bytes], bytes]:
    """Unpack with a program that reads stdin's data from a file; the kernel appends 4 bytes of size."""

    def decompress(payload: bytes) -> bytes:
        import tempfile  # noqa: PLC0415 - only for kernels packed so
        from pathlib import Path  # noqa: PLC0415 - as above

        need = f"to unpack a kernel that {program} packed"
        if tools.find(program) is None:
            raise Unsupported(need, f"there is no {program} program on PATH", f"apt-get install {package}")
        with tempfile.TemporaryDirectory(prefix="pytest-dm-") as folder:
            packed, plain = Path(folder, f"packed.{program}"), Path(folder, "plain")
            packed.write_bytes(payload[:-4])
            tools.run([program, "-d", "-f", packed, plain], need=need, seconds=120)
            return plain.read_bytes()

    return decompress


def _none(payload: bytes) -> bytes:
    return payload


_FORMATS: Final[dict[bytes, Callable[[bytes], bytes]]] = {
    b"\xfd7zXZ\0": _xz,
    b"\x28\xb5\x2f\xfd": _zstd,
    b"\x1f\x8b": _gzip,
    b"BZh": _bzip2,
    b"\x5d\0\0": _lzma,
    b"\x02\x21\x4c\x18": _by_tool("lz4", "lz4"),
    b"\x7fELF": _none,
}
