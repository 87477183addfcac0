"""Real kernels: fetched with apt, made from files, and ready in the cache."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dmcore.errors import Unsupported
from dmvm import debian, machine, qemu, sources, store, vmlinux
from dmvm.kernels import RECIPES, GuestKernel
from dmvm.modules import Tree

DM_MODULES = (
    *(
        "dm-mod",
        "dm-bufio",
        "dm-cache",
        "dm-cache-smq",
        "dm-clone",
        "dm-crypt",
        "dm-delay",
        "dm-dust",
        "dm-era",
    ),
    *("dm-flakey", "dm-integrity", "dm-log", "dm-log-writes", "dm-mirror", "dm-multipath", "dm-raid"),
    *("dm-snapshot", "dm-switch", "dm-thin-pool", "dm-unstripe", "dm-verity", "dm-writecache", "dm-zero"),
)
OTHERS = ("loop", "overlay", "ext4", "xfs", "btrfs", "f2fs", "xts", "raid456")


@pytest.fixture
def warm() -> GuestKernel:
    return store.ensure("uml-6.1")


@pytest.fixture
def own(tmp_path: Path, warm: GuestKernel, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of this test's own, a static busybox on PATH, and a UML kernel as a user may have one."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "busybox").symlink_to(warm.busybox)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"), prepend=os.pathsep)
    monkeypatch.setenv("PYTEST_DM_CACHE", str(tmp_path / "cache"))
    shutil.copyfile(warm.image, tmp_path / "my-linux")
    shutil.copytree(warm.modules, tmp_path / "lib" / "modules" / warm.release)
    return tmp_path


@pytest.mark.parametrize("name", RECIPES)
def test_every_kernel_has_the_modules(name: str) -> None:
    kernel = store.ensure(name)
    tree = Tree(kernel.modules)
    assert [module for module in (*DM_MODULES, *OTHERS) if not tree.has(module)] == []
    assert kernel.release.startswith(RECIPES[name].line + ".")
    assert tree.release_of("dm-dust") == kernel.release
    dep = (kernel.modules / "modules.dep").read_text(encoding="utf-8")
    assert len(dep.splitlines()) == len(list(kernel.modules.rglob("*.ko")))
    assert {path.stem for path in kernel.early} <= {"overlay", "loop", "dm-mod", "dax"}
    assert vmlinux.release(kernel.image.read_bytes()) == kernel.release


def test_what_is_ready_is_not_fetched_again(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    ready = store.ensure("uml-6.1")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert store.ensure("uml-6.1", progress=pytest.fail) == ready
    assert {row.name: row.state for row in store.describe()}["uml-6.1"] == "ready"


def test_one_small_package_is_fetched_checked_and_unpacked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTEST_DM_CACHE", str(tmp_path / "cache"))
    said: list[str] = []
    before = _apt_state()
    supply = debian.Supply("bookworm", tmp_path / "work", said.append)
    assert supply.update() is True
    assert supply.update() is False
    busybox = debian.busybox(supply, tmp_path)
    assert subprocess.run([busybox, "true"], check=False).returncode == 0
    [package] = supply.used
    assert package.name == "busybox-static"
    assert len(package.sha256) == 64
    assert said[0] == "fetching the package lists of Debian bookworm (about 10 MB) ..."
    assert said[1].startswith(f"fetching busybox-static {package.version} (")
    assert not package.path.exists()
    assert _apt_state() == before
    with pytest.raises(Unsupported, match="no-such-package of Debian bookworm"):
        supply.unpack(["no-such-package"], "nothing")


def _apt_state() -> list[tuple[str, int]]:
    """Names and times of the machine's own apt and dpkg state, which must stay as it is."""
    folders = (Path("/var/lib/apt/lists"), Path("/var/cache/apt/archives"), Path("/var/lib/dpkg"))
    paths = [path for folder in folders if folder.is_dir() for path in (folder, *folder.iterdir())]
    return sorted((str(path), path.stat().st_mtime_ns) for path in paths)


def test_an_archive_that_is_not_signed_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archive = tmp_path / "archive" / "dists" / "bookworm"
    archive.mkdir(parents=True)
    (archive / "Release").write_text("Suite: bookworm\nCodename: bookworm\nComponents: main\n")
    monkeypatch.setenv("PYTEST_DM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv(sources.MIRROR_VARIABLE, f"file:{tmp_path / 'archive'}")
    with pytest.raises(Unsupported, match="the package lists of Debian bookworm") as caught:
        store.ensure("uml-6.1")
    assert "not signed" in caught.value.have
    assert list((tmp_path / "cache" / "kernels").iterdir()) == []
    assert list((tmp_path / "cache" / "tmp").iterdir()) == []


def test_a_kernel_of_the_users_own_boots(own: Path, warm: GuestKernel) -> None:
    name = str(own / "my-linux")
    kernel = store.ensure(name)
    assert (kernel.name, kernel.machine, kernel.release) == (name, "uml", warm.release)
    assert store.ensure(name, progress=pytest.fail) == kernel
    assert store.ensure(f"{name}:{own / 'lib' / 'modules'}").release == warm.release
    exchange = own / "exchange"
    exchange.mkdir()
    guest = machine.start(kernel, exchange=exchange, memory_mb=256, visible=[own])
    try:
        assert guest.release == warm.release
    finally:
        guest.kill()


def test_a_kernel_for_qemu_of_the_users_own(own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PYTEST_DM_CACHE")
    ready = store.ensure("debian-6.1")
    monkeypatch.setenv("PYTEST_DM_CACHE", str(own / "cache"))
    kernel = store.ensure(f"{ready.image}:{ready.modules}")
    assert (kernel.machine, kernel.release) == ("qemu", ready.release)
    assert kernel.initramfs is not None
    listing = subprocess.run(
        [kernel.busybox, "cpio", "-t"],
        input=kernel.initramfs.read_bytes(),
        capture_output=True,
        check=True,
    ).stdout.split()
    assert listing[:2] == [b"dev", b"proc"]
    assert b"modules/virtio_console.ko" in listing
    assert b"init" in listing


def test_two_at_once_make_it_once(own: Path) -> None:
    script = "import sys; from dmvm import store; print(store.ensure(sys.argv[1], progress=print).image)"
    argv = [sys.executable, "-c", script, str(own / "my-linux")]
    both = [subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    said = [process.communicate(timeout=60)[0].splitlines() for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert said[0][-1] == said[1][-1]
    assert sum(line.startswith("choosing modules") for lines in said for line in lines) == 1


def test_the_boot_sector_answers_under_emulation() -> None:
    verdict = qemu.probe(qemu.binary(), accel="tcg", seconds=30)
    assert verdict.works, verdict.reason


def test_kvm_is_decided_in_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTEST_DM_CACHE", str(tmp_path))
    began = time.monotonic()
    first = qemu.kvm()
    assert time.monotonic() - began < 3
    began = time.monotonic()
    assert qemu.kvm().works is first.works
    assert time.monotonic() - began < 0.5
    assert qemu.accelerator() == ("kvm" if first.works else "tcg")
