"""Devices made with keys: whatever we print, raise, report or leave in files is searched for the keys.

A pytest of our own, in a process of its own, makes crypt and integrity devices with keys in every place that has one, lets
each way of failing happen, fails itself, and writes every report it can. All of that is searched for each key as bytes,
in hex of either case, in base64, as Python writes bytes, and for any half of them.
"""

from __future__ import annotations

import base64
import os
import re
import secrets
import subprocess
import sys

import pytest

from dmcore.kernel.control import Control

pytestmark = pytest.mark.dm

INNER = '''
import logging, os, pickle, traceback
from dataclasses import replace

import pytest

import dmcore
from dmcore import keyring, targets
from dmcore.abi.dm import TableLine
from dmcore.errors import DmError
from dmcore.table import Line, Table
from dmcore.targets.crypt import Crypt, Key, SetKey
from dmcore.targets.integrity import Integrity

KEYS = [bytes.fromhex(word) for word in os.environ["THE_KEYS"].split()]
logging.basicConfig(level=logging.DEBUG)
SAID = []
ERRORS = []


def show(*values):
    """Everything that a value can say of itself."""
    for value in values:
        SAID.append(str(value))
        SAID.append(repr(value))
        logging.getLogger("test").warning("%s %r", value, value)
        print(value, repr(value))


def fails(what, *arguments, **more):
    """What is done, most of which fails: an error, in all the words that it has."""
    try:
        show(what(*arguments, **more))
    except Exception as error:
        show(error, error.args, vars(error), traceback.format_exc(), *getattr(error, "__notes__", ()))
        try:
            show(pickle.loads(pickle.dumps(error)))
        except Exception as second:
            show(second)
        ERRORS.append(error)


def crypt(disk, key):
    return Crypt(cipher="aes-xts-plain64", key=key, dev=dmcore.Ref(str(disk.path)))


def test_raw(dm):
    disk = dm.loop("8M")
    target = crypt(disk, Key(KEYS[0]))
    table = Table.of(target, 64)
    show(target, table, table.lines, target.key)
    device = dm.create(table)
    show(device, device.table(), device.status())
    with dmcore.Control() as control:
        name = device.name
        show(control.table(name), control.info(name), control.status(name))
        found = dmcore.Device.find(control, name)
        show(found.table(), found.table_text(), found)
        found.reload(table)
        found.suspend()
        found.send(SetKey(Key(KEYS[0][::-1])))
        found.resume()
        fails(found.send, SetKey(Key(KEYS[0])))
        fails(control.message, name, "key set " + KEYS[0].hex() + "00", secure=True)
        lines = table.encode(str)
        show(lines)
        fails(control.load, name, [*lines, TableLine(64, 64, "crypt", lines[0].params + " junk " + KEYS[0].hex())], secure=True)
        fails(control.load, "nonexistent", lines, secure=True)
    for wrong in ("aes-nonsense-plain64", "nonsense-xts-plain64", "capi:nonsense(aes)-plain64"):
        fails(dm.create, Table.of(replace(target, cipher=wrong), 64))
    text = f"0 64 crypt aes-xts-plain64 {KEYS[0].hex()} 0 {disk.path} 0"
    show(Table.parse(text))
    for wrong in (text + " 1", text + " 1 nonsense", text.replace(" 0 /", " x /"), text + "0x", text[:-4],
                  text.replace("crypt ", "cryptt "), text.replace("0 64", "64"), text.replace(KEYS[0].hex(), KEYS[0].hex()[1:])):
        fails(Table.parse, wrong)
    fails(dm.create, text.replace("64 crypt", "99999999 crypt"))
    fails(crypt, disk, KEYS[0])
    fails(crypt, disk, KEYS[0].hex())
    fails(Key, KEYS[0].hex())


def test_keyring(dm):
    disk = dm.loop("8M")
    with keyring.lent(KEYS[1]) as key:
        show(key)
        device = dm.create(Table.of(crypt(disk, key), 64))
        show(device, device.table(), device.status(), keyring.describe(keyring.find("logon", key.description)))
        fails(dm.create, Table.of(crypt(disk, replace(key, size=32)), 64))
    fails(dm.create, Table.of(crypt(disk, key), 64))
    fails(keyring.add_key, "logon", "nocolon", KEYS[1])
    fails(keyring.add_key, "nonsense", "a:b", KEYS[1])
    fails(keyring.add_key, "user", "", KEYS[1])
    fails(keyring.add_key, "user", "x", KEYS[1].hex())
    fails(keyring.add_key, "user", "x", KEYS[1] * 1000)
    fails(keyring.add_key, "user", "x", KEYS[1], 12345)


def test_integrity(dm):
    disk = dm.loop("8M")
    words = [f"internal_hash:hmac(sha256):{KEYS[2].hex()}", f"journal_mac:hmac(sha256):{KEYS[3].hex()}",
             f"journal_crypt:ctr(aes):{KEYS[4].hex()}"]
    text = f"0 1024 integrity {disk.path} 0 - J 3 {' '.join(words)}"
    table = Table.parse(text)
    show(table, table.lines)
    device = dm.create(table)
    show(device, device.table(), device.status())
    with dmcore.Control() as control:
        show(control.table(device.name), dmcore.Device.find(control, device.name).table_text())
    for wrong in (text + " nonsense", text.replace("J 3", "J 4"), text.replace("J 3", "X 3"),
                  text.replace("hmac(sha256)", "hmac(nonsense)", 1), text.replace(KEYS[2].hex(), KEYS[2].hex() + "0"),
                  text.replace(KEYS[4].hex(), KEYS[4].hex()[:-2]), text.replace("journal_crypt", "nonsense"),
                  text.replace("1024 integrity", "99999999 integrity")):
        fails(lambda: dm.create(wrong))


def test_commands(dm, tmp_path):
    import subprocess, sys
    disk = dm.loop("8M")
    dmcore_ = os.path.join(os.path.dirname(sys.executable), "dmcore")
    def call(*words, status=0, table=""):
        done = subprocess.run([dmcore_, *words], input=table, capture_output=True, text=True, timeout=60)
        show(done.stdout, done.stderr, done.returncode)
        assert done.returncode == status, done.stderr
    line = f"0 64 crypt aes-xts-plain64 {KEYS[0].hex()} 0 {disk.path} 0"
    call("create", "secret", table=line)
    try:
        call("table"), call("table", "--concise"), call("status", "-v"), call("info"), call("info", "-c", "-o", "all"), call("ls", "--tree")
        call("load", "secret", table=line + " 1 nonsense", status=1)
        call("load", "secret", table=line.replace("0 64", "64"), status=1)
        call("load", "secret", table=line.replace("crypt", "crypt-too-long-a-name"), status=1)
        call("message", "secret", "0", "key", "set", KEYS[0].hex(), status=1)
        call("create", "--concise", "x,,," + line, status=1)
        call("create", "--concise", "x,,,what," + line, status=1)
        call("create", "--concise", "x,,,," + line + "\\\\", status=1)
        mac = f"0 1024 integrity {disk.path} 0 - J 2 internal_hash:hmac(sha256):{KEYS[2].hex()} journal_mac:hmac(nonsense):{KEYS[3].hex()}"
        call("create", "sum", "--table", mac, status=1)
    finally:
        call("remove", "secret")


def test_most_of_it_failed():
    assert len(ERRORS) > 30


def test_that_fails_with_devices(dm):
    disk = dm.loop("8M")
    table = Table.of(crypt(disk, Key(KEYS[0])), 64)
    device = dm.create(table)
    with keyring.lent(KEYS[1]) as key:
        other = dm.create(Table.of(crypt(disk, key), 64))
        target, sums = table.lines[0].target, Table.parse(
            f"0 1024 integrity {disk.path} 0 - J 2 internal_hash:hmac(sha256):{KEYS[2].hex()} journal_mac:hmac(sha256):{KEYS[3].hex()}")
        assert (device, other, target, sums, SAID) == None, "on purpose, with all that there is in the locals"


def test_that_fails_in_the_kernel(dm):
    disk = dm.loop("8M")
    dm.create(Table.of(replace(crypt(disk, Key(KEYS[0])), cipher="aes-nonsense-plain64"), 64))
'''


