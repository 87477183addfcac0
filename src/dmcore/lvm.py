"""LVM volumes without root: thin, linear and striped ones, as the tables LVM2 would load.

Source: LVM2's lib/activate/dev_manager.c, lib/thin, man lvmthin(7).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from dmcore.errors import FormatError, SpecError, Unsupported
from dmcore.formats.lvm2 import PhysicalVolume, parse_text
from dmcore.model.block import BlockDevice
from dmcore.model.stores import FileStore
from dmcore.ref import Ref
from dmcore.stack import Stack
from dmcore.table import Line, Table
from dmcore.target import NO_FEATURES, Leg
from dmcore.targets import Linear, Striped, Thin, ThinPool
from dmcore.volume import Volume, open_volume

if TYPE_CHECKING:
    import os
    from collections.abc import Iterable, Mapping

    from dmcore.formats.lvm2 import Section, Value
    from dmcore.target import Features, Target

__all__ = ["lvm_stack", "open_lvm"]


def _section(of: Section, name: str) -> Section:
    found = of.get(name)
    if not isinstance(found, dict):
        raise FormatError(f"LVM2 metadata have no section {name}", 0)
    return found


def _number(of: Section, name: str, default: int | None = None) -> int:
    found = of.get(name, default)
    if not isinstance(found, int) or found < 0:
        raise FormatError(f"LVM2 metadata have no number {name}", 0)
    return found


def _text(of: Section, name: str) -> str:
    found = of.get(name)
    if not isinstance(found, str):
        raise FormatError(f"LVM2 metadata have no text {name}", 0)
    return found


class _Group:
    """A volume group: makes tables for its volumes."""

    def __init__(self, text: str, disks: Mapping[str, Ref]) -> None:
        parsed = parse_text(text)
        names = [name for name, value in parsed.items() if isinstance(value, dict)]
        if len(names) != 1:
            raise FormatError(f"LVM2 metadata of {len(names)} volume groups", 0)
        self.name = names[0]
        group = _section(parsed, self.name)
        self.extent = _number(group, "extent_size")
        self.volumes = _section(group, "logical_volumes") if "logical_volumes" in group else {}
        self.starts: dict[str, tuple[Ref | None, int]] = {}
        physical = _section(group, "physical_volumes")
        for name in physical:
            one = _section(physical, name)
            ref = disks.get(_text(one, "id").replace("-", ""))
            self.starts[name] = (ref, _number(one, "pe_start"))
        self.tables: dict[str, Table] = {}

    def need(self, name: str, above: tuple[str, ...] = ()) -> Ref:
        """Make the table of a volume, and those below it; return what names it."""
        if name in above:
            raise FormatError(f"the LVM volume {name} stands on itself", 0)
        if name not in self.tables:
            volume = _section(self.volumes, name)
            lines: list[Line] = []
            segments = (volume[key] for key in volume if key.startswith("segment") and key != "segment_count")
            parts = [part for part in segments if isinstance(part, dict)]
            for part in sorted(parts, key=lambda part: _number(part, "start_extent")):
                length = _number(part, "extent_count") * self.extent
                target = self._target(name, part, length, (*above, name))
                lines.append(Line(_number(part, "start_extent") * self.extent, length, target))
            self.tables[name] = Table(tuple(lines))
        return Ref(name)

    def _target(self, name: str, part: Section, length: int, above: tuple[str, ...]) -> Target:
        kind = _text(part, "type")
        if kind == "striped":
            return self._striped(part)
        if kind == "thin-pool":
            return ThinPool(
                metadata=self.need(_text(part, "metadata"), above),
                data=self.need(_text(part, "pool"), above),
                block_sectors=_number(part, "chunk_size"),
                skip_block_zeroing=not _number(part, "zero_new_blocks", 0),
                ignore_discard=part.get("discards") == "ignore",
                no_discard_passdown=part.get("discards") == "nopassdown",
            )
        if kind == "thin":
            origin = part.get("external_origin")
            return Thin(
                pool=self.need(_text(part, "thin_pool"), above),
                dev_id=_number(part, "device_id"),
                origin=self.need(origin, above) if isinstance(origin, str) else None,
            )
        del length
        raise Unsupported(f"LVM volumes of type {kind}", f"{name} is one; linear, striped and thin ones open")

    def _striped(self, part: Section) -> Target:
        count = _number(part, "stripe_count")
        stripes = part.get("stripes")
        if not isinstance(stripes, list) or not count or len(stripes) != 2 * count:
            raise FormatError("LVM2 metadata with stripes that are not in pairs", 0)
        places = [self._place(*stripes[at : at + 2]) for at in range(0, len(stripes), 2)]
        if count == 1:
            return Linear(dev=places[0][0], offset=places[0][1])
        return Striped(chunk=_number(part, "stripe_size"), legs=tuple(Leg(*place) for place in places))

    def _place(self, name: Value, extent: Value) -> tuple[Ref, int]:
        if not isinstance(name, str) or not isinstance(extent, int) or name not in self.starts:
            raise FormatError(f"LVM2 metadata with a stripe on {name!r}, which is no disk of the group", 0)
        ref, start = self.starts[name]
        if ref is None:
            raise SpecError("devices", name, "this disk of the volume group was not given")
        return ref, start + extent * self.extent


def lvm_stack(disks: Mapping[str, BlockDevice], volume: str) -> Stack:
    """Return the tables of an LVM volume.

    Args:
        disks: The disks of the volume group, by the names the tables shall have for them.
        volume: "NAME" or "GROUP/NAME" of a logical volume.

    Raises:
        FormatError: A disk has no LVM2 label, or damaged metadata; or there is no such volume.
        SpecError: A disk that it needs was not given, or disks are of several groups.
        Unsupported: A type that is not supported here.
    """
    found = {name: PhysicalVolume.read(disk) for name, disk in disks.items()}
    refs = {pv.uuid: Ref(name) for name, pv in found.items()}
    groups = [_Group(pv.text, refs) for pv in found.values() if pv.text]
    wanted, _, name = volume.rpartition("/")
    named = {group.name: group for group in groups if wanted in {"", group.name}}
    if len(named) != 1:
        known = ", ".join(sorted({group.name for group in groups})) or "none"
        raise SpecError("volume", volume, f"the disks are of the volume groups: {known}")
    group = next(iter(named.values()))
    if name not in group.volumes:
        known = ", ".join(sorted(group.volumes)) or "none"
        raise SpecError("volume", volume, f"{group.name} has no such volume (it has: {known})")
    group.need(name)
    return Stack(group.tables)


def open_lvm(
    paths: Iterable[str | os.PathLike[str] | BlockDevice],
    volume: str,
    mode: Literal["r", "r+"] = "r",
    *,
    features: Features = NO_FEATURES,
) -> Volume:
    """Open a logical volume: linear, striped, thin, or a thin pool.

    Args:
        paths: The disks of its volume group: files, block devices, or disks of models. Those it does not use may miss.
        volume: "NAME" or "GROUP/NAME".
        mode: "r" to read, "r+" to read and write; LVM2 must not use the group at the same time.
        features: The kernel to behave as, where kernels differ.

    Raises:
        FormatError, SpecError, Unsupported: As `lvm_stack` and `open_volume`.
    """
    disks: dict[str, BlockDevice | str] = {}
    found: dict[str, BlockDevice] = {}
    opened: list[FileStore] = []
    try:
        for number, path in enumerate(paths):
            if isinstance(path, BlockDevice):
                disks[f"pv@{number}"] = found[f"pv@{number}"] = path
            else:
                store = FileStore(path, readonly=True)
                opened.append(store)
                disks[f"pv@{number}"], found[f"pv@{number}"] = str(store.path), store
        stack = lvm_stack(found, volume)
    finally:
        for store in opened:
            store.close()
    return open_volume(stack, disks, mode, top=volume.rpartition("/")[2], features=features)
