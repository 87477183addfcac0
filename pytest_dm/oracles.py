"""Ready-made oracles: is everything there that was acknowledged (durability), and nothing that was not (integrity)?

An oracle gets a crash state (anything with `mountpoint`, `acknowledged` and `started`) and returns when it is content; else
it raises `Lost` ("durability: ...") or `Corrupt` ("integrity: ..."), which are two different promises: a program may keep
one without the other.

They compare with a `History` of what was done, which the recorded workload writes down beside its marks:

    history = History()
    with dm_crash.record() as disk:
        for number in range(20):
            with history.put(disk, "counter", number):
                store.put("counter", number)
    dm_crash.check(KeyValue(history, read=lambda state: dict(Store(state.mountpoint / "db"))))
"""

from __future__ import annotations

import itertools
import re
import sqlite3
import threading
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from dmcore.errors import SpecError

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Hashable, Mapping, Sequence
    from contextlib import AbstractContextManager

__all__ = ["AppendOnlyLog", "Corrupt", "Disk", "Files", "History", "KeyValue", "Lost", "Recovered", "SQLite"]

_UNSAFE = re.compile(r"[^A-Za-z0-9_.=/-]+")
_NAME = 40
_SHOWN = 60


class Lost(AssertionError):
    """Something that was acknowledged is not there."""

    def __init__(self, what: str) -> None:
        super().__init__(f"durability: {what}")


class Corrupt(AssertionError):
    """Something is there that nobody wrote, or cannot be read at all."""

    def __init__(self, what: str) -> None:
        super().__init__(f"integrity: {what}")


class Disk(Protocol):
    """What a workload is recorded on."""

    def operation(self, name: str, /) -> AbstractContextManager[object]:
        """Mark the start and the acknowledgement of an operation."""
        ...


class Recovered(Protocol):
    """A crash state after recovery."""

    @property
    def mountpoint(self) -> Path | None:
        """Where it is mounted."""
        ...

    @property
    def acknowledged(self) -> Sequence[str]:
        """Operations that must have lasted."""
        ...

    @property
    def started(self) -> Sequence[str]:
        """Operations that were under way."""
        ...


@dataclass(slots=True)
class _Operation:
    name: str
    key: Hashable
    value: object
    started: int
    done: float = float("inf")


class History:
    """What a workload did, operation by operation; several threads may write it.

    The value None stands for a key that is not there.
    """

    def __init__(self) -> None:
        self.operations: list[_Operation] = []
        self._clock = itertools.count(1)
        self._lock = threading.Lock()

    @contextmanager
    def put(self, disk: Disk, key: Hashable, value: object) -> Generator[str]:
        """Do an operation that gives `key` a `value`, in the block; gives its name in the log."""
        word = _UNSAFE.sub("-", str(key))[:_NAME]
        with self._lock:
            name = f"{len(self.operations) + 1}:{word}"
            operation = _Operation(name, key, value, next(self._clock))
            self.operations.append(operation)
        with disk.operation(name):
            yield name
        with self._lock:
            operation.done = next(self._clock)

    def delete(self, disk: Disk, key: Hashable) -> AbstractContextManager[str]:
        """Do an operation, in the block, that removes `key`."""
        return self.put(disk, key, None)

    def keys(self) -> list[Hashable]:
        """Return every key that was ever named, in order."""
        return list(dict.fromkeys(operation.key for operation in self.operations))

    def allowed(self, key: Hashable, state: Recovered) -> tuple[list[_Operation], bool]:
        """Return the operations whose value `key` may have in a state, and whether it may be as it was before them all.

        That is each acknowledged or started operation that no acknowledged one began after.
        """
        acknowledged, started = set(state.acknowledged), set(state.started)
        mine = [operation for operation in self.operations if operation.key == key]
        kept = [operation for operation in mine if operation.name in acknowledged]
        latest = max((operation.started for operation in kept), default=0)
        there = [
            operation for operation in mine if operation.name in acknowledged or operation.name in started
        ]
        ends = {
            operation.name: operation.done if operation.name in acknowledged else float("inf")
            for operation in there
        }
        return [operation for operation in there if ends[operation.name] >= latest], not kept

    def judge(
        self, found: Mapping[Hashable, object], state: Recovered, show: Callable[[object], str] | None = None
    ) -> None:
        """Compare what a state has with what it may have; keys that `found` lacks have the value None.

        Raises:
            Lost: A key has a value that an acknowledged operation replaced.
            Corrupt: A key has a value that it never had, or was never written.
        """
        say = show or _say
        for key in found:
            if not any(operation.key == key for operation in self.operations) and found[key] is not None:
                raise Corrupt(f"{key!r} is there, which nobody wrote: {say(found[key])}")
        lost: Lost | None = None
        for key in self.keys():
            value = found.get(key)
            allowed, untouched = self.allowed(key, state)
            if any(value == operation.value for operation in allowed) or (untouched and value is None):
                continue
            values = [one for one in self.operations if one.key == key and value == one.value]
            begun = {*state.acknowledged, *state.started}
            have = "is not there" if value is None else f"is {say(value)}"
            if values and value is not None and not any(one.name in begun for one in values):
                raise Corrupt(f"{key!r} {have}, a value of operation {values[0].name}, which had not begun")
            if values or value is None:
                wanted = allowed[0]
                lost = lost or Lost(
                    f"{key!r} {have}, though operation {wanted.name} was acknowledged, which made it {say(wanted.value)}"
                )
                continue
            among = ", ".join(say(operation.value) for operation in allowed) or "nothing"
            where = _difference(value, [operation.value for operation in allowed])
            raise Corrupt(f"{key!r} is {say(value)}, which it never was; it may be {among}{where}")
        if lost is not None:
            raise lost


