"""Generated workloads: short sequences of file operations with fsync at random places, and what each must keep.

The bounds are those of ACE, the generator of CrashMonkey: few operations on a small fixed set of files, each followed or not
by fsync of a file, fsync of a folder, or sync. What is held against a crash state is what Linux file systems promise:

* sync keeps everything done before it;
* fsync of a file keeps its content and size, under the name it has;
* fsync of a folder keeps its entries;
* what is done later may be there or not, in part too, and then nothing is said of the content.

Source: Mohan et al., "Finding Crash-Consistency Bugs with Bounded Black-Box Crash Testing" (OSDI 2018), sections 4 and 5.
"""

from __future__ import annotations

import itertools
import os
import random
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pytest_dm.oracles import Corrupt, Lost

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from hypothesis.strategies import SearchStrategy

    from pytest_dm.crash.checking import State
    from pytest_dm.crash.recording import CrashDisk

__all__ = ["Operation", "Workload", "fsstress", "sequences", "workloads"]

FILES = ("a", "b", "d/a", "d/b")
FOLDERS = ("d", "e")
_BLOCK = 4096


@dataclass(frozen=True, slots=True)
class Operation:
    """One file operation.

    Attributes:
        kind: One of `KINDS`.
        path: What it is done to, relative to the mount point; "." for the root.
        other: The other path of a rename or link.
        offset: First byte of a write.
        length: Bytes of a write, or the size that a truncate gives.
    """

    kind: str
    path: str
    other: str = ""
    offset: int = 0
    length: int = 0

    def __str__(self) -> str:
        words = [self.kind, self.path, self.other]
        if self.kind in ("write", "truncate"):
            words.append(f"{self.offset}+{self.length}")
        return " ".join(filter(None, words))


KINDS = (
    "create",
    "write",
    "truncate",
    "rename",
    "link",
    "unlink",
    "mkdir",
    "rmdir",
    "fsync",
    "fsync_folder",
    "sync",
)
PERSISTING = ("fsync", "fsync_folder", "sync")


class Workload:
    """A sequence of operations, and the oracle that knows what it must keep.

    `run` does it on a recorded disk, skipping what the state of the files does not allow; `check` is for `dm_crash.check`.
    """

    def __init__(self, operations: tuple[Operation, ...]) -> None:
        self.operations = operations
        self._done: dict[int, Operation] = {}
        self._images: dict[int, dict[str, bytes | None]] = {}

    def run(self, disk: CrashDisk) -> None:
        """Do it; each persisting operation is acknowledged when it is done."""
        self._done, self._images = {}, {}
        root = disk.mountpoint
        for number, operation in enumerate(self.operations):
            with disk.operation(f"{number}:{operation.kind}"):
                done = _do(root, operation, number)
            if done:
                self._done[number] = operation
                self._images[number] = _look(root)

    def check(self, state: State) -> None:
        """Hold a state against what was acknowledged.

        Raises:
            Lost: Something that an acknowledged fsync or sync keeps is not there.
            Corrupt: A file has content that no operation gave it, or cannot be read.
        """
        acknowledged = {int(name.partition(":")[0]) for name in state.acknowledged}
        try:
            found = _look(state.mountpoint)
        except OSError as error:
            raise Corrupt(f"the files cannot be read: {error}") from error
        for path in sorted({path for image in self._images.values() for path in image}):
            self._hold(path, found, acknowledged)

    def _hold(self, path: str, found: dict[str, bytes | None], acknowledged: set[int]) -> None:
        """Hold one path against its last acknowledged persistence point, if nothing touched it since."""
        kept: tuple[int, bool] | None = None
        for number, operation in self._done.items():
            if number in acknowledged and (whole := _keeps(operation, path)) is not None:
                kept = number, whole
        if kept is None:
            return
        number, whole = kept
        expected = self._images[number]
        if any(at > number and _touches(later, path, expected) for at, later in self._done.items()):
            return
        if path in expected and path not in found:
            raise Lost(f"{path} is not there, which operation {number} ({self._done[number]}) keeps")
        if path not in expected:
            if path in found and self._done[number].kind != "fsync":
                raise Lost(
                    f"{path} is there again, whose removal operation {number} ({self._done[number]}) keeps"
                )
            return
        if whole and found[path] != expected[path]:
            raise Lost(f"{path} has other content than what operation {number} ({self._done[number]}) keeps")

    def __repr__(self) -> str:
        return f"Workload({'; '.join(map(str, self.operations))})"


def _keeps(operation: Operation, path: str) -> bool | None:
    """Return whether an operation keeps a path with its content (True), its name only (False), or not at all (None)."""
    if operation.kind == "sync":
        return True
    if operation.kind == "fsync" and operation.path == path:
        return True
    folder = path.rpartition("/")[0] or "."
    if operation.kind == "fsync_folder" and operation.path == folder:
        return False
    return None


def _touches(operation: Operation, path: str, image: dict[str, bytes | None]) -> bool:
    """Whether an operation may change what is at a path, by that name, a folder above or another name of the file."""
    if operation.kind in PERSISTING:
        return False
    named = (operation.path, operation.other)
    if any(name and (path == name or path.startswith(f"{name}/")) for name in named):
        return True
    if operation.kind in ("write", "truncate") and path in image:
        content = image[path]
        return any(other != path and image.get(other) == content for other in named)  # it may be a link to it
    return False


