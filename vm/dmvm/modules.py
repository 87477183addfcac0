"""Makes a guest's module folder: the wanted ones and what they depend on, uncompressed, with modprobe's tables."""

from __future__ import annotations

import fnmatch
import gzip
import lzma
import shutil
from typing import TYPE_CHECKING, Final

from dmcore.errors import Unsupported
from dmvm import modinfo
from dmvm.deb import zstd_decompress

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from pathlib import Path

    from dmvm.modinfo import ModuleInfo

__all__ = ["Tree", "closure", "load_order", "read_module", "tables"]

_UNPACK: Final[dict[str, Callable[[bytes], bytes]]] = {
    ".ko": bytes,
    ".ko.xz": lzma.decompress,
    ".ko.gz": gzip.decompress,
    ".ko.zst": zstd_decompress,
}


def _suffix(path: Path) -> str:
    return next((suffix for suffix in _UNPACK if path.name.endswith(suffix)), "")


def read_module(path: Path) -> bytes:
    """Return a module's ELF image, uncompressed."""
    return _UNPACK[_suffix(path)](path.read_bytes())


def closure(wanted: Iterable[str], infos: Mapping[str, ModuleInfo], builtin: frozenset[str]) -> list[str]:
    """Return the wanted modules and all they depend on, dependencies first.

    Args:
        wanted: Module names as the kernel spells them, or an alias's target; built-in ones are passed over.
        infos: Modules by name.
        builtin: Names of what the kernel has built in.

    Raises:
        Unsupported: One, or one it depends on, is neither a module nor built in.
    """
    order: dict[str, None] = {}

    def visit(name: str, needed_by: str, above: tuple[str, ...]) -> None:
        if name in order or name in above:
            return
        info = infos.get(name)
        if info is None:
            if name in builtin:
                return
            by = f", which {needed_by} needs" if needed_by else ""
            raise Unsupported(f"kernel module {name}{by}", "this kernel's modules have none of the name")
        for other in info.soft:
            if other in infos:
                visit(other, name, (*above, name))
        for other in info.depends:
            visit(other, name, (*above, name))
        order[name] = None

    for name in wanted:
        visit(name, "", ())
    return list(order)


def load_order(name: str, infos: Mapping[str, ModuleInfo], builtin: frozenset[str]) -> list[str]:
    """Return what to load for one module, in order, itself last; nothing if it is built in."""
    return closure([name], infos, builtin)


def tables(
    paths: Mapping[str, str], infos: Mapping[str, ModuleInfo], builtin: frozenset[str]
) -> dict[str, str]:
    """Return the text of modprobe's tables: modules.dep and modules.alias.

    What a module wants loaded before it (softdep) is listed as a dependency, since busybox knows no other.

    Args:
        paths: Path of each module below the folder, by name.
        infos: Modules by name.
        builtin: Names of what the kernel has built in.
    """
    dep: list[str] = []
    alias = ["# Aliases extracted from modules themselves."]
    for name, path in sorted(paths.items(), key=lambda item: item[1]):
        needed = [other for other in load_order(name, infos, builtin) if other != name]
        dep.append(f"{path}:{''.join(' ' + paths[other] for other in reversed(needed))}")
        alias += [f"alias {pattern} {name}" for pattern in infos[name].aliases]
    return {"modules.dep": "\n".join(dep) + "\n", "modules.alias": "\n".join(alias) + "\n"}


class Tree:
    """The modules of one kernel as a distribution or `make modules_install` laid them out."""

    def __init__(self, folder: Path | None) -> None:
        """Look at a folder with kernel/...; None for a kernel without modules."""
        self.folder = folder
        self.builtin: frozenset[str] = frozenset()
        self.builtin_known = False
        self._files: dict[str, tuple[Path, str]] = {}
        self._images: dict[str, bytes] = {}
        self.infos: dict[str, ModuleInfo] = {}
        if folder is None:
            return
        listed = folder / "modules.builtin"
        if listed.is_file():
            self.builtin_known = True
            words = listed.read_text(encoding="utf-8").split()
            self.builtin = frozenset(modinfo.normal(_stem(word.rpartition("/")[2])) for word in words)
        for path in sorted(folder.rglob("*.ko*")):
            if _suffix(path):
                self.add(path, path.relative_to(folder).as_posix())

    def add(self, path: Path, where: str) -> None:
        """Take one more module in, to lie at `where` below the folder."""
        self._files[modinfo.normal(_stem(path.name))] = (path, _stem(where) + ".ko")

    def _load(self, name: str) -> None:
        """Read a module and, in turn, those it names."""
        waiting = [name]
        while waiting:
            current = waiting.pop()
            if current in self.infos or current not in self._files:
                continue
            image = read_module(self._files[current][0])
            info = modinfo.parse(image, current)
            self._images[current] = image
            self.infos[current] = info
            waiting += [*info.depends, *info.soft]

    def find(self, patterns: Iterable[str]) -> list[str]:
        """Return the names of modules whose path below kernel/ matches a pattern (``*`` spans slashes)."""
        found: list[str] = []
        for name, (_, where) in self._files.items():
            path = where.removeprefix("kernel/").removesuffix(".ko")
            if any(fnmatch.fnmatchcase(path, pattern) for pattern in patterns):
                found.append(name)
        return found

    def has(self, name: str) -> bool:
        """Whether it is there as a module, or known to be built in."""
        return modinfo.normal(name) in self._files or modinfo.normal(name) in self.builtin

    def order(self, names: Iterable[str]) -> list[str]:
        """Return what to load for these, dependencies first; what is built in, or may be, is left out.

        Raises:
            Unsupported: One is no module, and the kernel's list of what is built in does not name it either.
        """
        wanted = [modinfo.normal(name) for name in names]
        for name in wanted:
            self._load(name)
        present = [name for name in wanted if self.builtin_known or name in self._files]
        return closure(present, self.infos, self.builtin)

    def write(self, patterns: Iterable[str], also: Sequence[str], into: Path) -> dict[str, Path]:
        """Write the modules of the patterns and those named, with what they depend on; returns their paths by name."""
        names = self.order([*self.find(patterns), *(name for name in also if self.has(name))])
        into.mkdir(parents=True)
        (into / "kernel").mkdir()
        where: dict[str, str] = {}
        for name in names:
            where[name] = self._files[name][1]
            path = into / where[name]
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(self._images[name])
        infos = {name: self.infos[name] for name in names}
        for table, text in tables(where, infos, self.builtin).items():
            (into / table).write_text(text, encoding="utf-8")
        for name in ("modules.builtin", "modules.builtin.modinfo", "modules.order"):
            if self.folder is not None and (self.folder / name).is_file():
                shutil.copyfile(self.folder / name, into / name)
        for name in ("modules.symbols", "modules.softdep"):
            (into / name).write_text("", encoding="utf-8")
        return {name: into / path for name, path in where.items()}

    def release_of(self, name: str) -> str:
        """Return the kernel release that a module was built for."""
        self._load(modinfo.normal(name))
        return self.infos[modinfo.normal(name)].vermagic.partition(" ")[0]


def _stem(name: str) -> str:
    suffix = next((suffix for suffix in _UNPACK if name.endswith(suffix)), "")
    return name.removesuffix(suffix)
