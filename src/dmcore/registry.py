"""Which targets there are: found by scanning `dmcore.targets`."""

from __future__ import annotations

from functools import cache
from importlib import import_module
from types import MappingProxyType
from typing import TYPE_CHECKING

from dmcore.target import Target
from dmcore.targets import module_names

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["find", "targets"]


@cache
def _load(module: str) -> type[Target]:
    """Return the one target class that the file defines."""
    loaded = import_module(f"dmcore.targets.{module}")
    found = [
        value
        for value in vars(loaded).values()
        if isinstance(value, type)
        and issubclass(value, Target)
        and value.__module__.startswith(loaded.__name__)
        and "kernel_name" in vars(value)
    ]
    names = [value.kernel_name for value in found]
    assert names == [module.replace("_", "-")], (
        f"dmcore/targets/{module} must define one target of that name, not {names}"
    )
    return found[0]


@cache
def targets() -> Mapping[str, type[Target]]:
    """Return every target class by its kernel name, sorted; imports all target files."""
    found = (_load(module) for module in module_names())
    return MappingProxyType(dict(sorted((target.kernel_name, target) for target in found)))


def find(kernel_name: str) -> type[Target] | None:
    """Return the class of the target that a table calls `kernel_name`, importing only its file; None if there is none."""
    module = kernel_name.replace("-", "_")
    if module.replace("_", "-") != kernel_name or module not in module_names():
        return None
    return _load(module)
