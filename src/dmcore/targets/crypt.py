"""crypt: data are encrypted on the way down and decrypted on the way up.

Sources: drivers/md/dm-crypt.c (crypt_ctr, crypt_ctr_optional, crypt_ctr_cipher_old, crypt_ctr_cipher_new,
crypt_ctr_ivmode, crypt_set_key, get_key_size, crypt_status, crypt_message).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from dmcore import validate
from dmcore.errors import SpecError
from dmcore.params import U32_MAX, U64_MAX
from dmcore.target import Feature, Leg, Requirement, Silent, Target
from dmcore.targets._key import Key, KeyringKey, decode_hex
from dmcore.units import SECTOR

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from typing import Self

    from hypothesis.strategies import SearchStrategy

    from dmcore.params import Tokens
    from dmcore.ref import Ref
    from dmcore.target import Lookup, Resolve, Space

__all__ = ["IVS", "Cipher", "Crypt", "Key", "KeyringKey", "SetKey", "Tags", "WipeKey"]

IVS = (
    "plain", "plain64", "plain64be", "essiv", "benbi", "null", "eboiv", "elephant", "lmk", "tcw", "random",
)  # fmt: skip
"""How an initialization vector can be made from a sector's number."""

_HIGH_PRIORITY = "crypt.high_priority"
_KEY_SIZE = "crypt.integrity_key_size"
_FLAGS_FIRST = (
    "allow_discards", "same_cpu_crypt", "high_priority", "submit_from_crypt_cpus", "no_read_workqueue",
    "no_write_workqueue",
)  # fmt: skip
_FLAGS = (*_FLAGS_FIRST, "iv_large_sectors")
_SECTOR_SIZES = (512, 1024, 2048, 4096)
_MOST_TAG = 480
_MOST_WORDS = 9
_MOST_NAME = 127
_AES = re.compile(r"(?:essiv\()?(?P<mode>cbc|ctr|ecb|xts)\(aes\)(?:,[^()]+\))?")
_TCW_EXTRA = 32
_ZEROS = "00" * 16


@dataclass(frozen=True, slots=True)
class Cipher:
    """What a cipher word says.

    Attributes:
        name: The kernel crypto API's name of the algorithm, such as "xts(aes)" or "essiv(cbc(aes),sha256)".
        keys: Into how many keys the key is cut for the sectors in turn, a power of two.
        iv: How the initialization vector is made, one of `IVS`; None for none.
        iv_options: What it needs to know, such as the hash of "essiv"; None for nothing.
    """

    name: str
    keys: int
    iv: str | None
    iv_options: str | None

    @classmethod
    def parse(cls, text: str) -> Cipher:
        """Read `cipher[:keys]-mode-iv[:options]` or `capi:name-iv[:options]`.

        Raises:
            SpecError: Naming "cipher" and the text.
        """
        if not text or re.search(r"[\s\\\0\xa0]", text):
            raise SpecError("cipher", text, "must be a word without white space and backslash")
        found = cls._new(text[5:]) if text.startswith("capi:") else cls._old(text)
        if found.iv == "essiv":
            if not found.iv_options:
                raise SpecError("cipher", text, "essiv needs a hash, such as essiv:sha256")
            found = cls(f"essiv({found.name},{found.iv_options})", found.keys, found.iv, found.iv_options)
        if found.iv is not None and found.iv not in IVS and not found.name.startswith("ecb("):
            raise SpecError("cipher", text, f"{found.iv!r} is none of {', '.join(IVS)}")
        if len(found.name.encode("utf-8", "surrogateescape")) > _MOST_NAME:
            raise SpecError("cipher", text, f"names an algorithm of more than {_MOST_NAME} bytes")
        return found

    @classmethod
    def _new(cls, text: str) -> Cipher:
        head, colon, options = text.rpartition(":")
        head = head if colon else text
        name, dash, iv = head.rpartition("-")
        name = name if dash else head
        return cls(name, 64 if dash and iv == "lmk" else 1, iv if dash else None, options if colon else None)

    @classmethod
    def _old(cls, text: str) -> Cipher:
        if "(" in text:
            raise SpecError("cipher", text, "needs capi: before the name of an algorithm")
        head, _, rest = text.partition("-")
        cipher, colon, count = head.partition(":")
        keys = int(count[-20:]) % 2**32 if re.fullmatch("[0-9]+", count, re.ASCII) else 0
        if colon and (not keys or keys & (keys - 1)):
            raise SpecError("cipher", text, "the number of keys must be a power of two")
        words = rest.split("-", 1) if "-" in text else []
        mode = words[0] if words else None
        iv, options = None, None
        if len(words) == 2:
            iv, colon_iv, tail = words[1].partition(":")
            options = tail if colon_iv else None
        if mode is None or (mode == "plain" and iv is None):
            mode, iv = "cbc", "plain"
        if mode != "ecb" and iv is None:
            raise SpecError("cipher", text, "a mode other than ecb needs an IV, such as plain64")
        return cls(f"{mode}({cipher})", keys if colon else 1, iv, options)

    def key_reason(self, size: int) -> str:
        """Return why a key of `size` bytes does not fit, "" if it does, or if the algorithm is not known here."""
        aes = _AES.fullmatch(self.name)
        if aes is None:
            return ""
        extra, allowed = 0, {16, 24, 32}
        if aes["mode"] == "xts":
            allowed = {2 * one for one in allowed}
        if self.iv == "lmk" and size % self.keys:
            extra = size // (self.keys + 1)
        elif self.iv == "tcw":
            extra = _TCW_EXTRA
        elif self.iv == "elephant":
            extra = size // 2
        each = (size - extra) // self.keys
        if each in allowed and extra <= max(_TCW_EXTRA, each):
            return ""
        sizes = ", ".join(map(str, sorted(allowed)))
        return f"{self.name} with {self.iv or 'no IV'} takes {sizes} bytes for each of {self.keys} keys, and this gives {each}"


