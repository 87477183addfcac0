"""Scheduling of a suite that runs once per kernel: each kernel's workers share that kernel's run."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, cast

from xdist.scheduler import (
    EachScheduling,
    LoadFileScheduling,
    LoadGroupScheduling,
    LoadScheduling,
    LoadScopeScheduling,
    WorkStealingScheduling,
)
from xdist.workermanage import parse_tx_spec_config

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import pytest
    from xdist.remote import Producer
    from xdist.scheduler import Scheduling
    from xdist.workermanage import WorkerController

__all__ = ["KernelScheduling", "kernel_of", "scheduling", "worker_id"]


def worker_id(node: WorkerController) -> str:
    """Return xdist's name of a worker, such as "gw0"."""
    return str(cast("Any", node).gateway.id)


def kernel_of(node: WorkerController) -> str:
    """Return the kernel that a worker's guest runs."""
    return str(cast("Any", node).gateway.spec.dm_kernel)


class _Once:
    """Mixed into xdist's schedulings by scope, which would run a test that killed its worker again and again."""

    def remove_node(self, node: WorkerController) -> str | None:
        """Drop a worker; returns the test it was running, if it died in one, and does not hand that out again."""
        scheduling = cast("Any", self)
        for unit in scheduling.assigned_work.get(node, {}).values():
            for nodeid, completed in unit.items():
                if not completed:
                    unit[nodeid] = True
                    cast("Any", super()).remove_node(node)
                    return str(nodeid)
        return cast("str | None", cast("Any", super()).remove_node(node))


class _ScopeOnce(_Once, LoadScopeScheduling):
    """Tests of a class or module together."""


class _FileOnce(_Once, LoadFileScheduling):
    """Tests of a file together."""


class _GroupOnce(_Once, LoadGroupScheduling):
    """Tests of a group together."""


_KINDS: Final[dict[str, type[Any]]] = {
    "each": EachScheduling,
    "load": LoadScheduling,
    "loadfile": _FileOnce,
    "loadgroup": _GroupOnce,
    "loadscope": _ScopeOnce,
    "worksteal": WorkStealingScheduling,
}
"""xdist's own, by its `--dist`."""


def scheduling(config: pytest.Config, log: Producer) -> Scheduling:
    """Return the scheduling that `--dist` names, for the tests of one kernel."""
    return cast("Scheduling", _KINDS[str(config.getoption("dist"))](config, log))


def _collected(part: Any) -> Sequence[str]:
    """Return the ids of a part's tests, none before its workers have collected; "each" worker has its own."""
    if isinstance(part, EachScheduling):
        return [item for collection in cast("Any", part).node2collection.values() for item in collection]
    return part.collection or ()


class KernelScheduling:
    """xdist's `Scheduling` protocol: one of its schedulings per kernel, workers taken to their kernel's."""

    def __init__(
        self, config: pytest.Config, log: Producer, kernels: Sequence[str], on_total: Callable[[int], None]
    ) -> None:
        """Prepare.

        Args:
            config: The controller's; `--dist` says how tests are spread over the workers of a kernel.
            log: xdist's.
            kernels: Names; the workers take them in turn.
            on_total: Told how many tests there are in all, whenever tests are handed out.
        """
        self._on_total = on_total
        self._parts: dict[str, Any] = {}
        workers = len(parse_tx_spec_config(config))
        for number, kernel in enumerate(kernels):
            part: Any = scheduling(config, log)
            part.numnodes = len(range(number, workers, len(kernels)))
            self._parts[kernel] = part

    def _part(self, node: WorkerController) -> Any:
        return self._parts[kernel_of(node)]

    @property
    def nodes(self) -> list[WorkerController]:
        """All workers."""
        return [node for part in self._parts.values() for node in part.nodes]

    @property
    def collection_is_completed(self) -> bool:
        """Whether every first worker of every kernel has collected."""
        return all(part.collection_is_completed for part in self._parts.values())

    @property
    def tests_finished(self) -> bool:
        """Whether no kernel has tests to hand out."""
        return all(part.tests_finished for part in self._parts.values())

    @property
    def has_pending(self) -> bool:
        """Whether any kernel has tests that have not ended."""
        return any(part.has_pending for part in self._parts.values())

    def add_node(self, node: WorkerController) -> None:
        """Take a worker in."""
        self._part(node).add_node(node)

    def add_node_collection(self, node: WorkerController, collection: Sequence[str]) -> None:
        """Take a worker's collected ids."""
        self._part(node).add_node_collection(node, collection)

    def mark_test_complete(self, node: WorkerController, item_index: int, duration: float = 0) -> None:
        """Note that a worker ended a test."""
        self._part(node).mark_test_complete(node, item_index, duration)

    def mark_test_pending(self, item: str) -> None:
        """Hand a test out again, on the kernel whose suite has it."""
        for part in self._parts.values():
            if item in _collected(part):
                part.mark_test_pending(item)

    def remove_pending_tests_from_node(self, node: WorkerController, indices: Sequence[int]) -> None:
        """Take tests back from a worker."""
        self._part(node).remove_pending_tests_from_node(node, indices)

    def remove_node(self, node: WorkerController) -> str | None:
        """Drop a worker; returns the test it was running, if it died in one."""
        return cast("str | None", self._part(node).remove_node(node))

    def schedule(self) -> None:
        """Hand out tests."""
        for part in self._parts.values():
            part.schedule()
        self._on_total(sum(len(_collected(part)) for part in self._parts.values()))
