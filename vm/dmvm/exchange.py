"""The folder that a guest shares with its host: its path travels on a kernel command line, so not every name will do."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Final

__all__ = ["RULE", "make", "roots", "usable"]

RULE: Final = "an existing folder without white space, quotes, commas or colons"
_FALLBACKS: Final = ("/tmp", "/var/tmp")  # noqa: S108 - a fresh folder of mode 0700 is made in it


def usable(folder: Path) -> bool:
    """Whether a guest can be told of this folder: the kernel command line and QEMU's options have no quoting for it."""
    return folder.is_dir() and not any(letter.isspace() or letter in "\"',\\:" for letter in str(folder))


def roots() -> tuple[Path, ...]:
    """Return where `make` may make folders, the preferred one (the user's temporary folder) first."""
    named = map(Path, (tempfile.gettempdir(), *_FALLBACKS))
    return tuple(dict.fromkeys(path for path in named if usable(path.resolve())))


def make(prefix: str) -> Path:
    """Make a fresh folder that a guest can be told of; the caller removes it.

    It is in the user's temporary folder (TMPDIR), or, if that has a name that cannot be passed on, in /tmp or /var/tmp.

    Raises:
        OSError: It cannot be made there.
    """
    return Path(tempfile.mkdtemp(prefix=prefix, dir=next(iter(roots()), None)))
