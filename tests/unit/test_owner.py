"""Who made a device: told from its uuid, name and folder, for live and dead owners."""

from __future__ import annotations

import dataclasses
import subprocess
import sys

import pytest

from dmcore.errors import SpecError
from dmcore.owner import PREFIX, UUID_PREFIX, Owner


def test_this_process_is_alive():
    owner = Owner.current()
    assert owner.alive()
    assert Owner.find(f"{UUID_PREFIX}{owner.tag}-7") == owner
    assert Owner.find(f"/dev/shm/{PREFIX}-{owner.tag}/1-loop.img") == owner


def test_a_process_that_ended_is_dead():
    code = "from dmcore.owner import Owner; print(Owner.current().tag)"
    tag = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    owner = Owner.find(tag)
    assert owner is not None
    assert not owner.alive()


def test_a_pid_that_was_given_again_is_another_owner():
    owner = Owner.current()
    assert not dataclasses.replace(owner, start=owner.start + 1).alive()


def test_another_boot_is_over():
    assert not dataclasses.replace(Owner.current(), boot="0" * 12).alive()


def test_another_container_of_this_boot_may_be_alive():
    owner = dataclasses.replace(Owner.current(), space=1, pid=2**22 + 1)
    assert owner.alive()


def test_names_are_fresh_and_refused_if_udev_would_mangle_them():
    owner = Owner.current()
    names = {owner.name("flakey") for _ in range(3)}
    assert len({name for name, _ in names}) == len({uuid for _, uuid in names}) == 3
    for label in ("a b", "a/b", "", "x" * 128):
        with pytest.raises(SpecError, match="label"):
            owner.name(label)


@pytest.mark.parametrize("text", ["", "LVM-abc", "pytest-dm-12-3-loop"])
def test_what_names_no_owner(text):
    assert Owner.find(text) is None
