"""dmcore: Linux device-mapper in pure Python.

The names below come in when they are first used; importing `dmcore` itself costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dmcore import keyring as keyring
    from dmcore import targets as targets
    from dmcore.containers import CreateFlags as CreateFlags
    from dmcore.containers import cleanup_crypt_device as cleanup_crypt_device
    from dmcore.containers import create_device as create_device
    from dmcore.containers import create_verity_target as create_verity_target
    from dmcore.containers import create_zero_sector_linear_target as create_zero_sector_linear_target
    from dmcore.containers import encrypt_device as encrypt_device
    from dmcore.containers import remove_device as remove_device
    from dmcore.errors import DmError as DmError
    from dmcore.errors import FormatError as FormatError
    from dmcore.errors import IoctlError as IoctlError
    from dmcore.errors import ParseError as ParseError
    from dmcore.errors import SpecError as SpecError
    from dmcore.errors import TableRejected as TableRejected
    from dmcore.errors import Unsupported as Unsupported
    from dmcore.kernel.control import Control as Control
    from dmcore.kernel.control import Uuid as Uuid
    from dmcore.kernel.device import Device as Device
    from dmcore.kernel.loop import LoopDevice as LoopDevice
    from dmcore.luks import open_luks as open_luks
    from dmcore.lvm import open_lvm as open_lvm
    from dmcore.ref import Ref as Ref
    from dmcore.stack import Stack as Stack
    from dmcore.table import Line as Line
    from dmcore.table import Table as Table
    from dmcore.volume import Volume as Volume
    from dmcore.volume import open_volume as open_volume

_HOMES = {
    "Control": "kernel.control",
    "CreateFlags": "containers",
    "Device": "kernel.device",
    "DmError": "errors",
    "FormatError": "errors",
    "IoctlError": "errors",
    "Line": "table",
    "LoopDevice": "kernel.loop",
    "ParseError": "errors",
    "Ref": "ref",
    "SpecError": "errors",
    "Stack": "stack",
    "Table": "table",
    "TableRejected": "errors",
    "Unsupported": "errors",
    "Uuid": "kernel.control",
    "Volume": "volume",
    "cleanup_crypt_device": "containers",
    "create_device": "containers",
    "create_verity_target": "containers",
    "create_zero_sector_linear_target": "containers",
    "encrypt_device": "containers",
    "open_luks": "luks",
    "open_lvm": "lvm",
    "open_volume": "volume",
    "remove_device": "containers",
}
"""Where each name is defined; a line here and one above make a name public."""

_MODULES = ("keyring", "targets")

__all__ = [
    "Control",
    "CreateFlags",
    "Device",
    "DmError",
    "FormatError",
    "IoctlError",
    "Line",
    "LoopDevice",
    "ParseError",
    "Ref",
    "SpecError",
    "Stack",
    "Table",
    "TableRejected",
    "Unsupported",
    "Uuid",
    "Volume",
    "cleanup_crypt_device",
    "create_device",
    "create_verity_target",
    "create_zero_sector_linear_target",
    "encrypt_device",
    "keyring",
    "open_luks",
    "open_lvm",
    "open_volume",
    "remove_device",
    "targets",
]

if not TYPE_CHECKING:

    def __getattr__(name: str) -> object:
        """Return a public name, importing its module."""
        if name in _MODULES:
            return import_module(f"{__name__}.{name}")
        if name in _HOMES:
            value = globals()[name] = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
            return value
        message = f"module {__name__!r} has no attribute {name!r}"
        raise AttributeError(message)

    def __dir__() -> list[str]:
        """Return the public names."""
        return sorted(__all__)
