"""multipath: one disk over several paths.

Sources: drivers/md/dm-mpath.c (choose_pgpath, __multipath_map_bio, multipath_end_io_bio, fail_path, reinstate_path,
bypass_pg, switch_pg_num, queue_if_no_path, multipath_status, multipath_message).
"""

from __future__ import annotations

import errno
import re
from dataclasses import replace
from typing import TYPE_CHECKING

from dmcore.errors import ParseError, SpecError, Unsupported
from dmcore.model.block import Suspended, extents_within, fault, merged
from dmcore.model.target import Area, ModelTarget
from dmcore.model.targets._multipath_selectors import ModelPath, selector_for
from dmcore.params import Tokens
from dmcore.targets.multipath import GroupState, Multipath, QueueMode

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from dmcore.model.block import BlockDevice
    from dmcore.model.target import Context
    from dmcore.model.targets._multipath_selectors import PathSelector

__all__ = ["MODEL"]

_THE_DISKS = {errno.EOPNOTSUPP, errno.EREMOTEIO, errno.ENOSPC, errno.EILSEQ, errno.ENODATA, errno.EBADE}
"""Failures that another path would not change (blk_path_error)."""
_DEVICE = re.compile("[0-9]+:[0-9]+")


class _Group:
    """A priority group.

    Attributes:
        bypassed: It is used only when no other group has a path.
    """

    def __init__(self, paths: list[ModelPath], selector: PathSelector) -> None:
        self.paths = paths
        self.selector = selector
        self.bypassed = False


