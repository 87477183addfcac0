"""dmcore and dmsetup where a real udevd makes the nodes: the same output, statuses, nodes and semaphores."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = """
/lib/systemd/systemd-udevd --daemon > /dev/null 2>&1
udevadm settle
cd /tmp; truncate -s 8M a.img; L=$(losetup -f --show a.img)
nodes() { ls -l /dev/mapper | awk 'NR > 1 { print $1, $9, $10, $11 }'; $DM udevcookies | wc -l; }
for DM in dmsetup DMCORE; do
    echo "=== side"
    $DM create x --table "0 100 linear $L 0"; echo status $?; nodes
    $DM rename x y; echo status $?; nodes
    $DM create 'o d' --table '0 8 zero'; nodes
    C=$($DM udevcreatecookie); echo cookie ${#C}
    $DM create z --udevcookie $C --table '0 8 zero'; DM_UDEV_COOKIE=$C $DM create w --table '0 8 zero'; echo status $?
    $DM create z --udevcookie $C --table '0 8 zero'; echo status $?
    $DM udevcookies | tail -n +2 | wc -l
    $DM udevreleasecookie $C; echo status $?; nodes
    $DM udevreleasecookie $C 2> /dev/null; echo status $?
    $DM create v --verifyudev --table '0 8 zero'; echo status $?
    $DM create u --noudevrules --table '0 8 zero'; $DM create t --noudevsync --table '0 8 zero'; echo status $?
    $DM suspend y; $DM resume y; echo status $?; $DM resume y; echo status $?
    $DM create bad --table '0 8 nonsense' 2> /dev/null; echo status $?
    $DM udevcreatecookie > c; $DM udevcomplete_all -y; $DM udevcomplete 0x00400001 2> /dev/null; echo status $?
    udevadm settle; nodes
    $DM remove y z w v 'o d' u t; echo status $?; udevadm settle; nodes
done
"""


@pytest.mark.skipif(
    not Path("/lib/systemd/systemd-udevd").exists(), reason="needs udev: apt-get install udev"
)
def test_one_script_with_udevd(tmp_path: Path) -> None:
    script = tmp_path / "script.sh"
    script.write_text(SCRIPT.replace("DMCORE", str(Path(sys.executable).with_name("dmcore"))))
    code = "import sys; from pytest_dm.cli import main; sys.exit(main())"
    done = subprocess.run(
        [sys.executable, "-c", code, "vm", "run", "--kernel", "uml-7.2", f"--visible={script}", "--", "sh", str(script)],
        capture_output=True, text=True, timeout=300, check=False, stdin=subprocess.DEVNULL,
        env={**os.environ, "TMPDIR": str(tmp_path)},
    )  # fmt: skip
    nothing, theirs, ours = done.stdout.split("=== side\n")
    assert (done.returncode, nothing) == (0, ""), done.stderr
    assert ours == theirs
    assert "y -> ../dm-0" in ours, "udev's own links"
    assert ours.splitlines()[-1] == "1", "no cookie is left"
