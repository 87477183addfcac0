"""The script that dmsetup and dmcore run side by side, dmsetup_script.sh: a line for each call, `$DM` for the command.

$A and $B are loop devices of 8 MiB, $T is a folder of the script's own, $K, $L, $M and $N are keys. After each line standard output, exit status,
standard error, all devices, their tables and the nodes in /dev/mapper must be the same for both. Blocks that begin with "# format"
change nothing and are about how things are printed and options read; one kernel is enough for them.
"""

from __future__ import annotations

from pathlib import Path

FILES = {
    "three": "# a comment\n0 512 linear {A} 0 # behind\n\n   512 512 error\n1024 8 zero\n",
    "table": "0 1024 striped 2 16 {A} 0 {B} 0\n",
    "two": "c4,,, ,0 8 zero;c5,,,ro,0 16 error",
}
"""What is in $T at first."""

KEYS = {"K": "f0" * 32, "L": "e1" * 32, "M": "a0" * 16, "N": "b0" * 16}

STEPS = Path(__file__).with_suffix(".sh").read_text()


def lines(*, formats):
    """Return the lines, with or without the blocks about formats."""
    blocks = [block.splitlines() for block in STEPS.strip().split("\n\n")]
    return [
        line
        for block in blocks
        if formats or block[0] != "# format"
        for line in block
        if line and line != "# format"
    ]
