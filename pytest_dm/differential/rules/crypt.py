"""crypt: every kind of IV, with keys and offsets around the ends of their ranges; without random IVs, which nobody could compare."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, NamedTuple

from dmcore.targets import Crypt
from dmcore.targets.crypt import Key
from pytest_dm.differential.rule import Room, Rule
from pytest_dm.differential.steps import Message, Read, Resume, Suspend, Write

if TYPE_CHECKING:
    from collections.abc import Sequence

    from hypothesis.strategies import DrawFn, SearchStrategy

    from dmcore.target import Target
    from pytest_dm.differential.steps import Step

__all__ = ["KINDS", "OFFSETS", "RULE", "Kind"]


class Kind(NamedTuple):
    """A cipher with its IV, as tables have it; bytes of keys and of the largest sector; whether IVs may count those."""

    cipher: str
    sizes: tuple[int, ...]
    most_sector: int = 4096
    large: bool = True


KINDS = (
    Kind("aes-xts-plain64", (32, 64)),
    Kind("aes-xts-plain", (32, 64)),
    Kind("aes-cbc-plain64be", (16, 24, 32)),
    Kind("aes-cbc-null", (16,)),
    Kind("aes-cbc-essiv:sha256", (16, 32)),
    Kind("capi:essiv(cbc(aes),sha256)-plain64", (16, 32)),
    Kind("aes-cbc-benbi", (16,)),
    Kind("aes-lrw-benbi", (32,), 512, large=False),
    Kind("aes-cbc-eboiv", (16, 32)),
    Kind("aes-cbc-elephant", (32, 64)),
    Kind("aes:64-cbc-lmk", (1024, 1040), 512, large=False),
    Kind("aes-cbc-tcw", (48, 64), 512, large=False),
    Kind("aes:2-cbc-plain64", (32,)),
    Kind("aes-ctr-plain64", (16,)),
    Kind("aes-ecb", (32,)),
    Kind("cipher_null-ecb", (0,)),
    Kind("camellia-xts-plain64", (64,)),
    Kind("des3_ede-cbc-plain64", (24,)),
    Kind("capi:chacha20-plain64", (32,)),
)
OFFSETS = (0, 8, 2**32 - 8, 2**32, 2**55)


def _key(size: int, seed: int) -> Key:
    return Key(hashlib.shake_256(b"pytest-dm %d" % seed).digest(size))


class _Crypt(Rule):
    lengths = (8, 24, 64, 96)

    def draw(self, draw: DrawFn, room: Room) -> Crypt:
        """Draw cipher, key, offsets and the options that change bytes or what is allowed."""
        from hypothesis import strategies as st

        return self.of(draw, room, draw(st.sampled_from(KINDS)), draw(st.sampled_from(OFFSETS)))

    def of(self, draw: DrawFn, room: Room, kind: Kind, iv_offset: int) -> Crypt:
        """Draw one of a kind, whose first sector has a number."""
        from hypothesis import strategies as st

        size = draw(st.sampled_from([512, 512, 1024, 4096]))
        size = min(size, kind.most_sector)
        leg = draw(room.space().legs())
        return Crypt(
            cipher=kind.cipher,
            key=_key(draw(st.sampled_from(kind.sizes)), draw(st.integers(0, 3))),
            iv_offset=iv_offset,
            dev=leg.dev,
            start=leg.offset // 8 * 8,
            sector_size=size,
            iv_large_sectors=kind.large and size > 512 and draw(st.booleans()),
            allow_discards=draw(st.booleans()),
            same_cpu_crypt=draw(st.booleans()),
        )

    def scenes(self, target: Target, length: int) -> Sequence[Sequence[Step]]:
        """Wipe the key, try to go on without it, and set it again."""
        assert isinstance(target, Crypt)
        write, read = Write(0, length, 8), Read(0, length)
        key = target.key.reveal().hex() if isinstance(target.key, Key) else ""
        again = Message(f"key set {key}")
        return ((write, Suspend(), Message("key wipe"), Resume(), again, Resume(), read),)

    def messages(self, target: Target, length: int) -> SearchStrategy[str]:
        """Draw new keys, of a wrong size too, which are taken while the device is suspended only."""
        from hypothesis import strategies as st

        del length
        assert isinstance(target, Crypt)
        size = len(target.key) if isinstance(target.key, Key) else 0
        keys = [_key(size, seed).reveal().hex() for seed in range(3)]
        texts = [f"key set {key}" for key in keys if key]
        return st.sampled_from([*texts, "key wipe", "key set 00", "key", "key set", "nonsense"])


RULE = _Crypt()
