"""Builds modules that a distribution's kernel leaves out, from the distribution's own source and headers.

Nothing is installed: the headers, the build tools and the source are unpacked in the workspace. Of the source's
archive only the files to build are taken.
"""

from __future__ import annotations

import os
import re
import tarfile
from typing import TYPE_CHECKING, Final

from dmcore.errors import Unsupported
from dmvm import modinfo, prepare, tools

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from dmvm.debian import Supply
    from dmvm.kernels import Extra, Recipe
    from dmvm.prepare import Site

__all__ = ["Builder", "makefile", "take"]

_SECONDS: Final = 300.0
_TOOLS: Final = (
    "scripts/basic/*",
    "scripts/mod/*",
    "scripts/genksyms/*",
    "scripts/recordmcount",
    "tools/objtool/*",
)
_LIBRARIES: Final = ("libc6", "libelf1t64", "zlib1g", "libzstd1")
_FLAGS: Final = {"CONFIG_CC_HAS_MIN_FUNCTION_ALIGNMENT": "-fmin-function-alignment=16"}
"""Options of the kernel's configuration that stand for a flag older compilers lack, and that its makefiles do without."""

_COMPILER: Final = "apt-get install --no-install-recommends gcc make libc6-dev libelf1"


class Builder:
    """Builds modules for one kernel package."""

    def __init__(self, site: Site, recipe: Recipe, release: str, version: str, supply: Supply) -> None:
        """Take note of the kernel.

        Args:
            site: Where it is being made.
            recipe: The kernel, with the name of its source package.
            release: Its release, as `uname -r` says.
            version: Version of its packages.
            supply: Where packages come from.
        """
        self._site = site
        self._recipe = recipe
        self._release = release
        self._version = version
        self._supply = supply

    def build(self, extras: Sequence[Extra]) -> list[Path]:
        """Build modules; returns their .ko files in the same order.

        Raises:
            Unsupported: gcc or make is missing, a package is, or the compiler refuses the source.
        """
        names = ", ".join(extra.module for extra in extras)
        need = f"to build {names} for Linux {self._release}"
        absent = [program for program in ("gcc", "make") if tools.find(program) is None]
        if absent:
            raise Unsupported(need, f"there is no {' and no '.join(absent)} on PATH", _COMPILER)
        headers = self._headers()
        source = self._supply.unpack([f"{self._recipe.source}={self._version}"], "source")
        left_out = f"the kernel of Debian {self._recipe.suite} comes without"
        self._site.progress(f"building {names} for {self._release} ({left_out}) ...")
        archive = next(source.rglob("linux-source-*.tar.xz"))
        folders = {extra.folder: self._site.work / "build" / extra.folder for extra in extras}
        for folder, into in folders.items():
            here = [extra for extra in extras if extra.folder == folder]
            take(archive, folder, [f"{part}.c" for extra in here for part in extra.parts], into)
            (into / "Makefile").write_text(makefile(here), encoding="utf-8")
            self._make(headers, into, need)
        built = [folders[extra.folder] / f"{extra.module}.ko" for extra in extras]
        for module in built:
            _check(module, self._release)
        return built

    def _make(self, headers: Path, folder: Path, need: str) -> None:
        without = [f"{option}=" for option, flag in _FLAGS.items() if not _compiler_knows(flag)]
        without.append("CONFIG_DEBUG_INFO_BTF_MODULES=")  # type information for tracers, which needs pahole
        words = ["make", f"-j{os.cpu_count() or 1}", "-C", str(headers), f"M={folder}", "CC=gcc"]
        words += ["CROSS_COMPILE=", *without, "modules"]
        tools.run(words, need=need, seconds=_SECONDS, hint=_COMPILER)

    def _headers(self) -> Path:
        """Fetch the kernel's headers and build tools; returns the folder to build in."""
        package = f"linux-headers-{self._release}"
        depends = self._supply.show(package).get("Depends", "")
        wanted = [f"{package}={self._version}"]
        for pattern in (r"linux-headers-[^\s,]+-common", r"linux-kbuild-[^\s,]+"):
            match = re.search(rf"(?:^|,\s*)({pattern})", depends)
            if match is None:
                raise Unsupported(f"a package {pattern}", f"{package} depends on {depends!r}")
            wanted.append(f"{match[1]}={self._version}")
        root = self._supply.unpack(wanted, "headers")
        for folder in (root / "usr" / "src").iterdir():
            if folder.is_dir() and not folder.is_symlink():
                _relocate(folder, root)
        self._make_tools_run(root)
        return root / "usr" / "src" / package

    def _make_tools_run(self, root: Path) -> None:
        """Give the build tools a newer release's C library if this machine's is too old for them."""
        kbuild = next(path for path in (root / "usr" / "lib").glob("linux-kbuild-*") if path.is_dir())
        found = [path for pattern in _TOOLS for path in kbuild.glob(pattern)]
        files = [path for path in found if path.is_file() and not path.is_symlink()]
        programs = [path for path in files if path.read_bytes()[:4] == b"\x7fELF"]
        needed = max((prepare.glibc_needed(path.read_bytes()) for path in programs), default=(0, 0))
        if needed > prepare.glibc_of_host():
            self._site.progress("giving the kernel's build tools a C library of their own ...")
            libc = self._supply.unpack(_LIBRARIES, "tools-libc")
            folder = self._site.work / "tools-lib"
            prepare.patch_interpreter(programs, libc, folder, folder)


def _compiler_knows(flag: str) -> bool:
    try:
        tools.run(["gcc", flag, "-fsyntax-only", "-x", "c", "/dev/null"], need="gcc", seconds=30)
    except Unsupported:
        return False
    return True


def _relocate(folder: Path, root: Path) -> None:
    """Let the makefiles of a headers folder find the rest where it is unpacked."""
    makefile = folder / "Makefile"
    if makefile.is_file():
        text = makefile.read_text(encoding="utf-8")
        makefile.write_text(
            re.sub(r"(?m)^include /usr/src/", f"include {root}/usr/src/", text), encoding="utf-8"
        )


def makefile(extras: Sequence[Extra]) -> str:
    """Return a kbuild makefile for modules of one folder."""
    lines = [f"obj-m += {extra.module}.o" for extra in extras]
    lines += [
        f"{extra.module}-y := {' '.join(f'{part}.o' for part in extra.parts)}"
        for extra in extras
        if extra.parts != (extra.module,)
    ]
    return "\n".join(lines) + "\n"


def take(archive: Path, folder: str, wanted: Sequence[str], into: Path) -> None:
    """Extract files of one folder of a source archive, and the headers in it and below, reading no further.

    Raises:
        Unsupported: A file is not in it.
    """
    left = set(wanted)
    prefix = f"{folder}/"
    with tarfile.open(archive, "r|xz") as packed:
        for member in packed:
            path = member.name.removeprefix("./").partition("/")[2]
            if not path.startswith(prefix):
                if not left and not folder.startswith(path):
                    return
                continue
            name = path.removeprefix(prefix)
            content = packed.extractfile(member) if name in left or name.endswith(".h") else None
            if content is not None:
                (into / name).parent.mkdir(parents=True, exist_ok=True)
                (into / name).write_bytes(content.read())
                left.discard(name)
    if left:
        raise Unsupported(", ".join(sorted(left)), f"not in {folder} of {archive.name}")


def _check(module: Path, release: str) -> None:
    built_for = modinfo.parse(module.read_bytes(), module.stem).vermagic.partition(" ")[0]
    if built_for != release:
        raise Unsupported(f"{module.name} for Linux {release}", f"it came out for {built_for}")
