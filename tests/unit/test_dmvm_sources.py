"""apt sources: both formats, and which archive is Debian's."""

from __future__ import annotations

from pathlib import Path

import pytest

from dmcore.errors import SpecError, Unsupported
from dmvm.sources import Entry, Mirror, find_mirror, parse_deb822, parse_list, read_entries

NOWHERE = Path("/nonexistent/keyring.gpg")

ONE_LINE = """\
# deb http://commented.example/debian bookworm main
deb http://one.example/debian bookworm main contrib # a remark
deb-src http://one.example/debian bookworm main
  deb [ arch=amd64 signed-by=/k/debian-archive-keyring.gpg ] https://two.example/debian trixie-updates main
deb [signed-by=ABCDEF] https://three.example/x stable main
nonsense
"""

DEB822 = """\
# a remark
Types: deb deb-src
URIs: http://one.example/debian http://two.example/debian
Suites: bookworm
 bookworm-updates
Components: main
# within
Signed-By: /k/debian-archive-keyring.gpg

Enabled: no
Types: deb
URIs: http://off.example/debian
Suites: bookworm
Components: main

Types: deb-src
URIs: http://source.example/debian
Suites: bookworm
Components: main

Types: deb
URIs: http://key.example/debian
Suites: sid
Components: main
Signed-By:
 -----BEGIN PGP PUBLIC KEY BLOCK-----
 .
 abc
"""


def test_one_line_style() -> None:
    assert parse_list(ONE_LINE) == [
        Entry("http://one.example/debian", "bookworm", ("main", "contrib")),
        Entry("https://two.example/debian", "trixie-updates", ("main",), "/k/debian-archive-keyring.gpg"),
        Entry("https://three.example/x", "stable", ("main",)),
    ]


def test_deb822_style() -> None:
    keyring = "/k/debian-archive-keyring.gpg"
    assert parse_deb822(DEB822) == [
        Entry("http://one.example/debian", "bookworm", ("main",), keyring),
        Entry("http://one.example/debian", "bookworm-updates", ("main",), keyring),
        Entry("http://two.example/debian", "bookworm", ("main",), keyring),
        Entry("http://two.example/debian", "bookworm-updates", ("main",), keyring),
        Entry("http://key.example/debian", "sid", ("main",)),
    ]


def test_both_formats_are_read_from_the_folders_of_apt(tmp_path: Path) -> None:
    (tmp_path / "sources.list.d").mkdir()
    (tmp_path / "sources.list").write_text("deb http://a.example/debian sid main\n")
    (tmp_path / "sources.list.d" / "b.sources").write_text(
        "Types: deb\nURIs: http://b.example\nSuites: sid\nComponents: main\n"
    )
    (tmp_path / "sources.list.d" / "c.list").write_text("deb http://c.example sid main\n")
    (tmp_path / "sources.list.d" / "d.list.save").write_text("deb http://d.example sid main\n")
    assert [entry.uri for entry in read_entries(tmp_path)] == [
        "http://a.example/debian",
        "http://b.example",
        "http://c.example",
    ]
    assert read_entries(tmp_path / "absent") == []


def test_debians_archive_is_told_from_others_that_use_its_suites() -> None:
    entries = [
        Entry("http://vendor.example/repo", "bookworm", ("main",), "/k/vendor.gpg"),
        Entry("http://docker.example/linux", "bookworm", ("stable",)),
        Entry("http://mirror.example/debian", "bookworm", ("main",), "/k/debian-archive-keyring.gpg"),
        Entry("http://mirror.example/debian", "bookworm-updates", ("main",), "/k/debian-archive-keyring.gpg"),
        Entry("http://security.example/s", "bookworm-security", ("main",), "/k/debian-archive-keyring.gpg"),
    ]
    mirror = find_mirror(entries, {}, NOWHERE)
    assert mirror == Mirror(
        "http://mirror.example/debian", "http://security.example/s", "/k/debian-archive-keyring.gpg"
    )


def test_lines_of_a_stable_and_of_a_rolling_release() -> None:
    mirror = Mirror("http://m.example/debian", "http://m.example/security", "/k.gpg")
    assert mirror.lines("trixie") == [
        "deb [arch=amd64 signed-by=/k.gpg] http://m.example/debian trixie main",
        "deb [arch=amd64 signed-by=/k.gpg] http://m.example/debian trixie-updates main",
        "deb [arch=amd64 signed-by=/k.gpg] http://m.example/security trixie-security main",
    ]
    assert mirror.lines("sid") == ["deb [arch=amd64 signed-by=/k.gpg] http://m.example/debian sid main"]
    assert Mirror("http://m.example/debian").lines("sid") == [
        "deb [arch=amd64] http://m.example/debian sid main"
    ]


def test_the_variable_wins_and_is_checked(tmp_path: Path) -> None:
    keyring = tmp_path / "keys.gpg"
    keyring.touch()
    own = {"PYTEST_DM_DEBIAN_MIRROR": "http://a.example/debian http://b.example/security"}
    entries = [Entry("http://mirror.example/debian", "bookworm", ("main",))]
    assert find_mirror(entries, own, keyring) == Mirror(
        "http://a.example/debian", "http://b.example/security", str(keyring)
    )
    with pytest.raises(SpecError, match=r"PYTEST_DM_DEBIAN_MIRROR='example'"):
        find_mirror(entries, {"PYTEST_DM_DEBIAN_MIRROR": "example"}, keyring)


def test_a_machine_without_debian_sources_is_told_what_to_set() -> None:
    ubuntu = [Entry("http://archive.example/ubuntu", "noble", ("main",))]
    with pytest.raises(Unsupported) as caught:
        find_mirror(ubuntu, {}, NOWHERE)
    assert "PYTEST_DM_DEBIAN_MIRROR" in caught.value.hint
