"""The user's cache folder: locks between processes, and folders that are there whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import shutil
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from dmcore.errors import SpecError, Unsupported

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

__all__ = [
    "FORMAT",
    "cache_dir",
    "final_folder",
    "held",
    "locked",
    "make_folder",
    "publish",
    "read_manifest",
    "sweep",
    "workspace",
]

FORMAT: Final = 1
"""Version of the cache's layout; what another version left is made anew."""

_LOCK_SECONDS: Final = 3600.0
_held: list[int] = []


def cache_dir() -> Path:
    """Return the folder for what is fetched and built: PYTEST_DM_CACHE, else pytest-dm below the user's cache folder.

    Raises:
        SpecError: PYTEST_DM_CACHE or XDG_CACHE_HOME is not an absolute path.
        Unsupported: No home folder is known.
    """
    own = os.environ.get("PYTEST_DM_CACHE", "")
    if own:
        if not own.startswith("/"):
            raise SpecError("PYTEST_DM_CACHE", own, "an absolute path")
        return Path(own)
    shared = os.environ.get("XDG_CACHE_HOME", "")
    if shared.startswith("/"):
        return Path(shared, "pytest-dm")
    try:
        return Path.home() / ".cache" / "pytest-dm"
    except RuntimeError as error:
        raise Unsupported(
            "a cache folder", "no home folder is known", "set PYTEST_DM_CACHE=/path/to/folder"
        ) from error


def make_folder(path: Path) -> Path:
    """Make a folder of the cache, with those above it.

    Raises:
        Unsupported: It cannot be made or written.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise Unsupported(
            f"the cache folder {path}", f"it cannot be made: {error.strerror}", _ELSEWHERE
        ) from error
    if not os.access(path, os.W_OK | os.X_OK):
        raise Unsupported(f"the cache folder {path}", "this user cannot write it", _ELSEWHERE)
    return path


_ELSEWHERE: Final = "set PYTEST_DM_CACHE=/path/to/a/folder/you/can/write"


@contextlib.contextmanager
def locked(name: str, progress: Callable[[str], None], seconds: float = _LOCK_SECONDS) -> Generator[None]:
    """Hold the cache's lock of that name; another process that holds it is waited for.

    Raises:
        Unsupported: It is still held after `seconds`.
    """
    path = make_folder(cache_dir() / "locks") / name
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        _acquire(fd, path, progress, seconds)
        os.ftruncate(fd, 0)
        os.pwrite(fd, str(os.getpid()).encode(), 0)
        _held.append(fd)
        try:
            yield
        finally:
            _held.remove(fd)
    finally:
        os.close(fd)


def held() -> tuple[int, ...]:
    """Return the descriptors of the locks this process holds.

    A program that inherits them keeps the locks until it ends, also if this process is killed meanwhile.
    """
    return tuple(_held)


def _acquire(fd: int, path: Path, progress: Callable[[str], None], seconds: float) -> None:
    began = time.monotonic()
    told = -30.0
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in {errno.EWOULDBLOCK, errno.EACCES, errno.EINTR}:
                raise
        else:
            return
        gone = time.monotonic() - began
        holder = os.pread(fd, 20, 0).decode("ascii", "replace") or "?"
        if gone >= seconds:
            have = f"process {holder} has held {path} for {seconds:.0f} s"
            raise Unsupported(f"the lock of {path.name}", have, f"end process {holder} if it is stuck")
        if gone - told >= 30:
            told = gone
            progress(f"waiting for process {holder}, which is preparing {path.name} ...")
        time.sleep(0.1)


@contextlib.contextmanager
def workspace(name: str) -> Generator[Path]:
    """Give a fresh folder in the cache's own file system, removed at the end if it is still there.

    The caller holds the lock of that name, so what an earlier, killed process left under it is removed too.
    """
    parent = make_folder(cache_dir() / "tmp")
    for old in parent.glob(f"{name}.*"):
        shutil.rmtree(old, ignore_errors=True)
    folder = parent / f"{name}.{os.getpid()}"
    folder.mkdir()
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def sweep() -> list[Path]:
    """Remove the workspaces that killed processes left; returns them. Those in use are left alone."""
    removed: list[Path] = []
    parent = cache_dir() / "tmp"
    for folder in sorted(parent.iterdir()) if parent.is_dir() else ():
        try:
            with locked(folder.name.rpartition(".")[0], lambda _text: None, seconds=0):
                shutil.rmtree(folder, ignore_errors=True)
        except Unsupported:  # somebody holds the lock, so it is in use
            continue
        removed.append(folder)
    return removed


def _manifest(name: str) -> Path:
    return cache_dir() / "kernels" / f"{name}.json"


def read_manifest(name: str) -> tuple[dict[str, Any], Path] | None:
    """Return the manifest of a prepared kernel and its folder, None if there is none of this layout."""
    try:
        fields: Any = json.loads(_manifest(name).read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError, json.JSONDecodeError):
        return None
    try:
        known = fields["format"] == FORMAT
    except (KeyError, TypeError):
        known = False
    if not known:
        return None
    folder = cache_dir() / "kernels" / str(fields["folder"])
    return (fields, folder) if folder.is_dir() else None


def final_folder(name: str) -> Path:
    """Return where a kernel that is being prepared will lie; a different place each time."""
    return make_folder(cache_dir() / "kernels") / f"{name}.{time.time_ns():x}"


def publish(name: str, folder: Path, final: Path, fields: dict[str, Any]) -> None:
    """Rename a finished folder to `final` and make it the kernel of that name.

    What was there before stays for guests that still run on it, until the next time; what was before that goes.
    The caller holds the lock of that name.
    """
    kernels = final.parent
    previous = read_manifest(name)
    folder.rename(final)
    partial = kernels / f".{name}.{os.getpid()}"
    manifest = {"format": FORMAT, "folder": final.name, **fields}
    partial.write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")
    partial.replace(_manifest(name))
    kept = {final, previous[1] if previous else final}
    for old in kernels.glob(f"{name}.*"):
        if old not in kept and old.is_dir():
            shutil.rmtree(old, ignore_errors=True)