def _say(value: object) -> str:
    if isinstance(value, bytes) and len(value) > _SHOWN:
        return f"{len(value)} bytes beginning {value[:16]!r}"
    text = "not there" if value is None else repr(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."


def _difference(value: object, allowed: Sequence[object]) -> str:
    """Return from which byte on a value is not the allowed one it is most like; "" where there are no bytes."""
    reach = -1
    if isinstance(value, bytes):
        for other in allowed:
            if isinstance(other, bytes):
                pairs = zip(value, other, strict=False)
                same = next(
                    (at for at, (one, two) in enumerate(pairs) if one != two), min(len(value), len(other))
                )
                reach = max(reach, same)
        if reach >= 0:
            return f"; they differ from byte {reach} on, where it has {value[reach : reach + 8]!r}"
    return ""


def _root(state: Recovered) -> Path:
    if state.mountpoint is None:
        raise SpecError("state", state, "this oracle reads files: it needs a state with a file system")
    return state.mountpoint


class KeyValue:
    """A key-value store, or anything that a mapping shows.

    Args:
        history: What was done.
        read: Returns what a state holds; opening the store belongs in it. Any exception of it is a finding of integrity.
        missing_is_empty: Take FileNotFoundError from `read` for an empty store: the workload had not made it yet.
    """

    def __init__(
        self,
        history: History,
        read: Callable[[Recovered], Mapping[Hashable, object]],
        *,
        missing_is_empty: bool = True,
    ) -> None:
        self.history = history
        self.read = read
        self.missing_is_empty = missing_is_empty

    def __call__(self, state: Recovered) -> None:
        """Judge a state."""
        try:
            found = dict(self.read(state))
        except AssertionError:
            raise
        except FileNotFoundError as error:
            if not self.missing_is_empty:
                raise Corrupt(f"the store cannot be read: {error}") from error
            found = {}
        except Exception as error:
            raise Corrupt(f"the store cannot be read: {type(error).__name__}: {error}") from error
        self.history.judge(found, state)


class Files:
    """Files by their content: keys are paths below the mount point, values are bytes.

    Args:
        history: What was done; `history.put(disk, "etc/config", b"...")`.
        others: Glob patterns of files that may be there besides, such as temporary ones.
    """

    def __init__(self, history: History, others: Sequence[str] = ("*.tmp", "lost+found")) -> None:
        self.history = history
        self.others = tuple(others)

    def __call__(self, state: Recovered) -> None:
        """Judge a state."""
        root = _root(state)
        found: dict[Hashable, object] = {}
        for path in sorted(root.rglob("*")):
            name = path.relative_to(root)
            if any(Path(part).match(pattern) for part in name.parts for pattern in self.others):
                continue
            try:
                if path.is_file() and not path.is_symlink():
                    found[str(name)] = path.read_bytes()
            except OSError as error:
                raise Corrupt(f"{name} cannot be read: {error}") from error
        self.history.judge(found, state, show=_content)


def _content(value: object) -> str:
    if not isinstance(value, bytes):
        return _say(value)
    if value and not any(value):
        return f"{len(value)} zero bytes"
    return f"of {len(value)} bytes ({value[:24]!r}{'...' if len(value) > 24 else ''})" if value else "empty"


class AppendOnlyLog:
    """A file that grows by one record per operation, in order.

    Args:
        path: The file, below the mount point.
        history: What was done; each value is the record's bytes, keys only name it.
        torn_tail: The last record may be there in part: its reader will drop it.
    """

    def __init__(self, path: str, history: History, *, torn_tail: bool = True) -> None:
        self.path = path
        self.history = history
        self.torn_tail = torn_tail

    def __call__(self, state: Recovered) -> None:
        """Judge a state."""
        file = _root(state) / self.path
        try:
            data = file.read_bytes()
        except FileNotFoundError:
            data = b""
        except OSError as error:
            raise Corrupt(f"{self.path} cannot be read: {error}") from error
        acknowledged = set(state.acknowledged)
        must = max(
            (at + 1 for at, one in enumerate(self.history.operations) if one.name in acknowledged), default=0
        )
        offset = whole = 0
        for operation in self.history.operations:
            record = operation.value
            assert isinstance(record, bytes), record
            there = data[offset : offset + len(record)]
            if there != record:
                if len(there) < len(record) and record.startswith(there) and (self.torn_tail or not there):
                    offset += len(there)
                    break
                if whole < must:
                    break
                raise Corrupt(
                    f"{self.path}: at byte {offset} is {_content(there)}, not record {operation.name}"
                )
            offset += len(record)
            whole += 1
        if whole < must:
            names = [operation.name for operation in self.history.operations[whole:must]]
            rest = data[offset : offset + 64]
            wrong = (
                f"; there is {_content(rest)} in its place"
                if rest
                else f"; the file ends at byte {len(data)}"
            )
            raise Lost(f"{self.path}: acknowledged record {names[0]} is not there{wrong}")
        if offset < len(data):
            raise Corrupt(
                f"{self.path}: {len(data) - offset} bytes behind the last record, {_content(data[offset:][:64])}"
            )


class SQLite:
    """An SQLite database: opened as any program would (rollback journal or WAL beside it), checked, and compared.

    Args:
        path: The database, below the mount point.
        query: Gives key and value of what it holds, such as "SELECT key, value FROM items"; None to check only that it is sound.
        history: What was committed.
    """

    def __init__(self, path: str, query: str | None = None, history: History | None = None) -> None:
        if (query is None) != (history is None):
            raise SpecError("query", query, "a query and a history go together")
        self.path = path
        self.query = query
        self.history = history

    def __call__(self, state: Recovered) -> None:
        """Judge a state."""
        file = _root(state) / self.path
        found: dict[Hashable, object] = {}
        if file.exists():
            try:
                with closing(sqlite3.connect(file, timeout=5)) as database:
                    report = [str(line) for (line,) in database.execute("PRAGMA integrity_check(5)")]
                    if report != ["ok"]:
                        raise Corrupt(f"{self.path}: integrity_check says {'; '.join(report)}")
                    if self.query is not None:
                        found = self._rows(database)
            except sqlite3.Error as error:
                raise Corrupt(f"{self.path}: {type(error).__name__}: {error}") from error
        if self.history is not None:
            self.history.judge(found, state)

    def _rows(self, database: sqlite3.Connection) -> dict[Hashable, object]:
        assert self.query is not None
        try:
            return dict(database.execute(self.query).fetchall())
        except sqlite3.OperationalError as error:
            if "no such table" in str(error):
                return {}
            raise
