"""Keys in the kernel's keyrings: by system call, and what crypt makes of them."""

from __future__ import annotations

import ctypes
import errno
import os
import pickle
import threading
import time
from pathlib import Path

import pytest

from dmcore import keyring
from dmcore.errors import KeyMissing, KeyringError, KeyUnusable, SpecError, TableRejected, Unsupported
from dmcore.kernel import keyring as calls
from dmcore.kernel.block import BlockFile
from dmcore.kernel.device import Device
from dmcore.table import Table
from dmcore.targets.crypt import Crypt, Key, KeyringKey

pytestmark = pytest.mark.dm

SECRET = bytes(range(1, 65))


def listed(description):
    """Whether the kernel tells of such a key."""
    return description in Path("/proc/keys").read_text()


def collected(description):
    """Whether the kernel tells of the key no more; it collects dead ones a moment later."""
    deadline = time.monotonic() + 30
    while listed(description) and time.monotonic() < deadline:
        time.sleep(0.02)
    return not listed(description)


@pytest.fixture
def description(request):
    """A name; keys of it are taken out of the thread's keyring."""
    name = f"dmcore-test:{os.getpid()}-{time.monotonic_ns()}"
    yield name
    for kind in ("logon", "user"):
        try:
            keyring.unlink(keyring.find(kind, name))
        except KeyringError:
            continue


@pytest.mark.parametrize("kind", ["logon", "user"])
def test_add_find_describe_unlink(kind, description):
    with pytest.raises(KeyMissing) as missing:
        keyring.find(kind, description)
    assert missing.value.errno == errno.ENOKEY
    serial = keyring.add_key(kind, description, SECRET)
    assert keyring.find(kind, description) == serial
    fields = keyring.describe(serial).split(";")
    assert (fields[0], fields[-1]) == (kind, description)
    assert keyring.add_key(kind, description, b"another") == serial
    keyring.unlink(serial)
    with pytest.raises(KeyMissing):
        keyring.find(kind, description)


@pytest.mark.parametrize("where", list(keyring.Keyring))
def test_every_keyring(where, description):
    serial = keyring.add_key("user", description, b"x", where)
    assert keyring.find("user", description, where) == serial
    keyring.unlink(serial, where)
    with pytest.raises(KeyMissing):
        keyring.find("user", description, where)


def test_revoked(description):
    serial = keyring.add_key("logon", description, SECRET)
    keyring.revoke(serial)
    for use in (lambda: keyring.find("logon", description), lambda: keyring.describe(serial)):
        with pytest.raises(KeyUnusable) as caught:
            use()
        assert caught.value.errno == errno.EKEYREVOKED


def test_expired(description):
    serial = keyring.add_key("logon", description, SECRET)
    keyring.set_timeout(serial, 1)
    keyring.find("logon", description)
    time.sleep(2.5)
    with pytest.raises((KeyUnusable, KeyMissing)):
        keyring.find("logon", description)
    with pytest.raises(SpecError, match="seconds"):
        keyring.set_timeout(serial, -1)


def test_invalidated(description):
    keyring.invalidate(keyring.add_key("user", description, b"x"))
    with pytest.raises(KeyringError):
        keyring.find("user", description)


def test_a_key_in_another_keyring_is_not_in_this_one(description):
    serial = keyring.add_key("user", description, b"x", keyring.Keyring.PROCESS)
    with pytest.raises(KeyMissing) as caught:
        keyring.unlink(serial)
    assert caught.value.errno == errno.ENOENT
    keyring.unlink(serial, keyring.Keyring.PROCESS)


@pytest.mark.parametrize(
    ("arguments", "field"),
    [
        (("keyring", "a:b", b"x"), "kind"),
        (("logon", "no-service", b"x"), "description"),
        (("logon", ":x", b"x"), "description"),
        (("user", "", b"x"), "description"),
        (("user", "a\0b", b"x"), "description"),
        (("user", "x" * 4096, b"x"), "description"),
        (("user", "x", b""), "payload"),
        (("user", "x", b"x" * 32768), "payload"),
        (("user", "x", "text"), "payload"),
        (("user", "x", b"x", 1 << 31), "key"),
    ],
)
def test_bad_arguments(arguments, field):
    with pytest.raises(SpecError) as caught:
        keyring.add_key(*arguments)
    assert caught.value.field == field
    assert "xxx" not in str(caught.value) or field != "payload"


