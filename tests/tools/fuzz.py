"""Fuzz what reads hostile metadata, guided by coverage: `python tests/tools/fuzz.py FORMAT [libFuzzer options]`, or see `make fuzz`.

An input is instructions for `hostile.damaged`. Inputs are kept in .fuzz/FORMAT, what fails in .fuzz/FORMAT-failures, and
`python tests/tools/fuzz.py FORMAT FILE` does one again.
"""

from __future__ import annotations

import os
import random
import sys
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["dmcore"]):
    import hostile

MOST_SECONDS = 10
MOST_MIB = 1024


def main() -> None:
    """Fuzz one format."""
    name = sys.argv[1]
    image = hostile.image(name)
    ended = hostile.read(name, image)
    if ended:
        sys.exit(f"{name}: the image that should be in order ends in {ended}")
    folder = Path(".fuzz", name)
    folder.mkdir(parents=True, exist_ok=True)
    failures = Path(".fuzz", f"{name}-failures")
    failures.mkdir(exist_ok=True)
    chance = random.Random(0)
    for number in range(20):
        (folder / f"seed{number}").write_bytes(bytes([number & 1]) + chance.randbytes(4 * (1 + number % 5)))
    more = sys.argv[2:]
    options = [
        f"-timeout={MOST_SECONDS}",
        f"-rss_limit_mb={MOST_MIB}",
        "-max_len=65",
        f"-artifact_prefix={failures}{os.sep}",
    ]
    corpus = [] if any(not word.startswith("-") for word in more) else [str(folder)]

    def one(instructions: bytes) -> None:
        hostile.read(name, hostile.damaged(name, instructions))

    atheris.Setup([sys.argv[0], *options, *corpus, *more], one)
    atheris.Fuzz()


main()
