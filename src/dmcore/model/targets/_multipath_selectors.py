"""What chooses a path within a group. Requests are done one after the other here, so that none is ever under way.

Sources: drivers/md/dm-ps-round-robin.c, dm-ps-queue-length.c, dm-ps-service-time.c, dm-ps-historical-service-time.c,
dm-ps-io-affinity.c (each select_path, fail_path, reinstate_path, end_io, status).
"""

from __future__ import annotations

from functools import reduce
from typing import TYPE_CHECKING

from dmcore.errors import SpecError
from dmcore.targets.multipath import Selector

if TYPE_CHECKING:
    from dmcore.model.block import BlockDevice
    from dmcore.model.clock import Clock
    from dmcore.targets.multipath import Group, Path

__all__ = ["ModelPath", "PathSelector", "selector_for"]

_FIXED_SHIFT = 10
_ONE = 1 << _FIXED_SHIFT
_BUCKET_SHIFT = 24
_WEIGHTS = 64
_NANOSECONDS = 1_000_000
_HALF = 1 << (_FIXED_SHIFT - 1)


class ModelPath:
    """A path and how it does.

    Attributes:
        device: The device behind it.
        active: Whether it is in use.
        failures: How often it was taken out of use.
    """

    def __init__(self, path: Path, device: BlockDevice) -> None:
        self.path = path
        self.device = device
        self.active = True
        self.failures = 0


class PathSelector:
    """round-robin, and queue-length, which is the same as long as nothing is under way.

    Attributes:
        own: Words about the selector in a status.
        words: How many words `info` returns.
    """

    own: str = "0"
    words: int = 0

    def __init__(self, paths: list[ModelPath], *, info: str = "", first_again: bool = False) -> None:
        self._valid = list(paths)
        self._info = info
        self.words = len(info.split())
        self._first_again = first_again

    def info(self, path: ModelPath) -> str:
        """Return the words about a path in a status."""
        del path
        return self._info

    def select(self) -> ModelPath | None:
        """Return the path for the next request."""
        best = self._best()
        if best is not None:
            self._valid.remove(best)
            self._valid.append(best)
        return best

    def _best(self) -> ModelPath | None:
        return self._valid[0] if self._valid else None

    def fail(self, path: ModelPath) -> None:
        """Take a path out."""
        self._valid.remove(path)

    def reinstate(self, path: ModelPath) -> None:
        """Take it in again: as the next one for round-robin, as the last one elsewhere."""
        self._valid.insert(0 if self._first_again else len(self._valid), path)

    def done(self, path: ModelPath, began: int) -> None:
        """Note that a request that began at `began` milliseconds is done."""


class _ServiceTime(PathSelector):
    """The path with the highest throughput; of several the one that rested longest."""

    def __init__(self, paths: list[ModelPath]) -> None:
        super().__init__(paths)
        self.words = 2

    @staticmethod
    def _throughput(path: ModelPath) -> int:
        return 1 if path.path.throughput is None else path.path.throughput

    def info(self, path: ModelPath) -> str:
        return f"0 {self._throughput(path)}"

    def _best(self) -> ModelPath | None:
        return max(self._valid, key=self._throughput, default=None)


class _Historical(PathSelector):
    """The path that has been idle for longest, unless the service times of all are alike; time is the volume's clock."""

    def __init__(self, paths: list[ModelPath], group: Group, clock: Clock) -> None:
        super().__init__(paths)
        self.words = 3
        printed = group.readback()
        base, self._threshold = printed.base_weight or 0, printed.threshold or 0
        self._weights = [_power(base, exponent) for exponent in range(1, _WEIGHTS)] + [0]
        self._clock = clock
        self._times = dict.fromkeys(paths, _ONE)
        self._stale_after = dict.fromkeys(paths, 0)
        self._finished = dict.fromkeys(paths, 0)
        self.own = f"2 {self._weights[0]} {self._threshold}"

    def info(self, path: ModelPath) -> str:
        return f"{self._times[path]} 0 {self._stale_after[path]}"

    def _best(self) -> ModelPath | None:
        def better(best: ModelPath, path: ModelPath) -> ModelPath:
            slow, fast = sorted([self._times[path], self._times[best]], reverse=True)
            alike = slow <= self._threshold * fast % (1 << 64)
            return path if not alike and self._stale_after[path] < self._stale_after[best] else best

        return reduce(better, self._valid) if self._valid else None

    def done(self, path: ModelPath, began: int) -> None:
        now = self._clock.now * _NANOSECONDS
        start = max(began * _NANOSECONDS, self._finished[path])
        self._finished[path] = now
        took = max(now - start, 0)
        weight = self._weights[min(took >> _BUCKET_SHIFT, _WEIGHTS - 1)]
        average = self._times[path] * weight + min(took << _FIXED_SHIFT, (1 << 54) - 1) * (_ONE - weight)
        self._times[path] = (average + _HALF) >> _FIXED_SHIFT
        self._stale_after[path] = now + len(self._valid) * (self._times[path] >> _FIXED_SHIFT)


def _power(base: int, exponent: int) -> int:
    """Return a power of a fixed-point number, rounded as `fixed_power` rounds."""
    result = _ONE
    while exponent:
        if exponent & 1:
            result = (result * base + _HALF) >> _FIXED_SHIFT
        base = (base * base + _HALF) >> _FIXED_SHIFT
        exponent >>= 1
    return result


class _Affinity(PathSelector):
    """The path of processor 0, which makes all requests; another one where that failed.

    Raises:
        SpecError: A path whose processors all have one already (EINVAL).
    """

    def __init__(self, paths: list[ModelPath], field: str) -> None:
        super().__init__(paths)
        self.words = 1
        self._of: dict[int, ModelPath] = {}
        self._misses = 0
        for index, path in enumerate(paths):
            mask = path.path.cpus or 0
            mine = [cpu for cpu in range(mask.bit_length()) if mask >> cpu & 1 and cpu not in self._of]
            if not mine:
                raise SpecError(f"{field}.paths[{index}].cpus", f"{mask:x}", "other paths have them all")
            self._of.update(dict.fromkeys(mine, path))

    def info(self, path: ModelPath) -> str:
        del path
        return str(self._misses)

    def select(self) -> ModelPath | None:
        self._misses += 0 not in self._of
        return next((self._of[cpu] for cpu in sorted(self._of) if self._of[cpu] in self._valid), None)


def selector_for(group: Group, paths: list[ModelPath], clock: Clock, field: str) -> PathSelector:
    """Return what chooses among `paths`; `field` names the group in errors."""
    match group.selector:
        case Selector.ROUND_ROBIN:
            return PathSelector(paths, first_again=True)
        case Selector.QUEUE_LENGTH:
            return PathSelector(paths, info="0")
        case Selector.SERVICE_TIME:
            return _ServiceTime(paths)
        case Selector.HISTORICAL_SERVICE_TIME:
            return _Historical(paths, group, clock)
        case Selector.IO_AFFINITY:
            return _Affinity(paths, field)
