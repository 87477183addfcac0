"""LUKS headers: version 1's binary one, and version 2's two copies of JSON. Bytes to values; nothing is decrypted here.

Source: the LUKS1 on-disk format specification 1.2.3, the LUKS2 on-disk format specification 1.1.2.
"""

from __future__ import annotations

import hashlib
import json
import re
import struct
from base64 import b64decode
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

from dmcore.errors import FormatError, Unsupported

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Digest", "Kdf", "Keyslot", "LuksHeader", "Segment", "hash_name", "parse_luks"]

_MAGIC, _SECOND_MAGIC = b"LUKS\xba\xbe", b"SKUL\xba\xbe"
_LUKS1 = struct.Struct(">6sH32s32s32sII20s32sI40s")
_SLOT = struct.Struct(">II32sII")
_ACTIVE, _INACTIVE = 0x00AC71F3, 0x0000DEAD
_LUKS2 = struct.Struct(">6sHQQ48s32s64s40s48sQ184s64s")
_BINARY = 4096
_SIZES = tuple(0x4000 << step for step in range(9))
"""Bytes of a version 2 header, its JSON included; the second copy is as many bytes behind the first."""
_MOST_KEY = 512
_MOST_STRIPES = 16384
_MOST_SALT = 4096
_MOST_OFFSET = 2**63


@dataclass(frozen=True, slots=True)
class Kdf:
    """How a passphrase becomes a key.

    Attributes:
        type: "pbkdf2", "argon2i" or "argon2id".
        salt: Its salt.
        hash: The hash of pbkdf2, as Python calls it; "" else.
        iterations: Iterations of pbkdf2, passes of argon2.
        memory: KiB of argon2; 0 else.
        lanes: Lanes of argon2; 0 else.
    """

    type: str
    salt: bytes
    hash: str = ""
    iterations: int = 1
    memory: int = 0
    lanes: int = 0


