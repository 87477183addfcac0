"""Words of kernel text."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dmcore import registry
from dmcore.errors import ParseError
from dmcore.params import Tokens, masked, quote, split_words
from dmcore.table import Line
from dmcore.targets._raw import Raw

WORDS = st.text(st.characters(blacklist_characters="\0", max_codepoint=255), min_size=1)


@given(st.lists(WORDS))
def test_quoted_words_come_back(words):
    assert split_words(" ".join(map(quote, words))) == words


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", []), (" \t\n ", []), ("a  b\tc", ["a", "b", "c"]), (r"a\ b c", ["a b", "c"]), ("a\\", ["a\\"]),
        (r"\\", ["\\"]), (r"a\bc", ["abc"]), ("\\", ["\\"]),
        ("vo\u00e0 b", ["vo\udcc3", "b"]), ("a\x1fb\u2003c", ["a\x1fb\u2003c"]),
    ],
)  # fmt: skip
def test_kernel_splitting(text, words):
    assert split_words(text) == words


@pytest.mark.parametrize("word", ["", "a\0b"])
def test_what_cannot_be_a_word(word):
    with pytest.raises(ValueError, match="cannot be a word"):
        quote(word)


def test_numbers_that_wrap_and_numbers_that_do_not():
    tokens = Tokens(f"{2**64 - 1} \\ 5 {2**32 + 7} +12 4294967295")
    assert tokens.wrapping("offset") == 2**64 - 1
    assert tokens.wrapping("offset") == 5
    assert tokens.wrapping("delay", bits=32) == 7
    assert tokens.strict("chunk") == 12
    assert tokens.strict("chunk") == 2**32 - 1
    tokens.done()


@pytest.mark.parametrize("word", ["0x1", "-1", "1a", "", "1.0", "٣"])
def test_what_is_no_number(word):
    tokens = Tokens(f"7:0 {word}", target="linear")
    tokens.word("device")
    with pytest.raises(ParseError) as caught:
        tokens.wrapping("offset")
    assert caught.value.index == 1
    assert "linear" in str(caught.value)
    assert "expected offset" in str(caught.value)


def test_a_number_out_of_range_names_the_range():
    with pytest.raises(ParseError, match=r"word 1 is '256', expected value \(0\.\.255\)"):
        Tokens("256").ranged("value", 0, 255)
    with pytest.raises(ParseError, match="at most 32 bits"):
        Tokens("4294967296").strict("chunk")


def test_keywords_in_any_case_and_what_is_left():
    tokens = Tokens("DROP_writes x")
    assert tokens.keyword("error_writes", "drop_writes") == "drop_writes"
    assert tokens.left == ("x",)
    with pytest.raises(ParseError, match="expected the end"):
        tokens.done()
    assert list(tokens) == ["x"]
    with pytest.raises(ParseError, match="word 3 is missing, expected a or b"):
        tokens.keyword("a", "b")


KEY = bytes(range(32)).hex()


@pytest.mark.parametrize(
    ("target", "params", "shown"),
    [
        ("cryptt", f"aes-xts-plain64 {KEY} 0 7:0 0", "aes-xts-plain64 <32-byte-key> 0 7:0 0"),
        ("inlinecrypt", f"aes-xts-plain64 {KEY} 0 7:0 0", "aes-xts-plain64 <32-byte-key> 0 7:0 0"),
        ("inlinecrypt", "aes-xts-plain64 :32:logon:a:b 0 7:0 0", "aes-xts-plain64 :32:logon:a:b 0 7:0 0"),
        ("integrty", f"7:0 0 - J 1 internal_hash:hmac(sha256):{KEY}", "7:0 0 - J 1 <45-byte-key>"),
        ("verity", f"1 7:0 7:0 4096 4096 1 1 sha256 {KEY} -", f"1 7:0 7:0 4096 4096 1 1 sha256 {KEY} -"),
        (
            "unknown",
            "/dev/disk/by-id/wwn-0x5000c500a1b2c3d4e5f6a7b8c9d0e1f2 0",
            "/dev/disk/by-id/wwn-0x5000c500a1b2c3d4e5f6a7b8c9d0e1f2 0",
        ),
    ],
)
def test_targets_that_are_not_known_may_hold_keys(target, params, shown):
    assert masked(target, params) == shown


def test_targets_without_keys_are_known():
    """A new target is named in `dmcore.params`, or its long hexadecimal words are not shown."""
    for name in registry.targets():
        assert masked(name, f"a:{KEY}") == f"a:{KEY}" or name in {"crypt", "integrity"}, name


def test_a_raw_target_shows_no_key():
    raw = Raw("cryptt", f"aes {KEY}")
    line = Line(0, 8, raw)
    assert raw.secret
    assert raw.encode(str) == f"aes {KEY}"
    assert KEY[:24] not in repr(raw) + repr(line) + str(line)
    assert not Raw("unknown", "a b c").secret


def test_what_no_kernel_prints_is_shown_all_the_same():
    assert masked("crypt", f"a\0b {KEY} 0 7:0 0") == "a\0b <32-byte-key> 0 7:0 0"
