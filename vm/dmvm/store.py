"""Guest kernels on this machine: fetched, unpacked and prepared once, then used from the user's cache."""

from __future__ import annotations

import hashlib
import os
from typing import TYPE_CHECKING, NamedTuple

from dmcore.errors import DmError, Unsupported
from dmvm import cache, initramfs
from dmvm.cache import cache_dir
from dmvm.kernels import EARLY, INITRAMFS, KEPT, RECIPES, GuestKernel

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

__all__ = ["Row", "build", "cache_dir", "describe", "ensure", "installed", "recipe_hash"]


def _quiet(_text: str) -> None:
    """Tell nobody."""


class Row(NamedTuple):
    """One kernel, as `pytest-dm vm list` shows it.

    Attributes:
        name: What to ask for.
        machine: "uml" or "qemu".
        state: "ready", "not fetched", or "unsupported: why".
        release: The kernel's release, "" if not known yet.
        size: Bytes it takes in the cache, 0 if it is not there.
    """

    name: str
    machine: str
    state: str
    release: str
    size: int


def _key(name: str) -> str:
    """Return the cache's name for a kernel: a path is known by its hash, so that a rebuilt kernel is another one.

    Raises:
        SpecError: It is neither a known name nor a path.
        Unsupported: It is this machine's kernel, or a path, and cannot be used.
    """
    if name in RECIPES:
        return name
    from dmvm import local  # noqa: PLC0415 - not on the way to a ready kernel of a distribution

    parts = "\0".join(local.fingerprint(name))
    return f"local-{hashlib.sha256(parts.encode()).hexdigest()[:16]}"


def recipe_hash(name: str) -> str:
    """Return a hash of what this version of the package makes of a kernel; one made otherwise is made anew."""
    parts = (RECIPES.get(name), KEPT, EARLY, INITRAMFS, initramfs.INIT)
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]


def installed(name: str) -> GuestKernel | None:
    """Return a kernel if it is ready to boot, None if it would have to be fetched; reads one small file.

    Raises:
        SpecError, Unsupported: As `ensure`, for a path or "host".
    """
    found = cache.read_manifest(_key(name))
    if found is None:
        return None
    fields, folder = found
    if fields.get("recipe") != recipe_hash(name):
        return None
    kernel = GuestKernel.from_json(fields["kernel"], folder)
    return kernel if kernel.image.is_file() and kernel.busybox.is_file() else None


def ensure(name: str, *, progress: Callable[[str], None] = _quiet, refresh: bool = False) -> GuestKernel:
    """Return a kernel that is ready to boot; fetches and prepares it the first time.

    Nothing is installed and no root is needed. Two callers at once do it once. What fails half-way leaves nothing.

    Args:
        name: A name of `dmvm.kernels.RECIPES`; "host" for the kernel this machine runs; or PATH or PATH:MODULES, a
            linux.uml, vmlinux or bzImage and the folder of its modules (without it, lib/modules/<release> beside
            the file is taken if it is there, else the kernel has all it needs built in).
        progress: Told in one line each what goes on.
        refresh: Make it anew from the newest packages, although it is there.

    Raises:
        SpecError: `name` means nothing, or the file is no kernel.
        Unsupported: It cannot be had here; says what is needed, what is there, and what would help.
    """
    ready = None if refresh else installed(name)
    if ready is not None:
        return ready
    key = _key(name)
    with cache.locked(key, progress), cache.workspace(key) as workspace:
        ready = None if refresh else installed(name)
        return ready or _make(name, key, workspace, progress, refresh=refresh)


build = ensure


def _make(
    name: str, key: str, workspace: Path, progress: Callable[[str], None], *, refresh: bool
) -> GuestKernel:
    from dmvm.prepare import Site  # noqa: PLC0415 - not on the way to a kernel that is ready

    if os.uname().machine != "x86_64":
        raise Unsupported("an x86-64 machine for guests", f"this is {os.uname().machine}")
    cache.sweep()
    final = cache.final_folder(key)
    site = Site.within(name, workspace, final, progress)
    if name in RECIPES:
        from dmvm import debian  # noqa: PLC0415 - as above

        kernel, made_from = debian.build(site, RECIPES[name], refresh=refresh)
    else:
        from dmvm import local  # noqa: PLC0415 - as above

        kernel, made_from = local.build(site)
    fields = kernel.to_json(site.folder)
    cache.publish(
        key, site.folder, final, {"recipe": recipe_hash(name), "kernel": fields, "made_from": made_from}
    )
    progress(f"{name} is ready: Linux {kernel.release}")
    return GuestKernel.from_json(fields, final)


def describe() -> list[Row]:
    """Return a row for each kernel known by name, and for this machine's own."""
    from dmvm import debian  # noqa: PLC0415 - not on the way to a kernel that is ready

    rows: list[Row] = []
    obstacle = debian.obstacle()
    absent = f"unsupported: {obstacle}" if obstacle else "not fetched"
    for name, recipe in RECIPES.items():
        kernel = installed(name)
        if kernel is None:
            rows.append(Row(name, recipe.machine, absent, "", 0))
        else:
            rows.append(Row(name, kernel.machine, "ready", kernel.release, _size(kernel)))
    try:
        kernel = installed("host")
    except DmError as error:
        rows.append(Row("host", "qemu", f"unsupported: {error}", os.uname().release, 0))
    else:
        state = "not fetched" if kernel is None else "ready"
        rows.append(Row("host", "qemu", state, os.uname().release, _size(kernel) if kernel else 0))
    return rows


def _size(kernel: GuestKernel) -> int:
    folder = kernel.busybox.parent
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