@dataclass(frozen=True, slots=True)
class Keyslot:
    """A volume key, spread over an area that a passphrase decrypts.

    Attributes:
        number: The slot's number.
        key_size: Bytes of the volume key.
        kdf: How a passphrase becomes the area's key.
        cipher: Encrypts the area, in dm-crypt's words.
        cipher_key_size: Bytes of its key.
        offset: Byte of the header device where the area begins, a multiple of 512.
        stripes: Over how many stripes the key is spread.
        hash: Of the spreading.
        priority: 0: never unless asked for, 1 normal, 2 first.
    """

    number: int
    key_size: int
    kdf: Kdf
    cipher: str
    cipher_key_size: int
    offset: int
    stripes: int
    hash: str
    priority: int = 1

    @property
    def area_size(self) -> int:
        """Bytes of the area, whole sectors."""
        return -(-self.key_size * self.stripes // 512) * 512


@dataclass(frozen=True, slots=True)
class Digest:
    """What the volume key of some slots hashes to, for some segments."""

    kdf: Kdf
    value: bytes
    keyslots: frozenset[int]
    segments: frozenset[int]


@dataclass(frozen=True, slots=True)
class Segment:
    """A part of the volume.

    Attributes:
        number: Its place in the volume's order.
        offset: Byte of the data device where it begins, a multiple of 512.
        size: Bytes; None: to the device's end.
        cipher: In dm-crypt's words, but for ciphers that authenticate ("aes-gcm-random"); "" for a plain part.
        iv_offset: Sectors.
        sector_size: Bytes.
        integrity: "" or what authenticates: "aead", "hmac(sha256)", "poly1305", "none" ...
    """

    number: int
    offset: int
    size: int | None
    cipher: str
    iv_offset: int = 0
    sector_size: int = 512
    integrity: str = ""


@dataclass(frozen=True, slots=True)
class LuksHeader:
    """What a header says.

    Attributes:
        version: 1 or 2.
        uuid: Of the volume.
        label: Version 2's label.
        keyslots: Those in use.
        digests: Which key is the right one.
        segments: The volume's parts, in order.
        requirements: What a reader must know about, beyond the specification; any is more than we do.
    """

    version: int
    uuid: str
    label: str
    keyslots: tuple[Keyslot, ...]
    digests: tuple[Digest, ...]
    segments: tuple[Segment, ...]
    requirements: tuple[str, ...] = ()


def hash_name(name: str, offset: int) -> str:
    """Return Python's name for a hash of a header.

    Raises:
        Unsupported: There is none of that name here.
    """
    wanted = {"ripemd160": "ripemd160", "rmd160": "ripemd160"}.get(name, name.replace("sha3-", "sha3_"))
    wanted = re.sub(r"^blake2([bs])-(512|256)$", r"blake2\1\2", wanted)
    if not re.fullmatch("[a-z0-9_]{2,20}", wanted):
        raise FormatError(f"{name[:40]!r} is no hash", offset)
    try:
        hashlib.pbkdf2_hmac(wanted, b"", b"", 1)
    except ValueError:
        raise Unsupported(f"the hash {name}", "it is not supported here") from None
    return wanted


def parse_luks(read: Callable[[int, int], bytes], size: int) -> LuksHeader:
    """Read the header of a device of `size` bytes, with `read(offset, length)`.

    Raises:
        FormatError: Not a LUKS header, or a damaged one.
        Unsupported: One that asks for more than this library knows.
    """
    first = read(0, min(size, _BINARY))
    if len(first) >= _LUKS1.size and first[:6] == _MAGIC and first[6:8] == b"\0\1":
        return _parse_1(first, size)
    return _parse_2(read, size)


# -- version 1 -------------------------------------------------------------------------------------------------------


def _text(raw: bytes, offset: int) -> str:
    text = raw.split(b"\0", 1)[0]
    if not all(32 < byte < 127 for byte in text):
        raise FormatError(f"{text[:40]!r} is no word", offset)
    return text.decode("ascii")


def _bounded(what: str, value: int, low: int, high: int, offset: int) -> int:
    if not low <= value <= high:
        raise FormatError(f"{what} is {value}, not within {low}..{high}", offset)
    return value


def _parse_1(raw: bytes, size: int) -> LuksHeader:
    if len(raw) < 592:
        raise FormatError("a LUKS1 header is cut off", len(raw))
    _, _, name, mode, spec, payload, key_size, digest, salt, iterations, uuid = _LUKS1.unpack_from(raw)
    cipher = f"{_text(name, 8)}-{_text(mode, 40)}"
    hashed = hash_name(_text(spec, 72), 72)
    _bounded("the number of key bytes", key_size, 1, _MOST_KEY, 108)
    slots: list[Keyslot] = []
    for number in range(8):
        at = 208 + number * _SLOT.size
        active, rounds, slot_salt, material, stripes = _SLOT.unpack_from(raw, at)
        if active == _INACTIVE:
            continue
        _bounded("the state of a slot", active, _ACTIVE, _ACTIVE, at)
        _bounded("the number of iterations", rounds, 1, 2**32 - 1, at + 4)
        _bounded("the number of stripes", stripes, 1, _MOST_STRIPES, at + 44)
        kdf = Kdf("pbkdf2", slot_salt, hashed, rounds)
        slot = Keyslot(number, key_size, kdf, cipher, key_size, material * 512, stripes, hashed)
        _bounded("the end of a slot's area", slot.offset + slot.area_size, 0, size, at + 40)
        slots.append(slot)
    check = Digest(
        Kdf("pbkdf2", salt, hashed, _bounded("the number of iterations", iterations, 1, 2**32 - 1, 164)),
        digest, frozenset(slot.number for slot in slots), frozenset({0}),
    )  # fmt: skip
    segment = Segment(0, payload * 512, None, cipher)
    return LuksHeader(1, _text(uuid, 168), "", tuple(slots), (check,), (segment,))


# -- version 2 -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Copy:
    """A header whose checksum is right."""

    offset: int
    sequence: int
    label: str
    uuid: str
    area: bytes = field(repr=False)


def _parse_2(read: Callable[[int, int], bytes], size: int) -> LuksHeader:
    good: list[_Copy] = []
    why: FormatError | None = None
    for offset in (0, *_SIZES):
        if offset + _BINARY > size:
            break
        raw = read(offset, _BINARY)
        if raw[:6] != (_SECOND_MAGIC if offset else _MAGIC):
            continue
        try:
            good.append(_copy(read, offset, raw, size))
        except FormatError as error:
            why = why or error
    for copy in sorted(good, key=lambda copy: -copy.sequence):
        try:
            return _Json(copy).header()
        except FormatError as error:
            why = why or error
    raise why or FormatError("there is no LUKS header", 0)


def _copy(read: Callable[[int, int], bytes], offset: int, raw: bytes, size: int) -> _Copy:
    _, version, length, sequence, label, algorithm, _, uuid, _, place, _, checksum = _LUKS2.unpack_from(raw)
    _bounded("the version", version, 2, 2, offset + 6)
    if length not in _SIZES:
        raise FormatError(f"{length} bytes are no size of a header", offset + 8)
    _bounded("the header's place", place, offset, offset, offset + 256)
    _bounded("the header's end", offset + length, 0, size, offset + 8)
    name = _text(algorithm, offset + 72)
    try:
        summed = hashlib.new(hash_name(name, offset + 72))
    except ValueError:
        raise FormatError(f"{name!r} is no hash", offset + 72) from None
    whole = bytearray(read(offset, length))
    whole[448:512] = bytes(64)
    summed.update(whole)
    if summed.digest()[:64] != checksum[: summed.digest_size]:
        raise FormatError("the checksum of a LUKS2 header is wrong", offset + 448)
    shown = label.split(b"\0", 1)[0].decode("utf-8", "replace")
    return _Copy(offset, sequence, shown, _text(uuid, offset + 168), bytes(whole[_BINARY:]))


class _Json:
    """The JSON of a header; every value is checked as it is taken."""

    def __init__(self, copy: _Copy) -> None:
        self._copy = copy
        self._offset = copy.offset + _BINARY
        text, _, _ = copy.area.partition(b"\0")
        try:
            self._tree = self._object(json.loads(text.decode("utf-8")), "the header")
        except (ValueError, RecursionError) as error:
            if isinstance(error, FormatError):
                raise
            raise self._error("the header is no JSON") from None

    def _error(self, what: str) -> FormatError:
        return FormatError(what, self._offset)

    def _object(self, value: object, what: str) -> dict[str, Any]:
        if not isinstance(value, dict):
            raise self._error(f"{what} is no object")
        return cast("dict[str, Any]", value)

    def _get(self, where: dict[str, Any], name: str) -> dict[str, Any]:
        return self._object(where.get(name), name)

    def _numbered(self, name: str) -> list[tuple[int, dict[str, Any]]]:
        found = self._get(self._tree, name)
        if not all(re.fullmatch("[0-9]{1,4}", key, re.ASCII) for key in found):
            raise self._error(f"{name} has a member that is no number")
        return sorted((int(key), self._object(value, f"{name}.{key}")) for key, value in found.items())

    def _word(self, where: dict[str, Any], name: str) -> str:
        value = where.get(name)
        if not isinstance(value, str) or not re.fullmatch("[!-~]{1,128}", value, re.ASCII):
            raise self._error(f"{name} is no word")
        return value

    def _int(self, where: dict[str, Any], name: str, low: int, high: int) -> int:
        value = where.get(name)
        if not isinstance(value, int) or isinstance(value, bool):
            raise self._error(f"{name} is no number")
        return _bounded(name, value, low, high, self._offset)

    def _long(self, where: dict[str, Any], name: str, high: int = _MOST_OFFSET) -> int:
        value = where.get(name)
        if not isinstance(value, str) or not re.fullmatch("[0-9]{1,20}", value, re.ASCII):
            raise self._error(f"{name} is no number in quotes")
        return _bounded(name, int(value), 0, high, self._offset)

    def _bytes(self, where: dict[str, Any], name: str) -> bytes:
        value = where.get(name)
        try:
            found = b64decode(value, validate=True) if isinstance(value, str) else b""
        except ValueError:
            found = b""
        if not 0 < len(found) <= _MOST_SALT:
            raise self._error(f"{name} is no base64 of 1..{_MOST_SALT} bytes")
        return found

    def _numbers(self, where: dict[str, Any], name: str) -> frozenset[int]:
        value = where.get(name)
        if not isinstance(value, list):
            raise self._error(f"{name} is no list")
        words = cast("list[object]", value)
        if not all(isinstance(word, str) and re.fullmatch("[0-9]{1,4}", word, re.ASCII) for word in words):
            raise self._error(f"{name} has a member that is no number")
        return frozenset(int(cast("str", word)) for word in words)

    def _kdf(self, where: dict[str, Any]) -> Kdf:
        kind, salt = self._word(where, "type"), self._bytes(where, "salt")
        if kind == "pbkdf2":
            hashed = hash_name(self._word(where, "hash"), self._offset)
            return Kdf(kind, salt, hashed, self._int(where, "iterations", 1, 2**32 - 1))
        if kind not in {"argon2i", "argon2id"}:
            raise self._error(f"{kind[:40]!r} is no way from a passphrase to a key")
        lanes = self._int(where, "cpus", 1, 16)
        memory = self._int(where, "memory", 8 * lanes, 2**32 - 1)
        return Kdf(kind, salt, "", self._int(where, "time", 1, 2**32 - 1), memory, lanes)

    def _keyslot(self, number: int, where: dict[str, Any]) -> Keyslot:
        spread, area = self._get(where, "af"), self._get(where, "area")
        if self._word(spread, "type") != "luks1" or self._word(area, "type") != "raw":
            raise self._error(f"keyslot {number} is of a kind that the specification does not have")
        priority = self._int(where, "priority", 0, 2) if "priority" in where else 1
        slot = Keyslot(
            number=number,
            key_size=self._int(where, "key_size", 1, _MOST_KEY),
            kdf=self._kdf(self._get(where, "kdf")),
            cipher=self._word(area, "encryption"),
            cipher_key_size=self._int(area, "key_size", 0, _MOST_KEY),
            offset=self._long(area, "offset"),
            stripes=self._int(spread, "stripes", 1, _MOST_STRIPES),
            hash=hash_name(self._word(spread, "hash"), self._offset),
            priority=priority,
        )
        if slot.offset % 512 or slot.area_size > self._long(area, "size"):
            raise self._error(f"the area of keyslot {number} is no whole sectors, or too small for its key")
        return slot

    def _digest(self, where: dict[str, Any]) -> Digest:
        value = self._bytes(where, "digest")
        _bounded("the bytes of a digest", len(value), 16, 64, self._offset)
        return Digest(
            self._kdf(where), value, self._numbers(where, "keyslots"), self._numbers(where, "segments")
        )

    def _segment(self, number: int, where: dict[str, Any]) -> Segment:
        kind, offset = self._word(where, "type"), self._long(where, "offset")
        size = None if where.get("size") == "dynamic" else self._long(where, "size")
        sector_size = 512
        if kind == "crypt":
            sector_size = self._int(where, "sector_size", 512, 4096)
        if sector_size & (sector_size - 1) or offset % 512 or (size or 0) % sector_size:
            raise self._error(f"segment {number} is no whole sectors")
        if kind == "linear":
            return Segment(number, offset, size, "")
        if kind != "crypt":
            raise self._error(f"segment {number} is of a kind that the specification does not have")
        integrity = self._word(self._get(where, "integrity"), "type") if "integrity" in where else ""
        tweak = self._long(where, "iv_tweak", 2**64 - 1)
        return Segment(number, offset, size, self._word(where, "encryption"), tweak, sector_size, integrity)

    def header(self) -> LuksHeader:
        """Return the header."""
        copy, config = self._copy, self._get(self._tree, "config")
        wants = self._get(config, "requirements") if "requirements" in config else {}
        mandatory: object = wants.get("mandatory", [])
        if not isinstance(mandatory, list):
            raise self._error("requirements.mandatory is no list")
        slots = [
            self._keyslot(number, where)
            for number, where in self._numbered("keyslots")
            if where.get("type") == "luks2"
        ]
        segments = [
            self._segment(number, where)
            for number, where in self._numbered("segments")
            if not _is_backup(where)
        ]
        return LuksHeader(
            version=2,
            uuid=copy.uuid,
            label=copy.label,
            keyslots=tuple(slots),
            digests=tuple(self._digest(where) for _, where in self._numbered("digests")),
            segments=tuple(segments),
            requirements=tuple(str(word)[:64] for word in cast("list[object]", mandatory)),
        )


def _is_backup(segment: dict[str, Any]) -> bool:
    """Tell whether a segment is of an encryption that was to be or has been, not of the volume."""
    flags: object = segment.get("flags", [])
    if not isinstance(flags, list):
        return False
    return any(isinstance(flag, str) and flag.startswith("backup-") for flag in cast("list[object]", flags))
