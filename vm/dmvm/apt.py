"""Fetches Debian packages with apt, from a private state: nothing is installed, and no root is needed.

The machine's own apt configuration stays in force (proxies, certificates, credentials); its sources, lists,
preferences and hooks do not. apt checks the archive's signatures.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from dmcore.errors import Unsupported
from dmvm import tools

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from dmvm.sources import Mirror

__all__ = ["Archive", "FetchFailed", "Package", "configuration", "find", "parse_uris"]

_LISTS_SECONDS: Final = 900.0
_FETCH_SECONDS: Final = 3600.0
_FRESH_SECONDS: Final = 6 * 3600.0
_URI: Final = re.compile(
    r"^'(?P<uri>[^']*)' (?P<file>\S+) (?P<size>\d+) SHA256:(?P<sha256>[0-9a-f]{64})$", re.MULTILINE
)
_OFFLINE: Final = (
    "check this machine's network and proxy settings for apt, or name a kernel of your own by its path"
)


@dataclass(frozen=True)
class Package:
    """A package that was fetched.

    Attributes:
        name: Its name.
        version: Its version.
        size: Size of the archive in bytes.
        sha256: Hash of the archive, which apt has checked.
        path: Where it lies.
    """

    name: str
    version: str
    size: int
    sha256: str
    path: Path

    def record(self) -> dict[str, object]:
        """Return what a manifest keeps of it."""
        return {"package": self.name, "version": self.version, "size": self.size, "sha256": self.sha256}


def configuration(folder: Path, *, root: bool) -> str:
    """Return the apt.conf(5) text of a private state in `folder`, read after the machine's own configuration."""
    quoted = str(folder)
    lines = [
        "#clear APT::Update::Pre-Invoke;",
        "#clear APT::Update::Post-Invoke;",
        "#clear APT::Update::Post-Invoke-Success;",
        "#clear APT::Architectures;",
        'APT::Architecture "amd64";',
        'APT::Architectures { "amd64"; };',
        f'Dir::State "{quoted}/state";',
        f'Dir::State::Lists "{quoted}/lists";',
        f'Dir::State::status "{quoted}/state/status";',
        f'Dir::Cache "{quoted}/cache";',
        f'Dir::Etc::SourceList "{quoted}/sources.list";',
        'Dir::Etc::SourceParts "/dev/null";',
        'Dir::Etc::Preferences "/dev/null";',
        'Dir::Etc::PreferencesParts "/dev/null";',
        'Acquire::Languages "none";',
        'Acquire::GzipIndexes "true";',
        'Acquire::Retries "3";',
        'Acquire::http::Timeout "30";',
        'Acquire::https::Timeout "30";',
        'Acquire::IndexTargets::deb::Contents-deb::DefaultEnabled "false";',
        'Acquire::IndexTargets::deb::DEP-11::DefaultEnabled "false";',
        'Acquire::IndexTargets::deb::CNF::DefaultEnabled "false";',
        'APT::Get::List-Cleanup "true";',
        'APT::Install-Recommends "false";',
    ]
    if root:
        lines.append('APT::Sandbox::User "root";')
    return "\n".join(lines) + "\n"


def parse_uris(text: str) -> list[tuple[str, str, int, str]]:
    """Return (address, file name, size, SHA-256) of each line of ``apt-get --print-uris download``."""
    return [(m["uri"], m["file"], int(m["size"]), m["sha256"]) for m in _URI.finditer(text)]


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class FetchFailed(Unsupported):
    """A package is not offered any more, or did not arrive."""


def find() -> str:
    """Return the path of apt-get.

    Raises:
        Unsupported: There is none on this machine.
    """
    found = tools.find("apt-get")
    if found is None:
        raise Unsupported(
            "apt-get, to fetch a guest kernel of Debian",
            "there is none on PATH",
            "name a kernel of your own: --dm-kernel=/path/to/vmlinuz:/path/to/lib/modules/RELEASE",
        )
    return found


