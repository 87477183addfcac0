"""Which targets have a model: found by scanning `dmcore.model.targets`.

A file there is named after the target's kernel name with `_` for `-`, and defines `MODEL`, a subclass of `ModelTarget`
that is made from the target's value and a `Context`.
"""

from __future__ import annotations

from functools import cache
from importlib import import_module
from pkgutil import iter_modules
from typing import TYPE_CHECKING, Any

from dmcore.errors import Unsupported
from dmcore.model import targets

if TYPE_CHECKING:
    from dmcore.model.target import Context, ModelTarget
    from dmcore.target import Target

__all__ = ["build", "modelled"]


@cache
def modelled() -> tuple[str, ...]:
    """Return the kernel names of the targets that have a model, sorted."""
    names = (name for _, name, _ in iter_modules(targets.__path__) if not name.startswith("_"))
    return tuple(sorted(name.replace("_", "-") for name in names))


def build(target: Target, context: Context) -> ModelTarget[Any]:
    """Return the model for one line.

    Raises:
        Unsupported: There is none for this target.
        OSError, SpecError, FormatError: Its constructor refuses.
    """
    name = target.kernel_type
    if name not in modelled():
        have = f"models are there for {', '.join(modelled())}"
        raise Unsupported(f"a model of {name}", have, "load the table on a kernel: pytest --dm-vm")
    model: type[ModelTarget[Any]] = import_module(f"{targets.__name__}.{name.replace('-', '_')}").MODEL
    return model(target, context)