@dataclass(frozen=True, slots=True)
class Tags:
    """Bytes for each sector beside its data, which a dm-integrity device below (or a disk with such room) keeps.

    Attributes:
        size: Bytes, 1..480.
        aead: Whether the cipher authenticates the data; else the bytes keep the IV "random" only.
    """

    size: int
    aead: bool = True

    def __post_init__(self) -> None:
        validate.integer("size", self.size, 1, _MOST_TAG, "bytes")
        validate.boolean("aead", self.aead)

    def __str__(self) -> str:
        return f"integrity:{self.size}:{'aead' if self.aead else 'none'}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Crypt(Target):
    """A device whose data lie encrypted on the one below, each `sector_size` bytes by themselves.

    The key is shown nowhere: not by `repr`, not by `str(table)` (which says `<64-byte-key>`, a word that neither this
    library nor a kernel takes for a key), and not by errors. `encode` holds it; `Device` sends such tables as secure
    data, for which `Control.load` has `secure`. The kernel's own table has it as well, and so has `Device.table()`.

    Attributes:
        cipher: `cipher[:keys]-mode-iv[:options]` ("aes-xts-plain64", "aes-cbc-essiv:sha256", "aes:64-cbc-lmk") or
            `capi:name-iv[:options]` ("capi:gcm(aes)-random"); see `Cipher.parse`. An algorithm that the kernel lacks is
            refused with ENOENT.
        key: The key, or where it is in a kernel keyring. The sizes for AES are checked here, others by the kernel.
        iv_offset: Added to the sector's number for the IV, 0..2^64-1, a whole number of `sector_size`.
        dev: Device below.
        start: First sector used on `dev`, 0..2^64-1, a whole number of `sector_size`.
        allow_discards: Pass discards down; what was discarded reads as noise.
        same_cpu_crypt: Encrypt on the CPU that made the request.
        high_priority: Encrypt with high priority. Needs the feature "crypt.high_priority".
        submit_from_crypt_cpus: Pass writes down without sorting them.
        no_read_workqueue: Decrypt without a queue.
        no_write_workqueue: Encrypt without a queue.
        tags: Room for tags below. A cipher that authenticates takes the `capi:` form.
        integrity_key_size: Bytes of the key that are for authentication, if not as many as its digest has, 1..2^32-1.
            Needs "crypt.integrity_key_size".
        sector_size: Bytes that are encrypted at once: 512, 1024, 2048 or 4096. The line is a whole number of them.
        iv_large_sectors: Count in `sector_size` for the IV, not in 512 bytes.

    Raises:
        SpecError: A value the kernel's constructor would refuse (EINVAL).
    """

    kernel_name: ClassVar[str] = "crypt"
    kernel_module: ClassVar[str] = "dm-crypt"
    features: ClassVar[Mapping[str, Feature]] = {
        _HIGH_PRIORITY: Feature(f"aes-cbc-plain64 {_ZEROS} 0 {{dev}} 0 1 high_priority"),
        _KEY_SIZE: Feature(f"aes-cbc-plain64 {_ZEROS} 0 {{dev}} 0 1 integrity_key_size:16"),
    }

    cipher: str
    key: Key | KeyringKey
    iv_offset: int = 0
    dev: Ref
    start: int = 0
    allow_discards: bool = False
    same_cpu_crypt: bool = False
    high_priority: bool = False
    submit_from_crypt_cpus: bool = False
    no_read_workqueue: bool = False
    no_write_workqueue: bool = False
    tags: Tags | None = None
    integrity_key_size: int | None = None
    sector_size: int = SECTOR
    iv_large_sectors: bool = False

    def __post_init__(self) -> None:
        validate.instance("cipher", self.cipher, str, "'aes-xts-plain64'")
        cipher = Cipher.parse(self.cipher)
        _check_key(self.key)
        validate.integer("iv_offset", self.iv_offset, 0, U64_MAX, "sectors")
        validate.ref("dev", self.dev)
        validate.integer("start", self.start, 0, U64_MAX, "sectors")
        for flag in _FLAGS:
            validate.boolean(flag, getattr(self, flag))
        validate.integer("sector_size", self.sector_size, SECTOR, 4096, "bytes")
        if self.sector_size not in _SECTOR_SIZES:
            raise SpecError("sector_size", self.sector_size, "must be a power of two")
        for field, sector in (("iv_offset", self.iv_offset), ("start", self.start)):
            if sector % (self.sector_size // SECTOR):
                raise SpecError(field, sector, f"must be whole sectors of {self.sector_size} bytes")
        if self.tags is not None:
            validate.instance("tags", self.tags, Tags, "Tags(28)")
        if self.integrity_key_size is not None:
            validate.integer("integrity_key_size", self.integrity_key_size, 1, U32_MAX, "bytes")
        self._check_cipher(cipher)

    def _check_cipher(self, cipher: Cipher) -> None:
        size = len(self.key) if isinstance(self.key, Key) else self.key.size
        aead = self.tags is not None and self.tags.aead
        if aead and not self.cipher.startswith("capi:"):
            raise SpecError("cipher", self.cipher, "a cipher that authenticates needs the form capi:")
        reason = "" if aead else cipher.key_reason(size)
        if reason:
            raise SpecError("key", self.key, reason)
        if cipher.iv in {"lmk", "tcw"} and self.sector_size != SECTOR:
            raise SpecError("sector_size", self.sector_size, f"must be {SECTOR} for {cipher.iv}")
        if cipher.iv == "random" and self.tags is None:
            raise SpecError("tags", None, "the IV random needs room for tags")

    @property
    def secret(self) -> bool:
        """Whether the words hold a key: not if it is in a keyring."""
        return isinstance(self.key, Key) and len(self.key) > 0

    def refs(self) -> tuple[Ref, ...]:
        """Return the device below."""
        return (self.dev,)

    def _options(self) -> Iterator[str]:
        """Yield the optional words in the order the kernel prints them."""
        for flag in _FLAGS_FIRST:
            if getattr(self, flag):
                yield flag
        if self.tags is not None:
            yield str(self.tags)
        if self.integrity_key_size is not None:
            yield f"integrity_key_size:{self.integrity_key_size}"
        if self.sector_size != SECTOR:
            yield f"sector_size:{self.sector_size}"
        if self.iv_large_sectors:
            yield "iv_large_sectors"

    def encode(self, resolve: Resolve) -> str:
        """Return `<cipher> <key> <iv offset> <dev> <start> [<#words> <words>]`, the key as the kernel needs it."""
        words = [self.cipher, _key_word(self.key), str(self.iv_offset), resolve(self.dev), str(self.start)]
        options = list(self._options())
        return " ".join([*words, str(len(options)), *options] if options else words)

    @classmethod
    def decode(cls, tokens: Tokens, lookup: Lookup) -> Self:
        """Read `<cipher> <key> <iv offset> <dev> <start> [<#words> <words>]`; words behind those announced are ignored.

        A key of an odd number of hex digits is refused; the kernel drops the last one.
        """
        cipher = tokens.word("a cipher")
        key = _decode_key(tokens)
        iv_offset = tokens.wrapping("the sector that is added for the IV")
        leg = Leg.decode(tokens, lookup)
        options = _Options()
        if len(tokens):
            options.decode(tokens)
        given = options.flags
        return cls(
            cipher=cipher,
            key=key,
            iv_offset=iv_offset,
            dev=leg.dev,
            start=leg.offset,
            allow_discards="allow_discards" in given,
            same_cpu_crypt="same_cpu_crypt" in given,
            high_priority="high_priority" in given,
            submit_from_crypt_cpus="submit_from_crypt_cpus" in given,
            no_read_workqueue="no_read_workqueue" in given,
            no_write_workqueue="no_write_workqueue" in given,
            tags=options.tags,
            integrity_key_size=options.integrity_key_size,
            sector_size=options.sector_size,
            iv_large_sectors="iv_large_sectors" in given,
        )

    def needs(self) -> Requirement:
        """Return the need for the features that this value uses."""
        given = {_HIGH_PRIORITY: self.high_priority, _KEY_SIZE: self.integrity_key_size is not None}
        return Requirement(self.kernel_name, features=frozenset(name for name, used in given.items() if used))

    def check(self, start: int, length: int) -> None:
        """Refuse a length that is not whole sectors of `sector_size`."""
        del start
        if length % (self.sector_size // SECTOR):
            reason = f"the line's {length} sectors of {SECTOR} bytes are not a whole number of it"
            raise SpecError("sector_size", self.sector_size, reason)

    @classmethod
    def strategy(cls, space: Space) -> SearchStrategy[Crypt]:
        """Draw AES in every mode and with every IV; tags are left out, which need an integrity device below."""
        from hypothesis import strategies as st

        sizes = [size for size in _SECTOR_SIZES if space.length * SECTOR % size == 0]
        more = [flag for flag in _FLAGS if flag != "high_priority" or _HIGH_PRIORITY in space.features]
        key_size = st.none() | st.integers(1, U32_MAX) if _KEY_SIZE in space.features else st.none()

        @st.composite
        def values(draw: st.DrawFn) -> Crypt:
            leg = draw(space.legs())
            cipher, key_sizes = draw(st.sampled_from(_DRAWN))
            key = draw(
                st.sampled_from(key_sizes).flatmap(lambda size: st.binary(min_size=size, max_size=size))
            )
            plain = cipher.endswith(("lmk", "tcw"))
            size = SECTOR if plain else draw(st.sampled_from(sizes))
            unit = size // SECTOR
            flags = draw(st.sets(st.sampled_from(more)))
            return cls(
                cipher=cipher,
                key=Key(key),
                iv_offset=unit * draw(st.integers(0, U64_MAX // unit)),
                dev=leg.dev,
                start=leg.offset // unit * unit,
                allow_discards="allow_discards" in flags,
                same_cpu_crypt="same_cpu_crypt" in flags,
                high_priority="high_priority" in flags,
                submit_from_crypt_cpus="submit_from_crypt_cpus" in flags,
                no_read_workqueue="no_read_workqueue" in flags,
                no_write_workqueue="no_write_workqueue" in flags,
                integrity_key_size=draw(key_size),
                sector_size=size,
                iv_large_sectors="iv_large_sectors" in flags,
            )

        return values()


_AES_SIZES = (16, 24, 32)
_DRAWN = (
    ("aes", _AES_SIZES), ("aes-plain", _AES_SIZES), ("aes-ecb", _AES_SIZES), ("aes-ctr-plain64", _AES_SIZES),
    ("aes-cbc-plain64be", _AES_SIZES), ("aes-cbc-essiv:sha256", _AES_SIZES), ("aes-cbc-benbi", _AES_SIZES),
    ("aes-cbc-null", _AES_SIZES), ("aes-cbc-eboiv", _AES_SIZES), ("aes-cbc-elephant", (32, 48, 64)),
    ("aes:64-cbc-lmk", (1024, 1040)), ("aes-cbc-tcw", (48, 64)), ("aes:2-cbc-plain64", (32, 64)),
    ("aes-xts-plain64", (32, 48, 64)), ("capi:xts(aes)-plain64", (32, 64)), ("capi:cbc(aes)", (16,)),
    ("capi:cbc(aes)-essiv:sha256", (32,)), ("capi:essiv(cbc(aes),sha256)-plain64", (32,)),
)  # fmt: skip


class _Options:
    """What the optional words said."""

    def __init__(self) -> None:
        self.flags: set[str] = set()
        self.tags: Tags | None = None
        self.integrity_key_size: int | None = None
        self.sector_size = SECTOR

    def decode(self, tokens: Tokens) -> None:
        """Read `<#words> <words>`, and drop what stands behind them."""
        count = tokens.ranged("the number of optional words", 0, min(_MOST_WORDS, len(tokens) - 1))
        behind = len(tokens) - count
        while len(tokens) > behind:
            word = tokens.peek() or ""
            if ":" not in word:
                self.flags.add(tokens.keyword(*_FLAGS))
                continue
            tokens.word("an option")
            if not self._valued(word):
                raise tokens.error(
                    "integrity:<bytes>:<aead or none>, sector_size:<bytes> or another option", back=1
                )
        for _ in tokens:
            pass

    def _valued(self, word: str) -> bool:
        """Take `name:value`; return whether it is one."""
        if match := re.fullmatch(r"integrity:\s*([0-9]+):(.*)", word, re.ASCII | re.DOTALL):
            size = int(match[1][-20:]) % 2**32
            if match[2].lower() not in {"aead", "none"} or not 1 <= size <= _MOST_TAG:
                return False
            self.tags = Tags(
                size, aead=match[2].lower() == "aead" or (self.tags is not None and self.tags.aead)
            )
        elif match := re.fullmatch(r"sector_size:\s*([0-9]+)", word, re.ASCII):
            self.sector_size = int(match[1][-20:]) % 2**16
            return self.sector_size in _SECTOR_SIZES
        elif match := re.fullmatch(r"integrity_key_size:\s*([0-9]+)", word, re.ASCII):
            self.integrity_key_size = int(match[1][-20:]) % 2**32
            return self.integrity_key_size > 0
        else:
            return False
        return True


def _decode_key(tokens: Tokens) -> Key | KeyringKey:
    word = tokens.peek() or ""
    if word.startswith(":"):
        return KeyringKey.decode(tokens)
    tokens.word("a key in hex, or - for none, or one in a keyring")
    key = Key(b"") if word == "-" else decode_hex(word)
    if key is None:
        raise tokens.error("a key in hex digits, two for each byte, or - for none", back=1)
    return key


def _key_word(key: Key | KeyringKey) -> str:
    return str(key) if isinstance(key, KeyringKey) else key.reveal().hex() or "-"


def _check_key(key: object) -> None:
    if not isinstance(key, Key | KeyringKey):
        example = "Key(b'...') or KeyringKey(64, 'logon', 'name')"
        raise SpecError("key", "(not shown)", f"must be a {example}, not {type(key).__name__}")


@dataclass(frozen=True, slots=True)
class SetKey(Silent):
    """Give the device a key, of the same size as before. Only while it is suspended, EINVAL else.

    Attributes:
        key: The key, or where it is in a kernel keyring.
    """

    secret: ClassVar[bool] = True

    key: Key | KeyringKey

    def __post_init__(self) -> None:
        _check_key(self.key)

    def encode(self) -> str:
        """Return `key set <key>`."""
        return f"key set {_key_word(self.key)}"


@dataclass(frozen=True, slots=True)
class WipeKey(Silent):
    """Let the kernel forget the key. Only while the device is suspended; it cannot be resumed before the next `SetKey`."""

    def encode(self) -> str:
        """Return `key wipe`."""
        return "key wipe"
