"""What a kernel module says of itself, read from its ELF file: the part of depmod and modinfo that guests need."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Final

from dmcore.errors import ParseError

__all__ = ["ModuleInfo", "parse", "section"]

_ELF64: Final = struct.Struct("<16sHHIQQQIHHHHHH")
_SECTION64: Final = struct.Struct("<IIQQQQIIQQ")


@dataclass(frozen=True)
class ModuleInfo:
    """Fields of a module's .modinfo section.

    Attributes:
        name: Its name, with underscores.
        depends: Names of the modules whose symbols it uses.
        soft: Names of modules to load before it if they are there ("softdep=pre:").
        aliases: Names, with wildcards, by which the kernel asks for it.
        vermagic: Kernel release and options it was built for.
    """

    name: str
    depends: tuple[str, ...]
    soft: tuple[str, ...]
    aliases: tuple[str, ...]
    vermagic: str


def section(image: bytes, wanted: str) -> bytes:
    """Return the content of a section of a 64-bit little-endian ELF file, b"" if it has none of the name.

    Raises:
        ParseError: It is no such file.
    """
    if image[:6] != b"\x7fELF\x02\x01":
        raise ParseError("ELF file", 0, repr(image[:6]), "a 64-bit little-endian ELF header")
    try:
        header = _ELF64.unpack_from(image)
        offset, size, count, names = header[6], header[11], header[12], header[13]
        sections: list[tuple[int, ...]] = [
            _SECTION64.unpack_from(image, offset + size * index) for index in range(count)
        ]
        table = sections[int(names)]
    except (struct.error, IndexError) as error:
        raise ParseError("ELF file", 0, None, "whole section headers") from error
    strings = image[table[4] : table[4] + table[5]]
    for entry in sections:
        if strings[entry[0] : strings.find(b"\0", entry[0])] == wanted.encode():
            return image[entry[4] : entry[4] + entry[5]]
    return b""


def parse(image: bytes, name: str) -> ModuleInfo:
    """Return what a module's file says.

    Args:
        image: The uncompressed .ko file.
        name: Its name if it does not say so itself.

    Raises:
        ParseError: It is no 64-bit little-endian ELF file.
    """
    fields: dict[str, list[str]] = {}
    for text in section(image, ".modinfo").split(b"\0"):
        key, equals, value = text.decode("utf-8", "replace").partition("=")
        if equals:
            fields.setdefault(key, []).append(value)
    depends = [word for word in ",".join(fields.get("depends", [])).split(",") if word]
    return ModuleInfo(
        name=normal(fields.get("name", [name])[0]),
        depends=tuple(map(normal, depends)),
        soft=tuple(normal(word) for line in fields.get("softdep", []) for word in _pre(line)),
        aliases=tuple(fields.get("alias", [])),
        vermagic=fields.get("vermagic", [""])[0].strip(),
    )


def _pre(line: str) -> list[str]:
    found: list[str] = []
    kind = ""
    for word in line.split():
        if word.endswith(":"):
            kind = word
        elif kind == "pre:":
            found.append(word)
    return found


def normal(name: str) -> str:
    """Return a module's name as the kernel spells it: dashes are underscores."""
    return name.replace("-", "_")