class _Multipath(ModelTarget[Multipath]):
    def __init__(self, target: Multipath, context: Context) -> None:
        super().__init__(target, context)
        if target.handler is not None and target.groups:
            have = "what a handler does to other disks differs between kernels"
            raise Unsupported(
                f"SCSI disks for the handler {target.handler.name}", have, "leave the handler away"
            )
        if target.queue_mode is not QueueMode.BIO and not all(device.advances for device in self.lower):
            reason = 'paths over dm devices take no requests, only bios: "queue_mode bio"'
            raise SpecError("queue_mode", str(target.queue_mode), reason)
        below = iter(self.lower)
        self._groups: list[_Group] = []
        for index, group in enumerate(target.groups):
            paths = [ModelPath(path, device) for path, device in zip(group.paths, below, strict=False)]
            self._groups.append(_Group(paths, selector_for(group, paths, context.clock, f"groups[{index}]")))
        initial = target.initial or 1
        self._next = self._groups[initial - 1] if initial <= len(self._groups) else None
        self._current: _Group | None = None
        self._queueing = True
        self._queues = target.queue_if_no_path
        self._saved = False
        self._suspended = False

    @property
    def _paths(self) -> list[tuple[_Group, ModelPath]]:
        return [(group, path) for group in self._groups for path in group.paths]

    # -- what dm asks ------------------------------------------------------------------------------------------------

    @property
    def areas(self) -> Iterable[Area]:
        """The same part of every path's device."""
        return [Area(device, self.context.start, self.context.length) for device in self.lower]

    @property
    def discards(self) -> bool:
        """Whether all paths take them."""
        return all(device.discards for device in self.lower)

    @property
    def zeroes_natively(self) -> bool:
        """Whether all paths do."""
        return all(device.zeroes_natively for device in self.lower)

    def data_extents(self) -> Iterable[tuple[int, int]]:
        """What the device behind any path may hold."""
        return merged(*(extents_within(area.device, area.start, area.length) for area in self.areas))

    def _number(self) -> int:
        """Return the number of the group in use, or of the next."""
        group = self._current or self._next
        return self._groups.index(group) + 1 if group else min(len(self._groups), 1)

    def params(self) -> str:
        """Return the line with what messages changed, and the group in use as the first one."""
        now = replace(self.target, queue_if_no_path=self._queues, initial=self._number() or None)
        context = self.context
        return now.readback(context.features).encode(lambda ref: context.open(ref).word or ref.name)

    def status(self) -> str:
        """Return whether a group is still to be chosen, and the state of groups and paths."""
        words = [f"2 {int(self._queueing)} 0 0 {len(self._groups)} {self._number()}"]
        for group in self._groups:
            state = (
                GroupState.DISABLED
                if group.bypassed
                else GroupState.ACTIVE
                if group is self._current
                else GroupState.ENABLED
            )
            selector = group.selector
            words.append(f"{state} {selector.own} {len(group.paths)} {selector.words}")
            for path in group.paths:
                letter = "A" if path.active else "F"
                words.append(f"{path.device.word} {letter} {path.failures} {selector.info(path)}".rstrip())
        return " ".join(words)

    # -- paths -------------------------------------------------------------------------------------------------------

    def _fail(self, group: _Group, path: ModelPath) -> None:
        if path.active:
            group.selector.fail(path)
            path.active = False
            path.failures += 1
            self.context.event()

    def _reinstate(self, group: _Group, path: ModelPath) -> None:
        if not path.active:
            group.selector.reinstate(path)
            path.active = True
            self.context.event()

    def _in(self, group: _Group) -> ModelPath | None:
        path = group.selector.select()
        if path is not None and group is not self._current:
            self._current = group
            self._queueing = False
        return path

    def _choose(self) -> tuple[_Group, ModelPath] | None:
        """Return the path for the next request: of the group in use, of the one to switch to, or of any."""
        if not any(path.active for _, path in self._paths):
            self._queueing = False
            self._current = None
            return None
        if self._current and (path := self._in(self._current)) is not None:
            return self._current, path
        group, self._next = self._next, None
        if group and (path := self._in(group)) is not None:
            return group, path
        for group in sorted(self._groups, key=lambda group: group.bypassed):
            if (path := self._in(group)) is not None:
                return group, path
        self._current = None
        return None

    # -- requests ----------------------------------------------------------------------------------------------------

    def _do(self, request: Callable[[BlockDevice], None]) -> None:
        """Do a request over one path after the other, until one does not fail as a path.

        Raises:
            OSError: What it came to; EIO without a path.
            Suspended: No path is left, and the kernel would let it wait for one.
        """
        while True:
            chosen = self._choose()
            if chosen is None:
                if self._queues:
                    message = (
                        "no path is left: the kernel would let this request wait until one is reinstated"
                    )
                    raise Suspended(message)
                raise fault(errno.EIO)
            group, path = chosen
            began = self.context.clock.now
            try:
                request(path.device)
            except OSError as error:
                group.selector.done(path, began)
                if error.errno in _THE_DISKS:
                    raise
                self._fail(group, path)
                if not self._queues and not any(path.active for _, path in self._paths):
                    raise fault(errno.EIO) from error
            else:
                group.selector.done(path, began)
                return

    def readinto(self, sector: int, buffer: memoryview, flags: int) -> None:
        """Read over a path."""
        at = self.context.start + sector
        self._do(lambda device: device.readinto(at, buffer, flags))

    def write(self, sector: int, data: memoryview, flags: int) -> None:
        """Write over a path."""
        at = self.context.start + sector
        self._do(lambda device: device.write(at, data, flags))

    def flush(self) -> None:
        """Flush over one path."""
        self._do(lambda device: device.flush())

    def discard(self, sector: int, count: int) -> None:
        """Discard over a path."""
        self._do(lambda device: device.discard(self.context.start + sector, count))

    def write_zeroes(self, sector: int, count: int) -> None:
        """Zero over a path."""
        self._do(lambda device: device.write_zeroes(self.context.start + sector, count))

    # -- messages and the life of the table --------------------------------------------------------------------------

    def message(self, words: list[str]) -> str:
        """Take a message about what to do without paths, about groups, or about the paths over a device.

        Raises:
            OSError: EBUSY while the device is suspended; EINVAL for a group or path that there is not; ENODEV for what
                is no device.
        """
        if self._suspended:
            raise fault(errno.EBUSY)
        match [words[0].lower(), *words[1:]]:
            case ["queue_if_no_path"]:
                self._queues = True
            case ["fail_if_no_path"]:
                self._queues = self._saved = False
            case ["disable_group" | "enable_group" as what, number]:
                self._group(number).bypassed = what == "disable_group"
                self._leave()
            case ["switch_group", number]:
                self._next = self._group(number)
                for group in self._groups:
                    group.bypassed = False
                self._leave()
            case ["fail_path", device]:
                self._each(device, self._fail)
            case ["reinstate_path", device]:
                self._each(device, self._reinstate)
            case _:
                raise fault(errno.EINVAL)
        return ""

    def _leave(self) -> None:
        """Choose a group anew at the next request."""
        self._current = None
        self.context.event()

    def _group(self, word: str) -> _Group:
        try:
            number = Tokens(word).wrapping("the number of a group", bits=32)
        except ParseError:
            raise fault(errno.EINVAL) from None
        if not 1 <= number <= len(self._groups):
            raise fault(errno.EINVAL)
        return self._groups[number - 1]

    def _each(self, word: str, do: Callable[[_Group, ModelPath], None]) -> None:
        found = [
            (group, path) for group, path in self._paths if word in {path.device.word, path.path.dev.name}
        ]
        if not found:
            raise fault(errno.EINVAL if _DEVICE.fullmatch(word) else errno.ENODEV)
        for group, path in found:
            do(group, path)

    def presuspend(self) -> None:
        """Let nothing wait for a path any more: a suspend waits for all requests."""
        self._saved, self._queues = self._queues, False

    def postsuspend(self) -> None:
        """Take no more messages."""
        self._suspended = True

    def resume(self) -> None:
        """Let requests wait again, if they did before."""
        self._suspended = False
        self._queues |= self._saved
        self._saved = False


MODEL = _Multipath
