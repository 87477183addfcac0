"""What this kernel's targets can do, found by loading tables on a throw-away device.

Version numbers do not tell: stable kernels get features without a new number, and distributions do the same.
"""

from __future__ import annotations

import errno
import os
from contextlib import ExitStack, suppress
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING

from dmcore.abi.dm import TableLine
from dmcore.errors import IoctlError, Unsupported
from dmcore.owner import Owner
from dmcore.registry import find, targets

if TYPE_CHECKING:
    from collections.abc import Iterable

    from dmcore.abi.devt import DevT
    from dmcore.kernel.control import Control
    from dmcore.table import Table
    from dmcore.target import Feature, Features, Requirement, Target

__all__ = ["features", "require", "require_table"]

_LOWER_SECTORS = 1 << 21
_REFUSED = frozenset({errno.EINVAL, errno.ENOTSUP, errno.ENOSYS})
_lock = Lock()
_known: dict[str, Features] = {}


def features(control: Control, kinds: Iterable[type[Target]] | None = None) -> Features:
    """Return the features that this kernel has, of the given targets (None: of all); each is probed once a process.

    A probe makes one or two devices named as ours, loads tables on them, and removes them; a device that something
    (udev) holds open at that moment goes when it is closed. Modules are loaded as needed, and stay. A target the kernel
    does not have has no features.

    Raises:
        Unsupported: No permission.
        IoctlError: Devices cannot be made, or a table was refused for another reason than its words.
    """
    chosen = tuple(targets().values() if kinds is None else kinds)
    with _lock:
        for kind in chosen:
            if kind.kernel_name not in _known:
                _known[kind.kernel_name] = _probed(control, kind)
        return frozenset[str]().union(*(_known[kind.kernel_name] for kind in chosen))


def require(control: Control, requirement: Requirement) -> None:
    """Return if the kernel offers what is required, loading the target's module if need be.

    Raises:
        Unsupported: It lacks the target, or the target's version or a feature is missing.
    """
    version = _version(control, requirement.target)
    running = f"kernel {os.uname().release}"
    if version < requirement.version:
        want, have = (".".join(map(str, numbers)) for numbers in (requirement.version, version))
        raise Unsupported(
            f"dm target {requirement.target} {want}", f"{running} has {have}", "use a newer kernel"
        )
    if not requirement.features:
        return
    kind = find(requirement.target)
    have_features = features(control, (kind,)) if kind else frozenset[str]()
    missing = sorted(requirement.features - have_features)
    if missing:
        what = "; ".join(f"{name} ({_shown(kind, name)})" for name in missing)
        raise Unsupported(f"dm feature {what}", f"{running} lacks it", "use a newer kernel")


def require_table(control: Control, table: Table) -> None:
    """Return if the kernel offers what every line of the table requires.

    Raises:
        Unsupported: It does not.
    """
    for requirement in table.needs():
        require(control, requirement)


def _version(control: Control, target: str) -> tuple[int, int, int]:
    """Return the target's version, loading its module also where that is named after another target (thin's is)."""
    try:
        return control.target_version(target)
    except Unsupported as missing:
        kind = find(target)
        if kind is None:
            raise
        home = kind.kernel_module.removeprefix("dm-")
        if home != target:
            with suppress(Unsupported):
                control.target_version(home)
                return control.target_version(target)
        since = f" (Linux {kind.kernel_since} and newer)" if kind.kernel_since else ""
        hint = f"a kernel with the module {kind.kernel_module}{since}"
        raise Unsupported(missing.need, f"kernel {os.uname().release} does not know it", hint) from missing


def _shown(kind: type[Target] | None, name: str) -> str:
    feature = kind.features.get(name) if kind else None
    return (
        f"{kind.kernel_name} {feature.params.format(dev='DEV')}".rstrip()
        if kind and feature
        else "unknown to this library"
    )


def _probed(control: Control, kind: type[Target]) -> Features:
    if not kind.features:
        return frozenset()
    try:
        _version(control, kind.kernel_name)
    except Unsupported:
        return frozenset()
    found: set[str] = set()
    with ExitStack() as stack:
        owner = Owner.current()
        lower = _device(control, stack, owner)
        _lower_table(control, lower)
        control.resume(lower)
        for name, feature in kind.features.items():
            if _has(control, owner, kind, feature, lower):
                found.add(name)
    return frozenset(found)


def _device(control: Control, stack: ExitStack, owner: Owner) -> DevT:
    """Make a device that goes with `stack`, at once or, if something holds it, at its last close."""
    info = control.create(*owner.name("probe"))
    stack.callback(control.remove, info.dev, deferred=True)
    return info.dev


def _lower_table(control: Control, lower: DevT) -> None:
    """Let the device read as zeros, or, without the zero target, fail: enough where a constructor does not read."""
    try:
        control.load(lower, [TableLine(0, _LOWER_SECTORS, "zero")])
    except IoctlError as error:
        if error.errno not in _REFUSED:
            raise
        control.load(lower, [TableLine(0, _LOWER_SECTORS, "error")])


def _has(control: Control, owner: Owner, kind: type[Target], feature: Feature, lower: DevT) -> bool:
    with ExitStack() as stack:
        device = _device(control, stack, owner)

        def failure(params: str) -> int | None:
            line = TableLine(0, feature.sectors, kind.kernel_name, params.format(dev=lower))
            try:
                control.load(device, [line], readonly=kind.readonly)
            except IoctlError as error:
                if error.errno not in _REFUSED | {feature.fails}:
                    raise
                return error.errno
            return None

        if feature.refuses is not None and failure(feature.refuses) is None:
            return False
        if failure(feature.params) != feature.fails:
            return False
        if feature.prints is not None:
            printed = control.table(device, inactive=True)[0].params.strip()
            if printed != feature.prints.format(dev=lower):
                return False
        if feature.busy is not None and not _is_busy(control, device, feature.busy):
            return False
        return feature.limit is None or _limit(control, device, feature.limit) > 0


def _limit(control: Control, device: DevT, limit: str) -> int:
    """Return a queue limit of the device, which only a live table sets."""
    control.resume(device)
    return int(Path(f"/sys/dev/block/{device}/queue/{limit}").read_text(encoding="ascii"))


def _is_busy(control: Control, device: DevT, message: str) -> bool:
    """Whether the device, live and suspended, answers a message with EBUSY."""
    control.resume(device)
    control.suspend(device)
    try:
        control.message(device, message)
    except IoctlError as error:
        return error.errno == errno.EBUSY
    return False
