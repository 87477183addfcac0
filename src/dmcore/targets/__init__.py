"""One file per device-mapper target; `dmcore.targets.Linear` and the others come in when first used.

A file is named after the target's kernel name with `_` for `-`, its class after the same name in CamelCase. Nothing
here needs an edit for a new target to work; the lines below `TYPE_CHECKING` let type checkers see the classes, and a
test prints the line that is missing.
"""

from __future__ import annotations

import re
from functools import cache
from importlib import import_module
from pkgutil import iter_modules
from typing import TYPE_CHECKING

__all__ = ["module_names"]

if TYPE_CHECKING:
    from dmcore.targets.cache import Cache as Cache
    from dmcore.targets.clone import Clone as Clone
    from dmcore.targets.crypt import Crypt as Crypt
    from dmcore.targets.delay import Delay as Delay
    from dmcore.targets.dust import Dust as Dust
    from dmcore.targets.ebs import Ebs as Ebs
    from dmcore.targets.era import Era as Era
    from dmcore.targets.error import Error as Error
    from dmcore.targets.flakey import Flakey as Flakey
    from dmcore.targets.integrity import Integrity as Integrity
    from dmcore.targets.linear import Linear as Linear
    from dmcore.targets.log_writes import LogWrites as LogWrites
    from dmcore.targets.mirror import Mirror as Mirror
    from dmcore.targets.multipath import Multipath as Multipath
    from dmcore.targets.raid import Raid as Raid
    from dmcore.targets.snapshot import Snapshot as Snapshot
    from dmcore.targets.snapshot_merge import SnapshotMerge as SnapshotMerge
    from dmcore.targets.snapshot_origin import SnapshotOrigin as SnapshotOrigin
    from dmcore.targets.striped import Striped as Striped
    from dmcore.targets.switch import Switch as Switch
    from dmcore.targets.thin import Thin as Thin
    from dmcore.targets.thin_pool import ThinPool as ThinPool
    from dmcore.targets.unstriped import Unstriped as Unstriped
    from dmcore.targets.vdo import Vdo as Vdo
    from dmcore.targets.verity import Verity as Verity
    from dmcore.targets.writecache import Writecache as Writecache
    from dmcore.targets.zero import Zero as Zero
    from dmcore.targets.zoned import Zoned as Zoned


@cache
def module_names() -> tuple[str, ...]:
    """Return the names of the target files, sorted; those that begin with `_` hold no target of their own."""
    return tuple(sorted(name for _, name, _ in iter_modules(__path__) if not name.startswith("_")))


if not TYPE_CHECKING:

    def __getattr__(name: str) -> object:
        """Return the target class `name`, importing its file."""
        module = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower()
        if name[:1].isupper() and module in module_names():
            return getattr(import_module(f"{__name__}.{module}"), name)
        message = f"module {__name__!r} has no attribute {name!r}"
        raise AttributeError(message)

    def __dir__() -> list[str]:
        """Return the public names, target classes included."""
        return sorted(
            [*__all__, *(module.replace("_", " ").title().replace(" ", "") for module in module_names())]
        )
