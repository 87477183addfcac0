"""The private apt state, and what apt prints."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import pytest

from dmcore.errors import Unsupported
from dmvm import apt, tools
from dmvm.sources import Mirror

if TYPE_CHECKING:
    from pathlib import Path


def test_every_folder_of_the_state_is_ours(tmp_path: Path) -> None:
    text = apt.configuration(tmp_path, root=True)
    for name in ("State", "State::Lists", "State::status", "Cache", "Etc::SourceList"):
        assert f'Dir::{name} "{tmp_path}/' in text
    assert "#clear APT::Update::Post-Invoke;" in text
    assert 'APT::Sandbox::User "root";' in text
    assert "Sandbox" not in apt.configuration(tmp_path, root=False)


def test_addresses_sizes_and_hashes() -> None:
    digest = "ab" * 32
    text = f"""\
'http://h/p/linux_1%3a6.1%2b1_amd64.deb' linux_1%3a6.1+1_amd64.deb 123 SHA256:{digest}
'http://h/other.deb' other.deb 5 MD5Sum:00
"""
    assert apt.parse_uris(text) == [
        ("http://h/p/linux_1%3a6.1%2b1_amd64.deb", "linux_1%3a6.1+1_amd64.deb", 123, digest)
    ]


def test_without_apt_the_message_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(Unsupported) as caught:
        apt.Archive(Mirror("http://m.example/debian"), "sid", tmp_path / "apt", print)
    assert caught.value.need.startswith("apt-get")
    assert "--dm-kernel=/path" in caught.value.hint
    assert not (tmp_path / "apt").exists()


def test_a_program_that_fails_is_quoted() -> None:
    with pytest.raises(Unsupported) as caught:
        tools.run(["sh", "-c", "echo out; echo err >&2; exit 3"], need="a thing", seconds=10, hint="do that")
    assert caught.value.need == "a thing"
    assert caught.value.have.splitlines() == ["sh ended with status 3:", "    out", "    err"]
    assert caught.value.hint == "do that"


def test_a_program_that_takes_too_long_is_killed_with_its_children(tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    began = time.monotonic()
    with pytest.raises(Unsupported, match=r"took longer than 0\.3 s"):
        tools.run(["sh", "-c", f"(sleep 1; touch {mark}) & sleep 30"], need="a thing", seconds=0.3)
    assert time.monotonic() - began < 5
    time.sleep(1.2)
    assert not mark.exists()


def test_a_program_that_is_not_there() -> None:
    with pytest.raises(Unsupported, match="does not start: No such file"):
        tools.run(["/nonexistent/program"], need="a thing", seconds=1)


@pytest.mark.parametrize(
    ("size", "text"), [(12, "12 bytes"), (950_000, "950 kB"), (2_846_580, "2.8 MB"), (36_430_088, "36 MB")]
)
def test_sizes_for_people(size: int, text: str) -> None:
    assert tools.human(size) == text