class Archive:
    """One Debian release, seen through apt with a state of its own.

    The caller holds the lock of `folder`.
    """

    def __init__(self, mirror: Mirror, suite: str, folder: Path, progress: Callable[[str], None]) -> None:
        """Find apt and lay out its state; nothing is fetched yet.

        Raises:
            Unsupported: There is no apt-get on this machine.
        """
        self._apt = find()
        self._suite = suite
        self._folder = folder
        self._progress = progress
        for name in ("state", "lists/partial", "cache/archives/partial"):
            (folder / name).mkdir(parents=True, exist_ok=True)
        (folder / "state" / "status").touch()
        self._sources = "\n".join(mirror.lines(suite)) + "\n"
        self._configuration = folder / "apt.conf"
        self._configuration.write_text(configuration(folder, root=os.geteuid() == 0), encoding="utf-8")

    def _words(self, program: str, *words: str) -> list[str]:
        sibling = str(Path(self._apt).parent / program)
        return [sibling, "-q", "-c", str(self._configuration), *words]

    def update(self, *, force: bool = False) -> bool:
        """Fetch the package lists, unless those of the last hours are there; returns whether it did.

        Raises:
            Unsupported: They cannot be fetched, or their signature is not good.
        """
        sources, stamp = self._folder / "sources.list", self._folder / "updated"
        with contextlib.suppress(FileNotFoundError):
            age = time.time() - stamp.stat().st_mtime
            if (
                not force
                and 0 <= age < _FRESH_SECONDS
                and sources.read_text(encoding="utf-8") == self._sources
            ):
                return False
        stamp.unlink(missing_ok=True)
        sources.write_text(self._sources, encoding="utf-8")
        self._progress(f"fetching the package lists of Debian {self._suite} (about 10 MB) ...")
        need = f"the package lists of Debian {self._suite}"
        words = self._words("apt-get", "-o", "APT::Update::Error-Mode=any", "update")
        tools.run(words, need=need, seconds=_LISTS_SECONDS, hint=_OFFLINE)
        stamp.touch()
        return True

    def show(self, package: str) -> dict[str, str]:
        """Return the control fields of the newest version that the release offers.

        Raises:
            Unsupported: It offers none.
        """
        words = self._words("apt-cache", "--no-all-versions", "show", package)
        need = f"package {package} of Debian {self._suite}"
        text = tools.run(
            words, need=need, seconds=60, hint="the archive no longer has it: name another kernel"
        )
        fields: dict[str, str] = {}
        for line in text.split("\n\n", 1)[0].splitlines():
            if line[:1] not in {" ", "\t"}:
                name, _, value = line.partition(":")
                fields[name] = value.strip()
        return fields

    def fetch(self, packages: Sequence[str], into: Path) -> list[Package]:
        """Fetch packages, given as NAME or NAME=VERSION; their archives lie in `into` afterwards.

        Raises:
            FetchFailed: One is not offered, or cannot be fetched whole.
        """
        into.mkdir(parents=True, exist_ok=True)
        need = f"{', '.join(packages)} of Debian {self._suite}"
        try:
            return self._fetch(packages, into, need)
        except Unsupported as error:
            raise FetchFailed(error.need, error.have, error.hint) from error

    def _fetch(self, packages: Sequence[str], into: Path, need: str) -> list[Package]:
        words = self._words("apt-get", "--print-uris", "download", *packages)
        asked = tools.run(words, need=need, seconds=60, hint=_OFFLINE)
        offered = parse_uris(asked)
        if len(offered) != len(packages):
            raise Unsupported(need, f"apt offers {asked.strip() or 'nothing'!r}", _OFFLINE)
        for _, file, size, _ in offered:
            name, version = file.split("_")[:2]
            self._progress(f"fetching {name} {_unescape(version)} ({tools.human(size)}) ...")
        total = sum(size for _, _, size, _ in offered)
        words = self._words("apt-get", "download", *packages)
        tick = _Ticker(into, total, self._progress)
        tools.run(words, need=need, seconds=_FETCH_SECONDS, cwd=into, hint=_OFFLINE, tick=tick)
        return [self._checked(into / file, size, sha256) for _, file, size, sha256 in offered]

    def _checked(self, path: Path, size: int, sha256: str) -> Package:
        name, version = path.name.split("_")[:2]
        found = _sha256(path) if path.is_file() else "nothing"
        if found != sha256:
            raise Unsupported(f"{path.name}, whole", f"its SHA-256 is {found}, not {sha256}", "try once more")
        return Package(name, _unescape(version), size, sha256, path)


class _Ticker:
    """Says now and then how much of a long download is there."""

    def __init__(self, folder: Path, total: int, progress: Callable[[str], None]) -> None:
        self._folder = folder
        self._total = total
        self._progress = progress
        self._next = 10.0

    def __call__(self, seconds: float) -> None:
        if seconds >= self._next:
            self._next = seconds + 10.0
            there = sum(path.stat().st_size for path in self._folder.iterdir() if path.is_file())
            self._progress(f"  {tools.human(there)} of {tools.human(self._total)} after {seconds:.0f} s ...")


def _unescape(version: str) -> str:
    return version.replace("%3a", ":").replace("%2b", "+").replace("%7e", "~")
