"""Kernels that are already on this machine: the one it runs, or a file that the user names."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Final

from dmcore.errors import SpecError, Unsupported
from dmvm import prepare, tools, vmlinux
from dmvm.kernels import BUSYBOX_SUITE, RECIPES
from dmvm.modules import Tree

if TYPE_CHECKING:
    from dmvm.kernels import GuestKernel
    from dmvm.prepare import Site

__all__ = ["build", "fingerprint", "locate"]

_HOST: Final = "host"
_READABLE: Final = "sudo chmod a+r {path}, or name a kernel that is fetched ('pytest-dm vm list')"


def locate(name: str, root: Path = Path("/")) -> tuple[Path, Path | None]:
    """Return the image and module folder that "host", PATH or PATH:MODULES means; None if no folder is named.

    Raises:
        SpecError: `name` is neither a known name nor a file.
        Unsupported: This machine's own kernel is not on its disk, or this user may not read it.
    """
    if name == _HOST:
        return _running(root)
    path, _, folder = name.partition(":")
    image = Path(path)
    if "/" not in path and not image.exists():
        known = ", ".join([*RECIPES, _HOST])
        raise SpecError(
            "kernel", name, f"one of {known}, or a path (with a slash) of a linux.uml, vmlinux or bzImage"
        )
    if not image.is_file():
        raise SpecError("kernel", name, f"there is no file {path}")
    if folder and not Path(folder).is_dir():
        raise SpecError("kernel", name, f"there is no module folder {folder}")
    return _readable(image.resolve()), Path(folder).resolve() if folder else None


def _running(root: Path) -> tuple[Path, Path]:
    release = os.uname().release
    modules = next((path for path in _module_folders(root, release) if path.is_dir()), None)
    images = (root / "boot" / f"vmlinuz-{release}", root / "lib" / "modules" / release / "vmlinuz")
    image = next((path for path in images if path.is_file()), None)
    if image is None or modules is None:
        missing = (
            " or ".join(str(path) for path in images) if image is None else f"{root}lib/modules/{release}"
        )
        raise Unsupported(
            "the kernel this machine runs, as a file with its modules",
            f"it runs {release}, and there is no {missing}",
            "name a kernel that is fetched ('pytest-dm vm list' shows them)",
        )
    return _readable(image), modules


def _module_folders(root: Path, release: str) -> tuple[Path, Path]:
    return root / "lib" / "modules" / release, root / "usr" / "lib" / "modules" / release


def _readable(image: Path) -> Path:
    if not os.access(image, os.R_OK):
        raise Unsupported(f"to read {image}", "this user may not", _READABLE.format(path=image))
    return image


def fingerprint(name: str) -> list[str]:
    """Return words that change when the kernel that `name` means is replaced.

    Raises:
        SpecError, Unsupported: As `locate`.
    """
    image, folder = locate(name)
    words = [name]
    for path in (image, folder, folder / "modules.dep" if folder else None):
        if path is not None and path.exists():
            status = path.stat()
            words += [str(path), str(status.st_size if path.is_file() else 0), str(status.st_mtime_ns)]
    return words


def build(site: Site) -> tuple[GuestKernel, list[dict[str, object]]]:
    """Prepare a kernel of this machine in the site's folder; returns it and what it was made from.

    Raises:
        SpecError: The file is no kernel.
        Unsupported: Something it needs is not there; the error says what would help.
    """
    source, modules = locate(site.name)
    image = source.read_bytes()
    kind = vmlinux.kind(image)
    if not kind:
        raise SpecError("kernel", site.name, "the file is no linux.uml, vmlinux or bzImage")
    release = vmlinux.release(image)
    machine = "uml" if kind == "uml" else "qemu"
    target = site.folder / ("linux.uml" if kind == "uml" else "vmlinux")
    target.write_bytes(image if kind == "uml" else vmlinux.extract(image))
    target.chmod(0o755)
    tree = Tree(_modules(source, modules, release))
    busybox = _busybox(site)
    kernel = prepare.assemble(
        site, machine=machine, release=release, image=target, tree=tree, busybox=busybox
    )
    return kernel, [{"file": str(source), "modules": str(modules) if modules else ""}]


def _modules(image: Path, named: Path | None, release: str) -> Path | None:
    """Return the folder with kernel/...: the one named, or one installed beside the image.

    Raises:
        SpecError: What was named holds no modules of the release.
    """
    if named is None:
        folders = (*_module_folders(image.parent, release), image.parent / "modules")
        return next((path for path in folders if (path / "kernel").is_dir()), None)
    candidates = (named, *_module_folders(named, release), named / release)
    for path in candidates:
        if (path / "kernel").is_dir():
            return path
    raise SpecError(
        "kernel", f"{image}:{named}", f"the folder has neither kernel/ nor lib/modules/{release}/kernel/"
    )


def _is_static(program: Path) -> bool:
    data = program.read_bytes()
    return data[:4] == b"\x7fELF" and b"/ld-linux" not in data and b"/ld-musl" not in data


def _busybox(site: Site) -> Path:
    """Take this machine's busybox if it is static, else fetch one."""
    own = tools.find("busybox")
    target = site.folder / "busybox"
    if own and _is_static(Path(own)):
        shutil.copyfile(own, target)
        target.chmod(0o755)
        return target
    from dmvm import debian  # noqa: PLC0415 - only where something is fetched

    try:
        supply = debian.Supply(BUSYBOX_SUITE, site.work, site.progress)
        supply.update()
        return debian.busybox(supply, site.folder)
    except Unsupported as error:
        raise Unsupported(
            "a static busybox", str(error), "install your distribution's static busybox"
        ) from error