@pytest.mark.parametrize(
    ("kind", "description", "payload"),
    [("logon", "no-service", b"x"), ("logon", ":x", b"x"), ("user", "x", b""), ("user", "x", b"x" * 32768)],
)
def test_the_kernel_refuses_the_same(kind, description, payload):
    """What is refused here is refused there, so that nothing that works is forbidden."""
    words = [ctypes.c_char_p(word) for word in (kind.encode(), description.encode(), payload)]
    with pytest.raises(KeyringError, match="EINVAL"):
        calls._call("add_key", "", *words, ctypes.c_size_t(len(payload)), ctypes.c_int(-1))


def test_errors_travel():
    error = KeyMissing(errno.ENOKEY, "keyctl search", "logon:a:b")
    again = pickle.loads(pickle.dumps(error))
    assert (type(again), str(again)) == (KeyMissing, str(error))
    assert str(error) == "keyctl search of key logon:a:b: ENOKEY (Required key not available)"


def test_too_much_for_the_user(description):
    """root's own limit; the payload stands in no error."""
    limit = Path("/proc/sys/kernel/keys/root_maxbytes")
    before = limit.read_text()
    limit.write_text("100")
    try:
        with pytest.raises(KeyringError) as caught:
            keyring.add_key("user", description, b"s3cret" * 100)
    finally:
        limit.write_text(before)
    assert caught.value.errno == errno.EDQUOT
    assert "s3cret" not in str(caught.value) + repr(caught.value) + repr(vars(caught.value))


@pytest.mark.parametrize("kind", ["encrypted", "trusted"])
def test_keys_that_the_kernel_makes(kind, description):
    """`encrypted` needs a master key; where a kernel has neither type, that is said."""
    command = {"encrypted": f"new user:{description}-master 64", "trusted": "new 32"}[kind].encode()
    master = keyring.add_key("user", f"{description}-master", bytes(32))
    try:
        serial = keyring.add_key(kind, description, command)
    except Unsupported as missing:
        assert missing.need == f"keys of type {kind}"  # noqa: PT017 - either is right, as the kernel is built
    else:
        assert keyring.describe(serial).startswith(kind)
        keyring.unlink(serial)
    finally:
        keyring.unlink(master)


def table(key, disk):
    return Table.of(Crypt(cipher="aes-xts-plain64", key=key, dev=disk.ref), 2048)


@pytest.mark.parametrize("kind", ["logon", "user"])
def test_crypt_from_the_keyring(control, name, disk, kind):
    """The device works, before and after the key is gone, and encrypts as with the key itself."""
    with keyring.lent(SECRET, kind=kind) as key:
        assert isinstance(key, KeyringKey)
        assert listed(key.description)
        device = Device.create(control, name, table(key, disk))
    assert collected(key.description)
    with pytest.raises(KeyMissing):
        keyring.find(kind, key.description)
    with device:
        assert str(key) in device.table_text()
        with BlockFile(device.path) as file:
            file.write(0, b"plain" * 1024 + bytes(3072))
            assert file.read(0, 512)[:5] == b"plain"
        device.suspend()
        device.resume()
        with pytest.raises(TableRejected) as caught:
            device.reload(table(key, disk))
        assert caught.value.errno == errno.ENOKEY
    with Device.create(control, name, table(Key(SECRET), disk)) as again, BlockFile(again.path) as file:
        assert file.read(0, 512) == (b"plain" * 103)[:512]


def test_crypt_and_a_revoked_key(control, name, disk, description):
    keyring.revoke(keyring.add_key("logon", description, SECRET))
    with pytest.raises(TableRejected) as caught:
        Device.create(control, name, table(KeyringKey(64, "logon", description), disk))
    assert caught.value.errno in {errno.ENOKEY, errno.EKEYREVOKED}
    assert not control.exists(name)


def test_a_key_is_the_threads_own(control, name, disk, description):
    with keyring.lent(SECRET, description=description) as key:
        found = []

        def elsewhere():
            try:
                Device.create(control, name, table(key, disk))
            except TableRejected as error:
                found.append(error.errno)

        thread = threading.Thread(target=elsewhere)
        thread.start()
        thread.join(60)
        assert found == [errno.ENOKEY]
        with Device.create(control, name, table(key, disk)):
            pass


def test_lent_keys_go_when_the_block_fails(description):
    with pytest.raises(ZeroDivisionError), keyring.lent(SECRET, description=description):
        raise ZeroDivisionError
    assert collected(description)
    with keyring.lent(SECRET, description=description):
        keyring.unlink(keyring.find("logon", description))
    with keyring.lent(Key(SECRET), description=description) as key:
        assert key == KeyringKey(64, "logon", description)
        keyring.revoke(keyring.find("logon", description))
    assert collected(description)
