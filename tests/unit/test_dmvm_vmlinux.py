"""Kernel files: told apart, named, and unpacked, on small made-up images."""

from __future__ import annotations

import bz2
import lzma
import shutil
import struct
import subprocess
import zlib
from typing import TYPE_CHECKING

import pytest

from dmcore.errors import SpecError
from dmvm import vmlinux

if TYPE_CHECKING:
    from collections.abc import Callable

ELF = b"\x7fELF\x02\x01 \0Linux version 6.1.0-9-made-up (someone@somewhere) #1\0" + bytes(2000)
SIZE = struct.pack("<I", len(ELF))


def bzimage(payload: bytes, *, protocol: int = 0x20F, setup_sectors: int = 4) -> bytes:
    setup = bytearray((setup_sectors or 4) * 512 + 512)
    setup[0x1F1] = setup_sectors
    setup[0x1FE:0x200] = b"\x55\xaa"
    setup[0x202:0x206] = b"HdrS"
    struct.pack_into("<H", setup, 0x206, protocol)
    struct.pack_into("<H", setup, 0x20E, 0x400 - 0x200)
    setup[0x400 : 0x400 + 24] = b"6.1.0-9-made-up (x) #1\0\0"
    stub = b"\x90" * 77
    struct.pack_into("<II", setup, 0x248, len(stub), len(payload))
    return bytes(setup) + stub + payload + b"tail"


def _gzip(data: bytes) -> bytes:
    packer = zlib.compressobj(wbits=31)
    return packer.compress(data) + packer.flush()


def _tool(*argv: str) -> Callable[[bytes], bytes]:
    def pack(data: bytes) -> bytes:
        if shutil.which(argv[0]) is None:
            pytest.skip(f"no {argv[0]} program here")
        return subprocess.run(argv, input=data, capture_output=True, check=True).stdout + SIZE

    return pack


def _lzma(data: bytes) -> bytes:
    return lzma.compress(data, format=lzma.FORMAT_ALONE) + SIZE


@pytest.mark.parametrize(
    "pack",
    [
        pytest.param(bytes, id="none"),
        pytest.param(_gzip, id="gzip"),
        pytest.param(lambda data: lzma.compress(data) + SIZE, id="xz"),
        pytest.param(lambda data: bz2.compress(data) + SIZE, id="bzip2"),
        pytest.param(_lzma, id="lzma"),
        pytest.param(_tool("zstd", "-q", "-c"), id="zstd"),
        pytest.param(_tool("lz4", "-l", "-c"), id="lz4"),
    ],
)
@pytest.mark.parametrize("setup_sectors", [0, 4, 31])
def test_extract(pack: Callable[[bytes], bytes], setup_sectors: int) -> None:
    image = bzimage(pack(ELF), setup_sectors=setup_sectors)
    assert vmlinux.kind(image) == "bzimage"
    assert vmlinux.extract(image) == ELF
    assert vmlinux.release(image) == "6.1.0-9-made-up"


def test_an_elf_kernel_stays_as_it_is() -> None:
    assert vmlinux.kind(ELF) == "vmlinux"
    assert vmlinux.extract(ELF) is ELF
    assert vmlinux.release(ELF) == "6.1.0-9-made-up"


def test_a_uml_kernel_is_told_from_others() -> None:
    assert vmlinux.kind(ELF + b"uml_dir=\0") == "uml"


@pytest.mark.parametrize("data", [b"", b"\x7fELF", b"#!/bin/sh\n", bytes(4096)])
def test_what_is_no_kernel(data: bytes) -> None:
    assert vmlinux.kind(data) == ""
    with pytest.raises(SpecError, match="neither an ELF kernel nor a bzImage"):
        vmlinux.extract(data)
    with pytest.raises(SpecError, match="names no kernel release"):
        vmlinux.release(data)


def test_broken_images_are_refused() -> None:
    packed = _gzip(ELF)
    with pytest.raises(SpecError, match=r"protocol 2\.07 is older"):
        vmlinux.extract(bzimage(packed, protocol=0x207))
    with pytest.raises(SpecError, match="ends before its payload"):
        vmlinux.extract(bzimage(packed)[:-20])
    with pytest.raises(SpecError, match="unknown way"):
        vmlinux.extract(bzimage(b"\1\2\3\4\5\6\7\x08"))
    with pytest.raises(SpecError, match="no ELF file"):
        vmlinux.extract(bzimage(_gzip(b"something else")))
