"""Prepares a kernel of Debian from its packages."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Final

from dmcore.errors import Unsupported
from dmvm import apt, cache, deb, outoftree, prepare, sources, vmlinux
from dmvm.modules import Tree

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from dmvm.apt import Archive, Package
    from dmvm.kernels import GuestKernel, Recipe

__all__ = ["Supply", "build", "busybox"]

_VERSION_IN_PACKAGE: Final = re.compile(r"^(?:\d+:)?(\d+\.\d+)(?!\d)")


class Supply:
    """Fetches from one Debian release, and notes what it fetched."""

    def __init__(self, suite: str, work: Path, progress: Callable[[str], None]) -> None:
        """Prepare apt's state; see `Archive`."""
        self.suite = suite
        self._work = work
        self._progress = progress
        self.used: list[Package] = []
        mirror = sources.find_mirror()
        folder = cache.make_folder(cache.cache_dir() / "apt" / suite)
        self._archive: Archive = apt.Archive(mirror, suite, folder, progress)

    def update(self, *, force: bool = False) -> None:
        """Have package lists of the last hours, or fresh ones."""
        with cache.locked(f"apt-{self.suite}", self._progress):
            self._archive.update(force=force)

    def show(self, package: str) -> dict[str, str]:
        """Return the fields of a package; see `Archive.show`."""
        with cache.locked(f"apt-{self.suite}", self._progress):
            return self._archive.show(package)

    def unpack(self, packages: Sequence[str], name: str) -> Path:
        """Fetch packages and unpack them into one folder of the workspace, which is returned."""
        downloads = self._work / "downloads"
        with cache.locked(f"apt-{self.suite}", self._progress):
            fetched = self._archive.fetch(packages, downloads)
        self.used += fetched
        folder = self._work / name
        for package in fetched:
            deb.unpack(package.path, folder)
            package.path.unlink()
        return folder


def _newest(supply: Supply, recipe: Recipe, *, refresh: bool) -> dict[str, str]:
    """Return the kernel package's fields.

    Raises:
        Unsupported: The release has moved on to another line than the name promises.
    """
    supply.update(force=refresh)
    fields = supply.show(recipe.package)
    match = _VERSION_IN_PACKAGE.match(fields.get("Version", ""))
    if match is None or match[1] != recipe.line:
        raise Unsupported(
            f"a kernel {recipe.line} of Debian {recipe.suite}",
            f"{recipe.package} is at version {fields.get('Version', '?')} there",
            "name another kernel ('pytest-dm vm list' shows them)",
        )
    return fields


def busybox(supply: Supply, into: Path) -> Path:
    """Fetch a static busybox; returns its path in `into`."""
    unpacked = supply.unpack(["busybox-static"], "busybox")
    found = next(path for path in unpacked.rglob("busybox") if path.is_file() and path.parent.name == "bin")
    target = into / "busybox"
    shutil.copyfile(found, target)
    target.chmod(0o755)
    return target


def build(
    name: str, recipe: Recipe, work: Path, folder: Path, final: Path, *, refresh: bool, progress: Callable[[str], None]
) -> tuple[GuestKernel, list[dict[str, object]]]:
    """Prepare a kernel in `folder`, which will be renamed to `final`; returns it and what it was made from.

    Raises:
        Unsupported: Something it needs is not there; the error says what would help.
    """
    supply = Supply(recipe.suite, work, progress)
    fields = _newest(supply, recipe, refresh=refresh)
    make = _uml if recipe.machine == "uml" else _bare_metal
    kernel = make(name, recipe, fields, supply, folder, final, progress)
    return kernel, [package.record() for package in supply.used]


def _uml(
    name: str,
    recipe: Recipe,
    fields: dict[str, str],
    supply: Supply,
    folder: Path,
    final: Path,
    progress: Callable[[str], None],
) -> GuestKernel:
    tool = supply.unpack([f"{recipe.package}={fields['Version']}"], "uml")
    image = folder / "linux.uml"
    shutil.copyfile(next(tool.rglob("linux.uml")), image)
    image.chmod(0o755)
    program = image.read_bytes()
    if prepare.glibc_needed(program) > prepare.glibc_of_host():
        libc = supply.unpack(["libc6"], "libc")
        progress("making it run with a C library of its own ...")
        prepare.patch_interpreter([image], libc, folder / "lib", final / "lib")
    release = vmlinux.release(program)
    tree = Tree(next(path for path in tool.rglob(f"modules/{release}") if path.is_dir()))
    return prepare.assemble(
        folder,
        name=name,
        machine="uml",
        release=release,
        image=image,
        tree=tree,
        busybox=busybox(supply, folder),
        progress=progress,
    )


def _bare_metal(
    name: str,
    recipe: Recipe,
    fields: dict[str, str],
    supply: Supply,
    folder: Path,
    final: Path,
    progress: Callable[[str], None],
) -> GuestKernel:
    del final
    package, version = _dependency(fields, "linux-image-")
    release = package.removeprefix("linux-image-")
    unpacked = supply.unpack([f"{package}={version}"], "image")
    modules = next(path for path in unpacked.rglob(f"modules/{release}") if path.is_dir())
    tree = Tree(modules)
    missing = [path for path in recipe.built if not tree.has(Path(path).name)]
    if missing:
        built = outoftree.build(recipe, release, version, missing, supply, folder.parent, progress)
        for path, module in built.items():
            tree.add(module, f"kernel/{path}.ko")
    progress("unpacking the kernel's image ...")
    image = folder / "vmlinux"
    image.write_bytes(vmlinux.extract((unpacked / "boot" / f"vmlinuz-{release}").read_bytes()))
    return prepare.assemble(
        folder,
        name=name,
        machine="qemu",
        release=release,
        image=image,
        tree=tree,
        busybox=busybox(supply, folder),
        progress=progress,
    )


def _dependency(fields: dict[str, str], prefix: str) -> tuple[str, str]:
    """Return name and version of the package with that prefix that a package depends on.

    Raises:
        Unsupported: There is none.
    """
    pattern = rf"(?:^|,\s*)({re.escape(prefix)}\S+) \(= ([^)]+)\)"
    match = re.search(pattern, fields.get("Depends", ""))
    if match is None:
        package = fields.get("Package", "the package")
        raise Unsupported(f"a package {prefix}*", f"{package} depends on {fields.get('Depends', 'nothing')!r}")
    return match[1], match[2]
