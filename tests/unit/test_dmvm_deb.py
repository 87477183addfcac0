"""Debian packages, unpacked with and without dpkg-deb."""

from __future__ import annotations

import io
import lzma
import shutil
import subprocess
import tarfile
import zlib
from typing import TYPE_CHECKING

import pytest

from dmcore.errors import ParseError, Unsupported
from dmvm import deb, tools

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


def _tar() -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        content = tarfile.TarInfo("./usr/bin/tool")
        content.size, content.mode = 5, 0o755
        archive.addfile(content, io.BytesIO(b"hello"))
        for name, target in (("./usr/bin/link", "tool"), ("./usr/bin/absolute", "/usr/bin/tool")):
            link = tarfile.TarInfo(name)
            link.type, link.linkname = tarfile.SYMTYPE, target
            archive.addfile(link)
    return buffer.getvalue()


def _ar(members: dict[str, bytes]) -> bytes:
    parts = [b"!<arch>\n"]
    for name, data in members.items():
        parts.append(f"{name:<16}{0:<12}{0:<6}{0:<6}{'100644':<8}{len(data):<10}`\n".encode())
        parts.append(data + b"\n" * (len(data) % 2))
    return b"".join(parts)


def _gzip(data: bytes) -> bytes:
    packer = zlib.compressobj(wbits=31)
    return packer.compress(data) + packer.flush()


def _zstd(data: bytes) -> bytes:
    return subprocess.run(["zstd", "-q", "-c"], input=data, capture_output=True, check=True).stdout


def _package(suffix: str, pack: Callable[[bytes], bytes], control: bytes = b"odd") -> bytes:
    return _ar({"debian-binary": b"2.0\n", "control.tar": control, f"data.tar{suffix}": pack(_tar())})


PACKERS: dict[str, Callable[[bytes], bytes]] = {
    "": bytes,
    ".xz": lzma.compress,
    ".gz": _gzip,
    ".zst": _zstd,
}


@pytest.mark.parametrize("suffix", PACKERS)
def test_without_dpkg_deb(suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if suffix == ".zst" and shutil.which("zstd") is None:
        pytest.skip("no zstd program here")
    package = tmp_path / "p.deb"
    package.write_bytes(_package(suffix, PACKERS[suffix]))
    real = tools.find
    monkeypatch.setattr(tools, "find", lambda name: None if name == "dpkg-deb" else real(name))
    deb.unpack(package, tmp_path / "out")
    tool = tmp_path / "out" / "usr" / "bin" / "tool"
    assert tool.read_bytes() == b"hello"
    assert tool.stat().st_mode & 0o777 == 0o755
    assert (tool.parent / "link").readlink().name == "tool"
    assert str((tool.parent / "absolute").readlink()) == "/usr/bin/tool"


def test_odd_members_are_padded_to_even_offsets() -> None:
    packed = _ar({"a": b"1", "b/": b"22", "c": b""})
    assert list(deb.members(io.BytesIO(packed))) == [("a", b"1"), ("b", b"22"), ("c", b"")]


@pytest.mark.parametrize("data", [b"", b"!<arch>\nshort", b"no archive at all"])
def test_what_is_no_archive_is_refused(data: bytes) -> None:
    with pytest.raises(ParseError):
        list(deb.members(io.BytesIO(data)) or deb.data_member(io.BytesIO(data)))


def test_a_cut_archive_is_refused() -> None:
    with pytest.raises(ParseError, match="bytes of content"):
        list(deb.members(io.BytesIO(_ar({"a": b"1234"})[:-2])))


def test_a_package_without_data_is_refused() -> None:
    with pytest.raises(ParseError, match=r"data\.tar"):
        deb.data_member(io.BytesIO(_ar({"debian-binary": b"2.0\n"})))


def test_without_zstd_the_message_names_the_package(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    try:
        __import__("compression.zstd")
    except ImportError:
        monkeypatch.setenv("PATH", str(tmp_path))
        with pytest.raises(Unsupported, match="apt-get install zstd"):
            deb.zstd_decompress(b"\x28\xb5\x2f\xfd")
