"""The cache: where it is, its locks, and folders that are there whole or not at all."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dmcore.errors import SpecError, Unsupported
from dmvm import cache, local, prepare, store, vmlinux
from dmvm.kernels import RECIPES, GuestKernel

KERNEL = {
    "name": "uml-6.1",
    "machine": "uml",
    "release": "6.1.1",
    "image": "linux.uml",
    "modules": "modules",
    "early": ["modules/a.ko"],
    "busybox": "busybox",
    "initramfs": None,
}


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PYTEST_DM_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def _publish(text: str = "x", recipe: str = "") -> Path:
    recipe = recipe or store.recipe_hash("uml-6.1")
    final = cache.final_folder("uml-6.1")
    with cache.workspace("uml-6.1") as work:
        made = work / "kernel"
        made.mkdir()
        for name in ("linux.uml", "busybox"):
            (made / name).write_text(text)
        cache.publish("uml-6.1", made, final, {"kernel": KERNEL, "recipe": recipe})
    return final


def test_where_it_is(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    assert cache.cache_dir() == folder
    monkeypatch.setenv("PYTEST_DM_CACHE", "relative")
    with pytest.raises(SpecError, match="PYTEST_DM_CACHE='relative'"):
        cache.cache_dir()
    monkeypatch.delenv("PYTEST_DM_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/xdg")
    assert cache.cache_dir() == Path("/xdg/pytest-dm")
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    monkeypatch.setenv("HOME", "/home/someone")
    assert cache.cache_dir() == Path("/home/someone/.cache/pytest-dm")


def test_a_cache_that_cannot_be_made(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("PYTEST_DM_CACHE", str(tmp_path / "file" / "below"))
    with pytest.raises(Unsupported, match="set PYTEST_DM_CACHE"):
        cache.make_folder(cache.cache_dir())
    assert store.installed("uml-6.1") is None


def test_a_published_kernel_is_found(folder: Path) -> None:
    assert store.installed("uml-6.1") is None
    final = _publish()
    found = store.installed("uml-6.1")
    assert found == GuestKernel.from_json(KERNEL, final)
    assert found is not None
    assert found.early == (final / "modules" / "a.ko",)
    assert found.to_json(final) == KERNEL
    assert store.ensure("uml-6.1", progress=pytest.fail) == found
    assert list((folder / "tmp").iterdir()) == []


def test_what_is_published_anew_is_used_and_the_one_before_stays_for_running_guests() -> None:
    oldest, old = _publish("oldest"), _publish("old")
    new = _publish("new")
    assert len({oldest, old, new}) == 3
    assert not oldest.exists()
    assert old.exists()
    found = store.installed("uml-6.1")
    assert found is not None
    assert found.image.read_text() == "new"


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"format": 0}', '{"format": 1, "folder": "gone"}'])
def test_a_manifest_that_is_not_ours_counts_as_none(text: str, folder: Path) -> None:
    (folder / "kernels").mkdir(parents=True)
    (folder / "kernels" / "uml-6.1.json").write_text(text)
    assert store.installed("uml-6.1") is None


def test_a_kernel_made_by_another_version_otherwise_counts_as_none() -> None:
    _publish(recipe="other")
    assert store.installed("uml-6.1") is None


def test_a_kernel_whose_image_was_removed_counts_as_none() -> None:
    (_publish() / "linux.uml").unlink()
    assert store.installed("uml-6.1") is None


def test_a_workspace_goes_with_its_failure(folder: Path) -> None:
    def fail(work: Path) -> None:
        (work / "file").touch()
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), cache.workspace("x") as work:
        fail(work)
    assert list((folder / "tmp").iterdir()) == []


def test_what_a_killed_process_left_is_cleared(folder: Path) -> None:
    left = folder / "tmp" / "x.1"
    left.mkdir(parents=True)
    other = folder / "tmp" / "xy.1"
    other.mkdir()
    with cache.workspace("x"):
        assert not left.exists()
    assert other.exists()


def test_leftovers_are_swept_but_what_is_in_use_stays(folder: Path) -> None:
    assert cache.sweep() == []
    left = folder / "tmp" / "uml-6.1.1"
    (left / "work").mkdir(parents=True)
    with cache.locked("local-1", print), cache.workspace("local-1") as mine:
        assert cache.sweep() == [left]
        assert mine.is_dir()
    assert list((folder / "tmp").iterdir()) == []


def test_a_lock_is_waited_for_and_its_holder_named(folder: Path) -> None:
    script = (
        "import sys, time; from dmvm import cache\n"
        "with cache.locked('x', print):\n    print('held', flush=True); sys.stdin.read()"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=os.environ
    )
    said: list[str] = []
    with holder:
        assert holder.stdout is not None
        assert holder.stdin is not None
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(Unsupported) as caught, cache.locked("x", said.append, seconds=0.3):
            pytest.fail("two hold the lock")
        assert f"process {holder.pid} has held" in caught.value.have
        assert said == [f"waiting for process {holder.pid}, which is preparing x ..."]
        holder.stdin.close()
        began = time.monotonic()
        with cache.locked("x", said.append, seconds=10):
            assert time.monotonic() - began < 10
    assert holder.returncode == 0


def test_a_warm_cache_costs_nothing_to_ask() -> None:
    _publish()
    began = time.perf_counter()
    for _ in range(20):
        store.ensure("uml-6.1")
    assert (time.perf_counter() - began) / 20 < 0.02


def test_names_that_mean_nothing() -> None:
    with pytest.raises(SpecError, match=r"kernel='uml-9\.9': one of uml-6\.1, "):
        store.ensure("uml-9.9")
    with pytest.raises(SpecError, match="there is no file /nonexistent/vmlinuz"):
        store.ensure("/nonexistent/vmlinuz")


def test_a_path_that_is_no_kernel(tmp_path: Path, folder: Path) -> None:
    (tmp_path / "text").write_text("hello")
    with pytest.raises(SpecError, match=r"text.*is no linux\.uml, vmlinux or bzImage"):
        store.ensure(str(tmp_path / "text"))
    with pytest.raises(SpecError, match="there is no module folder /nonexistent"):
        store.ensure(f"{tmp_path / 'text'}:/nonexistent")
    assert list((folder / "tmp").iterdir()) == []
    assert list((folder / "kernels").iterdir()) == []


def test_a_rebuilt_kernel_is_another_one(tmp_path: Path) -> None:
    image = tmp_path / "vmlinux"
    image.write_text("one")
    before = local.fingerprint(str(image))
    assert before == local.fingerprint(str(image))
    image.write_text("three")
    assert before != local.fingerprint(str(image))


def test_the_kernel_of_a_machine_that_does_not_have_it_as_a_file(tmp_path: Path) -> None:
    with pytest.raises(Unsupported) as caught:
        local.locate("host", tmp_path)
    assert os.uname().release in caught.value.have
    boot = tmp_path / "boot" / f"vmlinuz-{os.uname().release}"
    boot.parent.mkdir()
    boot.touch()
    modules = tmp_path / "usr" / "lib" / "modules" / os.uname().release
    modules.mkdir(parents=True)
    assert local.locate("host", tmp_path) == (boot, modules)


def test_every_kernel_has_a_row() -> None:
    _publish()
    rows = {row.name: row for row in store.describe()}
    assert list(rows) == [*RECIPES, "host"]
    assert rows["uml-6.1"] == store.Row("uml-6.1", "uml", "ready", "6.1.1", 2)
    assert rows["uml-6.12"].state == "not fetched" or rows["uml-6.12"].state.startswith("unsupported: ")


def test_without_apt_every_kernel_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(Unsupported) as caught:
        store.ensure("uml-7.2")
    assert str(caught.value) == (
        "needs apt-get, to fetch a guest kernel of Debian; there is none on PATH -- "
        "name a kernel of your own: --dm-kernel=/path/to/vmlinuz:/path/to/lib/modules/RELEASE"
    )
    assert {row.state for row in store.describe() if row.name in RECIPES} == {f"unsupported: {caught.value}"}


def test_the_c_library_a_program_needs() -> None:
    program = b"\x7fELF...\0GLIBC_2.2.5\0GLIBC_2.38\0GLIBC_2.9\0GLIBC_PRIVATE\0"
    assert prepare.glibc_needed(program) == (2, 38)
    assert prepare.glibc_needed(b"static") == (0, 0)
    assert vmlinux.kind(program) == ""


def test_a_program_left_behind_by_a_killed_process_keeps_the_lock(folder: Path) -> None:
    script = (
        "import os; from dmvm import cache, tools\n"
        "with cache.locked('x', print):\n"
        "    tools.run(['sh', '-c', 'echo >&2; kill -9 $PPID; sleep 1.5'], need='x', seconds=9)"
    )
    subprocess.run([sys.executable, "-c", script], env=os.environ, check=False)
    with pytest.raises(Unsupported), cache.locked("x", print, seconds=0.2):
        pytest.fail("the lock was free")
    with cache.locked("x", print, seconds=10):
        assert cache.held() != ()
    assert cache.held() == ()
