"""Prepares a kernel of Debian from its packages."""

from __future__ import annotations

import re
import shutil
from typing import TYPE_CHECKING, Final

from dmcore.errors import DmError, Unsupported
from dmvm import apt, cache, deb, outoftree, prepare, sources, vmlinux
from dmvm.modules import Tree
from dmvm.prepare import Site

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from dmvm.apt import Archive, Package
    from dmvm.kernels import GuestKernel, Recipe

__all__ = ["Supply", "build", "busybox", "obstacle"]

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

    def update(self, *, force: bool = False) -> bool:
        """Have package lists of the last hours, or fresh ones; returns whether they are fresh."""
        with cache.locked(f"apt-{self.suite}", self._progress):
            return self._archive.update(force=force)

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


def obstacle() -> str:
    """Return why no package can be fetched on this machine, "" if none is in sight; nothing is fetched to find out."""
    try:
        apt.find()
        sources.find_mirror()
    except DmError as error:
        return str(error)
    return ""


def busybox(supply: Supply, into: Path) -> Path:
    """Fetch a static busybox; returns its path in `into`."""
    unpacked = supply.unpack(["busybox-static"], "busybox")
    found = next(path for path in unpacked.rglob("busybox") if path.is_file() and path.parent.name == "bin")
    target = into / "busybox"
    shutil.copyfile(found, target)
    target.chmod(0o755)
    return target


def build(site: Site, recipe: Recipe, *, refresh: bool) -> tuple[GuestKernel, list[dict[str, object]]]:
    """Prepare a kernel in the site's folder; returns it and what it was made from.

    Where a package has left the archive since the package lists were fetched, it is tried once more with fresh ones.

    Raises:
        Unsupported: Something it needs is not there; the error says what would help.
    """
    supply = Supply(recipe.suite, site.work, site.progress)
    fresh = supply.update(force=refresh)
    try:
        return _build(site, recipe, supply)
    except apt.FetchFailed:
        if fresh:
            raise
    supply = Supply(recipe.suite, site.work, site.progress)
    supply.update(force=True)
    return _build(Site.within(site.name, site.work.parent, site.final, site.progress), recipe, supply)


def _build(site: Site, recipe: Recipe, supply: Supply) -> tuple[GuestKernel, list[dict[str, object]]]:
    fields = supply.show(recipe.package)
    match = _VERSION_IN_PACKAGE.match(fields.get("Version", ""))
    if match is None or match[1] != recipe.line:
        raise Unsupported(
            f"a kernel {recipe.line} of Debian {recipe.suite}",
            f"{recipe.package} is at version {fields.get('Version', '?')} there",
            "name another kernel ('pytest-dm vm list' shows them)",
        )
    make = _uml if recipe.machine == "uml" else _bare_metal
    kernel = make(site, recipe, fields, supply)
    return kernel, [package.record() for package in supply.used]


def _uml(site: Site, recipe: Recipe, fields: dict[str, str], supply: Supply) -> GuestKernel:
    tool = supply.unpack([f"{recipe.package}={fields['Version']}"], "uml")
    image = site.folder / "linux.uml"
    shutil.copyfile(_find(tool, "linux.uml"), image)
    image.chmod(0o755)
    program = image.read_bytes()
    if prepare.glibc_needed(program) > prepare.glibc_of_host():
        libc = supply.unpack(["libc6"], "libc")
        site.progress("making it run with a C library of its own ...")
        prepare.patch_interpreter([image], libc, site.folder / "lib", site.final / "lib")
    release = vmlinux.release(program)
    tree = Tree(_find(tool, f"modules/{release}"))
    own = busybox(supply, site.folder)
    return prepare.assemble(site, machine="uml", release=release, image=image, tree=tree, busybox=own)


def _bare_metal(site: Site, recipe: Recipe, fields: dict[str, str], supply: Supply) -> GuestKernel:
    package, version = _dependency(fields, "linux-image-")
    release = package.removeprefix("linux-image-")
    unpacked = supply.unpack([f"{package}={version}"], "image")
    tree = Tree(_find(unpacked, f"modules/{release}"))
    missing = [extra for extra in recipe.extras if not tree.has(extra.module)]
    if missing:
        built = outoftree.Builder(site, recipe, release, version, supply).build(missing)
        for extra, module in zip(missing, built, strict=True):
            tree.add(module, f"kernel/{extra.folder}/{extra.module}.ko")
    site.progress("unpacking the kernel's image ...")
    image = site.folder / "vmlinux"
    image.write_bytes(vmlinux.extract(_find(unpacked, f"vmlinuz-{release}").read_bytes()))
    own = busybox(supply, site.folder)
    return prepare.assemble(site, machine="qemu", release=release, image=image, tree=tree, busybox=own)


def _find(folder: Path, pattern: str) -> Path:
    """Return the first path below a folder that ends so.

    Raises:
        Unsupported: The package is not laid out as it was when this was written.
    """
    found = next(folder.rglob(pattern), None)
    if found is None:
        raise Unsupported(f"{pattern} of a Debian package", "the package fetched does not have it")
    return found


def _dependency(fields: dict[str, str], prefix: str) -> tuple[str, str]:
    """Return name and version of the package with that prefix that a package depends on.

    Raises:
        Unsupported: There is none.
    """
    pattern = rf"(?:^|,\s*)({re.escape(prefix)}\S+) \(= ([^)]+)\)"
    match = re.search(pattern, fields.get("Depends", ""))
    if match is None:
        package = fields.get("Package", "the package")
        raise Unsupported(
            f"a package {prefix}*", f"{package} depends on {fields.get('Depends', 'nothing')!r}"
        )
    return match[1], match[2]
