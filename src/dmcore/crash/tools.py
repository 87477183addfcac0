"""Where the distribution's programs are."""

from __future__ import annotations

import os
import shutil

from dmcore.errors import Unsupported

__all__ = ["C_LOCALE", "find_tool"]

C_LOCALE = {**os.environ, "LC_ALL": "C"}
"""The environment for a program whose words are read."""


def find_tool(name: str, package: str) -> str:
    """Return the path of a program, also where only root's PATH has it.

    Raises:
        Unsupported: It is not installed.
    """
    path = shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/local/sbin:/usr/sbin:/sbin")
    if path is None:
        raise Unsupported(name, f"{name} is not installed", f"apt-get install {package}")
    return path