def _look(root: Path) -> dict[str, bytes | None]:
    """Return every file below a folder with its content, every folder with None."""
    image: dict[str, bytes | None] = {}
    for path in sorted(root.rglob("*")):
        name = str(path.relative_to(root))
        if name.partition("/")[0] != "lost+found":
            image[name] = None if path.is_dir() else path.read_bytes()
    return image


def _do(root: Path, operation: Operation, number: int) -> bool:
    """Do one operation; False if the files do not allow it."""
    try:
        _apply(root, operation, number)
    except OSError:
        return False
    return True


def _apply(root: Path, operation: Operation, number: int) -> None:
    path = root / operation.path
    other = root / operation.other
    match operation.kind:
        case "create":
            path.touch(exist_ok=False)
        case "write":
            fd = os.open(path, os.O_WRONLY)
            try:
                os.pwrite(fd, bytes([65 + number % 26]) * operation.length, operation.offset)
            finally:
                os.close(fd)
        case "truncate":
            os.truncate(path, operation.length)
        case "rename":
            path.rename(other)
        case "link":
            other.hardlink_to(path)
        case "unlink":
            path.unlink()
        case "mkdir":
            path.mkdir()
        case "rmdir":
            path.rmdir()
        case "sync":
            os.sync()
        case _:
            fd = os.open(path, os.O_RDONLY)
            try:
                os.fsync(fd)
            finally:
                os.close(fd)


def _choices() -> list[Operation]:
    """Return every operation of the bounds, but those that persist."""
    choices = [Operation(kind, path) for kind in ("create", "unlink") for path in FILES]
    choices += [Operation(kind, path) for kind in ("mkdir", "rmdir") for path in FOLDERS]
    choices += [
        Operation("write", path, offset=offset, length=length)
        for path in FILES
        for offset, length in ((0, _BLOCK), (_BLOCK, 2 * _BLOCK), (100, 50), (64 << 10, _BLOCK))
    ]
    choices += [
        Operation("truncate", path, length=length) for path in FILES for length in (0, 2500, 3 * _BLOCK)
    ]
    pairs = [(one, two) for one in FILES for two in FILES if one != two]
    return choices + [Operation(kind, one, two) for kind in ("rename", "link") for one, two in pairs]


_PREPARED = (
    Operation("mkdir", "d"), Operation("create", "a"), Operation("write", "a", length=2 * _BLOCK),
    Operation("create", "d/a"), Operation("write", "d/a", length=_BLOCK), Operation("sync", "."),
)  # fmt: skip
"""What every workload begins with, as ACE's do: some files that are durable."""


def _persisting() -> list[Operation]:
    folders = [Operation("fsync_folder", path) for path in (".", "d")]
    return [*[Operation("fsync", path) for path in FILES], *folders, Operation("sync", ".")]


def sequences(length: int) -> Iterator[Workload]:
    """Yield every workload of `length` operations, each followed by a persisting one (ACE's seq-1, seq-2, ...)."""
    steps = list(itertools.product(_choices(), _persisting()))
    for chosen in itertools.product(steps, repeat=length):
        yield Workload((*_PREPARED, *(operation for step in chosen for operation in step)))


def workloads(*, most: int = 3) -> SearchStrategy[Workload]:
    """Return a hypothesis strategy of workloads with up to `most` operations and fsync at random places.

    It shrinks to fewer operations.
    """
    from hypothesis import strategies as st

    step = st.tuples(st.sampled_from(_choices()), st.none() | st.sampled_from(_persisting()))
    return st.lists(step, min_size=1, max_size=most).map(
        lambda steps: Workload((*_PREPARED, *(one for step in steps for one in step if one is not None)))
    )


def fsstress(disk: Any, *, seed: int = 0, operations: int = 300) -> None:
    """Do many random operations on many files, as the kernel people's fsstress does; only the file system is held to it.

    Args:
        disk: A recorded disk.
        seed: The same seed does the same.
        operations: How many to try; those that the files do not allow are skipped.
    """
    chance = random.Random(seed)  # noqa: S311 - reproducible choice
    root: Path = disk.mountpoint
    folders = ["."]
    files: list[str] = []
    for number in range(operations):
        kind = chance.choices(KINDS, weights=(20, 25, 8, 10, 6, 10, 6, 2, 8, 3, 2))[0]
        path = chance.choice(files or ["none"])
        fresh = f"{chance.choice(folders)}/{'d' if kind == 'mkdir' else 'f'}{number}"
        if kind in ("create", "mkdir"):
            path = fresh
        elif kind in ("rmdir", "fsync_folder", "sync"):
            path = chance.choice(folders)
        other = fresh if kind in ("rename", "link") else ""
        length = chance.choice((100, _BLOCK, 9000, 60_000))
        operation = Operation(kind, path, other, chance.choice((0, 50, _BLOCK, 100_000)), length)
        if not _do(root, operation, number):
            continue
        if kind == "mkdir":
            folders.append(path)
        if kind in ("create", "rename", "link"):
            files.append(other or path)
        if kind in ("rename", "unlink"):
            files.remove(path)
        if kind == "rmdir":
            folders.remove(path)
    disk.mark("stressed")
