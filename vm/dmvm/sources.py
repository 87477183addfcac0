"""Where this machine's apt gets Debian packages from, read from its own sources."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from dmcore.errors import SpecError, Unsupported

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

__all__ = ["MIRROR_VARIABLE", "Entry", "Mirror", "find_mirror", "parse_deb822", "parse_list", "read_entries"]

MIRROR_VARIABLE: Final = "PYTEST_DM_DEBIAN_MIRROR"
"""Names the Debian archive to use instead, and after a blank the one of its security updates."""

_KEYRING: Final = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
_RELEASES: Final = frozenset(
    (
        *("buster", "bullseye", "bookworm", "trixie", "forky", "duke", "sid", "unstable", "testing"),
        *("stable", "oldstable", "oldoldstable"),
    )
)
_ROLLING: Final = frozenset(("sid", "unstable"))
_ONE_LINE: Final = re.compile(
    r"^deb\s+(?:\[(?P<options>[^]]*)\]\s*)?(?P<uri>\S+)\s+(?P<suite>\S+)\s*(?P<components>.*)$"
)
_SCHEMES: Final = ("http:", "https:", "file:", "mirror:", "mirror+", "copy:", "ftp:", "tor+")


@dataclass(frozen=True)
class Entry:
    """One archive and suite of an apt source.

    Attributes:
        uri: The archive's address.
        suite: A release's name, perhaps with -updates or -security.
        components: "main" and so on.
        signed_by: Keyring file that signs it, "" if the machine's trusted keys do.
    """

    uri: str
    suite: str
    components: tuple[str, ...]
    signed_by: str = ""


def parse_list(text: str) -> list[Entry]:
    """Return the binary entries of a one-line-style file (sources.list(5)); other lines are none of ours."""
    entries: list[Entry] = []
    for raw in text.splitlines():
        match = _ONE_LINE.match(raw.partition("#")[0].strip())
        if match:
            words = str(match["options"] or "").split()
            signed = [word.removeprefix("signed-by=") for word in words if word.startswith("signed-by=/")]
            signed_by = signed[0] if signed else ""
            entries.append(Entry(match["uri"], match["suite"], tuple(match["components"].split()), signed_by))
    return entries


def parse_deb822(text: str) -> list[Entry]:
    """Return the binary entries of a deb822-style file; disabled stanzas are left out."""
    entries: list[Entry] = []
    for stanza in re.split(r"\n[ \t]*\n", _without_comments(text)):
        fields = _fields(stanza)
        if "deb" not in fields.get("types", "").split() or fields.get("enabled", "yes").lower() in {
            "no",
            "false",
            "0",
        }:
            continue
        signed_by = fields.get("signed-by", "")
        keyring = signed_by if signed_by.startswith("/") and "\n" not in signed_by else ""
        components = tuple(fields.get("components", "").split())
        entries += [
            Entry(uri, suite, components, keyring)
            for uri in fields.get("uris", "").split()
            for suite in fields.get("suites", "").split()
        ]
    return entries


def _without_comments(text: str) -> str:
    return "\n".join(line for line in text.splitlines() if not line.startswith("#"))


def _fields(stanza: str) -> dict[str, str]:
    fields: dict[str, str] = {}
    name = ""
    for line in stanza.splitlines():
        if line[:1] in {" ", "\t"} and name:
            fields[name] = f"{fields[name]}\n{line.strip()}".strip()
        elif ":" in line:
            name, _, value = line.partition(":")
            name = name.strip().lower()
            fields[name] = value.strip()
    return fields


def read_entries(etc: Path = Path("/etc/apt")) -> list[Entry]:
    """Return the entries of sources.list and of sources.list.d, in apt's order."""
    entries: list[Entry] = []
    main = etc / "sources.list"
    if main.is_file():
        entries += parse_list(main.read_text(encoding="utf-8", errors="replace"))
    parts = etc / "sources.list.d"
    for path in sorted(parts.iterdir()) if parts.is_dir() else ():
        if path.suffix in {".list", ".sources"} and path.is_file():
            parse = parse_list if path.suffix == ".list" else parse_deb822
            entries += parse(path.read_text(encoding="utf-8", errors="replace"))
    return entries


@dataclass(frozen=True)
class Mirror:
    """The Debian archive this machine uses.

    Attributes:
        main: Address of the archive.
        security: Address of the archive of security updates, "" if the machine has none.
        keyring: File with the archive's keys, "" to rely on apt's trusted keys.
    """

    main: str
    security: str = ""
    keyring: str = ""

    def lines(self, suite: str) -> list[str]:
        """Return apt source lines for one release, with its updates."""
        options = f"[arch=amd64 signed-by={self.keyring}]" if self.keyring else "[arch=amd64]"
        lines = [f"deb {options} {self.main} {suite} main"]
        if suite not in _ROLLING:
            lines.append(f"deb {options} {self.main} {suite}-updates main")
            if self.security:
                lines.append(f"deb {options} {self.security} {suite}-security main")
        return lines


def _is_debian(entry: Entry) -> bool:
    return (
        re.sub(r"(-(updates|security|backports|proposed-updates))?(/updates)?$", "", entry.suite) in _RELEASES
    )


def _rank(entry: Entry, updated: frozenset[str]) -> int:
    return ("debian-archive" in entry.signed_by) * 4 + (entry.uri in updated) * 2 + ("debian" in entry.uri)


def _best(entries: Iterable[Entry], updated: frozenset[str]) -> Entry | None:
    return max(entries, key=lambda entry: _rank(entry, updated), default=None)


def find_mirror(
    entries: Iterable[Entry] | None = None,
    environment: Mapping[str, str] = os.environ,
    keyring: Path = _KEYRING,
) -> Mirror:
    """Return the Debian archive to fetch from: `MIRROR_VARIABLE`, else the one of this machine's apt sources.

    Raises:
        SpecError: The variable is set to something that is no address.
        Unsupported: The machine's sources name no Debian archive.
    """
    own = list(read_entries() if entries is None else entries)
    debian = [entry for entry in own if _is_debian(entry) and "main" in entry.components]
    updated = frozenset(entry.uri for entry in debian if entry.suite.endswith("-updates"))
    best = _best((entry for entry in debian if "-security" not in entry.suite), updated)
    security = _best((entry for entry in debian if "-security" in entry.suite), updated)
    wanted = environment.get(MIRROR_VARIABLE, "").split()
    keys = str(keyring) if keyring.is_file() else (best.signed_by if best else "")
    if wanted:
        if len(wanted) > 2 or not all(address.startswith(_SCHEMES) for address in wanted):
            raise SpecError(
                MIRROR_VARIABLE,
                " ".join(wanted),
                "give the address of a Debian archive, such as http://HOST/debian",
            )
        return Mirror(wanted[0], wanted[1] if len(wanted) == 2 else "", keys)
    if best is None:
        raise Unsupported(
            "a Debian archive to fetch a guest kernel from",
            "this machine's apt sources name none",
            f"set {MIRROR_VARIABLE} to the address of one, or name a kernel of your own by its path",
        )
    return Mirror(best.uri, security.uri if security else "", keys)