def spellings(key):
    """All the ways in which a key, or half of it, could stand somewhere."""
    for part in (key, key[: len(key) // 2], key[len(key) // 2 :]):
        yield part
        yield part.hex().encode()
        yield part.hex().upper().encode()
        yield part.hex(" ").encode()
        yield base64.b64encode(part)[:-4]
        yield repr(part)[2:-1].encode()
        yield str(list(part))[1:-1].encode()


def found(key, blobs):
    """Return where a key stands, with what stands before it."""
    return [
        (where, blob[max(0, blob.find(word) - 150) :][:200])
        for where, blob in blobs.items()
        for word in spellings(key)
        if word in blob
    ]


def test_the_search_finds_what_is_there():
    key = secrets.token_bytes(32)
    for word in spellings(key):
        assert found(key, {"x": b"before" + word + b"after"})
    assert not found(key, {"x": secrets.token_bytes(100_000)})


@pytest.fixture
def scene(tmp_path):
    """The inner pytest's files: everything it left behind."""
    sizes = (64, 64, 32, 32, 32)
    keys = [secrets.token_bytes(size) for size in sizes]
    (tmp_path / "test_inner.py").write_text(INNER)
    return tmp_path, keys


@pytest.mark.newest_kernel
def test_no_key_in_anything_we_say(scene):
    folder, keys = scene
    words = [
        sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--dm-backend=kernel", "--dm-require", "-vv", "-rA",
        "--showlocals", "--tb=long", "--log-level=DEBUG", f"--junitxml={folder / 'junit.xml'}", "--durations=5",
        f"--log-file={folder / 'log.txt'}", f"--dm-artifacts={folder / 'artifacts'}", f"--dm-report={folder / 'report.html'}",
        "test_inner.py",
    ]  # fmt: skip
    environment = {**os.environ, "THE_KEYS": " ".join(key.hex() for key in keys), "PYTHONWARNINGS": "default"}
    with Control() as control:
        marked = control.log.mark()
        done = subprocess.run(
            words, cwd=folder, env=environment, capture_output=True, timeout=240, check=False
        )
        kernel = "\n".join(control.log.since(marked))
    said = done.stdout.decode("utf-8", "replace")
    outcomes = dict(re.findall(r"test_inner\.py::(test_\w+) (PASSED|FAILED|ERROR)", said))
    assert outcomes == {
        "test_raw": "PASSED", "test_keyring": "PASSED", "test_integrity": "PASSED", "test_commands": "PASSED",
        "test_most_of_it_failed": "PASSED",
        "test_that_fails_with_devices": "FAILED", "test_that_fails_in_the_kernel": "FAILED",
    }, said  # fmt: skip
    blobs = {"stdout": done.stdout, "stderr": done.stderr, "kernel log": kernel.encode()}
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.name != "test_inner.py" and ".img" not in path.suffixes:
            blobs[str(path.relative_to(folder))] = path.read_bytes()
    assert {"junit.xml", "log.txt"} <= blobs.keys(), sorted(blobs)
    assert b"-byte-key>" in done.stdout, "tables with keys are among what is searched"
    leaks = [(number, *where) for number, key in enumerate(keys) for where in found(key, blobs)]
    assert not leaks
