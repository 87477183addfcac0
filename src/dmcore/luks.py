"""open_luks: a LUKS1 or LUKS2 image as a volume, by passphrase or key file, without root and without cryptsetup.

The header is read here; keys come from the `cryptography` library (argon2) and the standard one (pbkdf2), and the crypt
model decrypts both the keyslots and the data.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

from dmcore.errors import FormatError, SpecError, Unsupported, WrongPassphrase
from dmcore.formats.luks import LuksHeader, parse_luks
from dmcore.model.stores import FileStore, MemoryStore
from dmcore.ref import Ref
from dmcore.stack import Stack
from dmcore.table import Line, Table
from dmcore.target import NO_FEATURES
from dmcore.targets.crypt import Crypt, Key, Tags
from dmcore.targets.integrity import Integrity
from dmcore.targets.linear import Linear
from dmcore.volume import Volume, open_volume

if TYPE_CHECKING:
    from dmcore.formats.luks import Digest, Kdf, Keyslot, Segment
    from dmcore.model.block import BlockDevice
    from dmcore.target import Features

__all__ = ["LIMITS", "Limits", "luks_stack", "open_luks", "read_luks_header", "unlock_luks"]

_MOST_KEY_FILE = 8 << 20
_SECTOR = 512
_DATA = Ref("luks-data")


class Limits(NamedTuple):
    """What opening an image may cost; a header that asks for more is refused, it may be made to hurt.

    Attributes:
        iterations: Of pbkdf2.
        memory: Bytes of argon2.
        work: Bytes of argon2, times its passes.
    """

    iterations: int = 100_000_000
    memory: int = 2 << 30
    work: int = 64 << 30


LIMITS = Limits()
"""What an image may cost by default."""


def _store(path: str | os.PathLike[str] | BlockDevice, *, readonly: bool = True) -> tuple[BlockDevice, bool]:
    """Return a disk, and whether it was opened here."""
    if isinstance(path, str | os.PathLike):
        return FileStore(path, readonly=readonly), True
    return path, False


def _read(store: BlockDevice, offset: int, length: int) -> bytes:
    first, behind = offset // _SECTOR, -(-(offset + length) // _SECTOR)
    data = store.read(first, behind - first)
    skip = offset - first * _SECTOR
    return bytes(data[skip : skip + length])


def read_luks_header(path: str | os.PathLike[str] | BlockDevice) -> LuksHeader:
    """Read and check the header of an image, or a detached one.

    Raises:
        FormatError: Not a LUKS header, or a damaged one.
        Unsupported: One that asks for more than this library knows.
    """
    store, opened = _store(path)
    try:
        return parse_luks(lambda offset, length: _read(store, offset, length), store.sectors * _SECTOR)
    finally:
        if opened:
            store.close()


# -- keys ------------------------------------------------------------------------------------------------------------


def _derived(kdf: Kdf, secret: bytes, length: int, limits: Limits) -> bytes:
    if kdf.type == "pbkdf2":
        if kdf.iterations > limits.iterations:
            raise FormatError(f"{kdf.iterations} iterations are more than the limit, {limits.iterations}", 0)
        return hashlib.pbkdf2_hmac(kdf.hash, secret, kdf.salt, kdf.iterations, length)
    memory = kdf.memory << 10
    if memory > limits.memory or memory * kdf.iterations > limits.work:
        raise FormatError(
            f"argon2 with {kdf.memory} KiB, {kdf.iterations} times, is more than the limits allow, {limits}",
            0,
        )
    if len(kdf.salt) < 8:
        raise FormatError("a salt of argon2 has less than 8 bytes", 0)
    from cryptography.hazmat.primitives.kdf.argon2 import Argon2i, Argon2id

    make = Argon2id if kdf.type == "argon2id" else Argon2i
    argon = make(
        salt=kdf.salt, length=length, iterations=kdf.iterations, lanes=kdf.lanes, memory_cost=kdf.memory
    )
    return argon.derive(secret)


def _diffused(block: bytes, hashed: str) -> bytes:
    size = hashlib.new(hashed, usedforsecurity=False).digest_size
    parts = [
        hashlib.new(hashed, number.to_bytes(4, "big") + block[at : at + size]).digest()
        for number, at in enumerate(range(0, len(block), size))
    ]
    return b"".join(parts)[: len(block)]


def _xor(one: bytes, two: bytes) -> bytes:
    return (int.from_bytes(one, "big") ^ int.from_bytes(two, "big")).to_bytes(len(one), "big")


def _merged(material: bytes, size: int, stripes: int, hashed: str) -> bytes:
    """Return the key that was spread over stripes (LUKS1 specification, AFmerge)."""
    key = bytes(size)
    for stripe in range(stripes - 1):
        key = _diffused(_xor(key, material[stripe * size : (stripe + 1) * size]), hashed)
    return _xor(key, material[(stripes - 1) * size : stripes * size])


def _key_of_slot(store: BlockDevice, slot: Keyslot, secret: bytes, limits: Limits) -> bytes:
    length = slot.area_size
    if slot.offset + length > store.sectors * _SECTOR:
        raise FormatError(f"the area of keyslot {slot.number} lies past the end", slot.offset)
    area = MemoryStore(length, word="area")
    area.write(0, memoryview(_read(store, slot.offset, length)))
    key = Key(_derived(slot.kdf, secret, slot.cipher_key_size, limits))
    line = Crypt(cipher=slot.cipher, key=key, dev=Ref("area"))
    with open_volume(Table.of(line, length // _SECTOR), {"area": area}, "r") as volume:
        material = volume.read(0, length)
    return _merged(material, slot.key_size, slot.stripes, slot.hash)


def _is_right(key: bytes, digest: Digest, limits: Limits) -> bool:
    return hmac.compare_digest(_derived(digest.kdf, key, len(digest.value), limits), digest.value)


def unlock_luks(
    path: str | os.PathLike[str] | BlockDevice,
    secret: bytes,
    *,
    slot: int | None = None,
    limits: Limits = LIMITS,
) -> tuple[LuksHeader, Key]:
    """Return a header and the volume key that `secret` gives.

    Args:
        path: The image, or a detached header.
        secret: The passphrase, or the content of a key file.
        slot: Only this keyslot; by default all, those with high priority first.
        limits: What it may cost.

    Raises:
        WrongPassphrase: No slot opens.
        FormatError: Not a LUKS header, a damaged one, or one past the limits.
        Unsupported: One that asks for more than this library knows.
    """
    store, opened = _store(path)
    try:
        header = parse_luks(lambda offset, length: _read(store, offset, length), store.sectors * _SECTOR)
        if header.requirements:
            needs = ", ".join(header.requirements)
            raise Unsupported(f"LUKS2 with {needs}", "it is not supported here", "finish it with cryptsetup")
        slots = [each for each in header.keyslots if each.number == slot or (slot is None and each.priority)]
        if slot is not None and not slots:
            raise SpecError("slot", slot, "there is no such keyslot in use")
        for each in sorted(slots, key=lambda one: -one.priority):
            digests = [
                digest for digest in header.digests if each.number in digest.keyslots and digest.segments
            ]
            if not digests:
                continue  # a key that belongs to no segment
            key = _key_of_slot(store, each, secret, limits)
            if any(_is_right(key, digest, limits) for digest in digests):
                return header, Key(key)
        raise WrongPassphrase(tuple(each.number for each in slots))
    finally:
        if opened:
            store.close()


# -- the volume ------------------------------------------------------------------------------------------------------

_IV_SIZES = {"gcm": 12, "chacha20": 12}
_TAG_SIZES = {"aead": 16, "poly1305": 16, "hmac(sha1)": 20, "hmac(sha256)": 32, "hmac(sha512)": 64, "none": 0}


def _authenticating(segment: Segment) -> tuple[str, int]:
    """Return dm-crypt's word for a cipher that authenticates, and its tags' bytes (cryptsetup: crypt_cipher_crypto_api)."""
    match = re.fullmatch(r"([a-z0-9_]+)-(?:([a-z0-9]+)-)?([a-z0-9]+)", segment.cipher)
    kind = segment.integrity
    if match is None or kind not in _TAG_SIZES:
        raise Unsupported(f"{segment.cipher} with integrity {kind}", "it is not supported here")
    cipher, mode, iv = match[1], match[2] or "", match[3]
    iv_size = _IV_SIZES.get(mode or cipher, 16) if iv == "random" else 0
    if cipher == "chacha20":
        name = "rfc7539(chacha20,poly1305)"
    elif kind.startswith("hmac("):
        name = f"authenc({kind},{mode}({cipher}))"
    else:
        name = f"{mode}({cipher})"
    return f"capi:{name}-{iv}", _TAG_SIZES[kind] + iv_size


def _provided(data: BlockDevice, offset: int) -> int:
    """Return the sectors that an integrity device which begins at byte `offset` provides."""
    head = _read(data, offset, _SECTOR)
    if head[:8] != b"integrt\0":
        raise FormatError("there is no dm-integrity superblock", offset)
    return int.from_bytes(head[16:24], "little")


def _target(segment: Segment, key: Key, dev: Ref, offset: int, *, allow_discards: bool) -> Crypt | Linear:
    if not segment.cipher:
        return Linear(dev=dev, offset=offset)
    cipher, tags = segment.cipher, None
    if segment.integrity:
        cipher, size = _authenticating(segment)
        tags = Tags(size, aead=segment.integrity != "none")
    return Crypt(
        cipher=cipher, key=key, iv_offset=segment.iv_offset, dev=dev, start=offset, tags=tags,
        sector_size=segment.sector_size, allow_discards=allow_discards,
    )  # fmt: skip


def luks_stack(header: LuksHeader, key: Key, data: BlockDevice, *, allow_discards: bool = False) -> Stack:
    """Return the tables that cryptsetup would load for an image, over a device named "luks-data".

    Raises:
        FormatError: Segments that do not lie on the device, one behind the other.
    """
    lines: list[Line] = []
    tables: dict[str, Table] = {}
    start = 0
    for segment in header.segments:
        whole = data.sectors * _SECTOR
        size = whole - segment.offset if segment.size is None else segment.size
        length = size // segment.sector_size * (segment.sector_size // _SECTOR)
        if length <= 0 or segment.offset + size > whole:
            raise FormatError(
                f"segment {segment.number} ends past the end of the image, {whole}", segment.offset
            )
        dev, offset = _DATA, segment.offset // _SECTOR
        if segment.integrity:
            _, tag = _authenticating(segment)
            length = _provided(data, segment.offset)
            name = f"luks-integrity-{segment.number}"
            below = Integrity(dev=_DATA, start=offset, tag_size=tag, block_size=segment.sector_size)
            tables[name] = Table.of(below, length)
            dev, offset = Ref(name), 0
        lines.append(Line(start, length, _target(segment, key, dev, offset, allow_discards=allow_discards)))
        start += length
        if segment.size is None:
            break
    if not lines:
        raise FormatError("the header has no segment", 0)
    return Stack({**tables, "luks": Table(tuple(lines))})


def open_luks(
    path: str | os.PathLike[str] | BlockDevice,
    passphrase: str | bytes | None = None,
    *,
    key_file: str | os.PathLike[str] | None = None,
    mode: Literal["r", "r+"] = "r+",
    header: str | os.PathLike[str] | BlockDevice | None = None,
    slot: int | None = None,
    allow_discards: bool = False,
    limits: Limits = LIMITS,
    features: Features = NO_FEATURES,
) -> Volume:
    """Open a LUKS image as a volume.

    Args:
        path: The image: a file or block device, or a disk of a model.
        passphrase: Text is UTF-8, as a terminal gives it to cryptsetup.
        key_file: A file whose whole content, up to 8 MiB, is the passphrase, as with `cryptsetup --key-file`.
        mode: "r+" to read and write, "r" to read.
        header: A detached header.
        slot: Only this keyslot.
        allow_discards: Pass discards down, which tells what is in use.
        limits: What a header may ask of this machine.
        features: The kernel to behave as, where kernels differ.

    Raises:
        SpecError: Neither or both of `passphrase` and `key_file`.
        WrongPassphrase: No keyslot opens.
        FormatError: Not a LUKS header, a damaged one, or one past the limits.
        Unsupported: A cipher or feature that is not supported here.
    """
    if (passphrase is None) == (key_file is None):
        raise SpecError("passphrase", "(not shown)", "give it, or key_file, and not both")
    secret = passphrase.encode() if isinstance(passphrase, str) else passphrase or b""
    if key_file is not None:
        with Path(key_file).open("rb") as file:
            secret = file.read(_MOST_KEY_FILE + 1)
        if len(secret) > _MOST_KEY_FILE:
            raise SpecError("key_file", str(key_file), f"has more than {_MOST_KEY_FILE} bytes")
    found, key = unlock_luks(path if header is None else header, secret, slot=slot, limits=limits)
    data, opened = _store(path)
    try:
        stack = luks_stack(found, key, data, allow_discards=allow_discards)
    finally:
        if opened:
            data.close()
    return open_volume(stack, {_DATA.name: path}, mode, features=features)
