"""The columns of reports: what each shows. Source: lvm2, libdm/dm-tools/dmsetup.c (_report_fields)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from dmcore.abi.dm import NAME_MAX, UUID_MAX
from dmcore.abi.dm_records import unpack_deps
from dmcore.cli._dmsetup.failed import Failed
from dmcore.cli._dmsetup.info import read_ahead
from dmcore.cli._dmsetup.mangling import mangle, unmangle
from dmcore.cli._dmsetup.session import Reply, Where

if TYPE_CHECKING:
    from collections.abc import Callable

    from dmcore.abi.devt import DevT
    from dmcore.cli._dmsetup.session import Session
    from dmcore.cli._dmsetup.stats_columns import Row
    from dmcore.cli._dmsetup.tree import Node

__all__ = ["COLUMNS", "GROUPS", "SPECIAL", "Column", "Item", "Shown", "SplitName"]

GROUPS = {
    "name": "Mapped Device Name",
    "info": "Mapped Device Information",
    "deps": "Mapped Device Relationship Information",
    "tree": "Mapped Device Relationship Information",
    "splitname": "Mapped Device Name Components",
    "stats": "Mapped Device Statistics",
    "region": "Mapped Device Statistics Region Information",
    "special": "Special",
}
"""What the columns of a group are about; `-o GROUP_all` shows them all."""


@dataclass(frozen=True, slots=True)
class SplitName:
    """An LVM device's name in its parts.

    Attributes:
        subsystem: Whose device it is: what stands before the first hyphen of its uuid.
        vg: Volume group.
        lv: Logical volume.
        layer: Layer of the logical volume.
    """

    subsystem: str
    vg: str = ""
    lv: str = ""
    layer: str = ""

    @classmethod
    def of(cls, subsystem: str, name: str) -> SplitName:
        """Split a name at its single hyphens; two hyphens stand for one. Only LVM's names have parts."""
        if subsystem != "LVM":
            return cls(subsystem)
        vg, rest = _component(name)
        lv, rest = _component(rest)
        return cls(subsystem, vg, lv, _component(rest)[0])


def _component(text: str) -> tuple[str, str]:
    """Return the first part of a name and the rest of it."""
    found, index = "", 0
    while index < len(text):
        if text[index] == "-" and index + 1 < len(text):
            if text[index + 1] != "-":
                return found, text[index + 1 :]
            index += 1
        found += text[index]
        index += 1
    return found, ""


@dataclass(frozen=True, slots=True)
class Shown:
    """A number that is shown in other words.

    Attributes:
        text: The words.
        number: What it is sorted and selected by.
    """

    text: str
    number: float

    def __str__(self) -> str:
        return self.text


class Item:
    """What a row is about: a device, a name to split, or something that `stats` counts.

    Args:
        session: The run.
        subject: The kernel's answer about the device, or the name's parts, or the row of `stats`.
    """

    def __init__(self, session: Session, subject: Reply | SplitName | Row) -> None:
        self.session = session
        self._subject = subject

    @property
    def reply(self) -> Reply:
        """The kernel's answer."""
        if isinstance(self._subject, SplitName):
            raise Failed("_do_report_object: no data assigned to field")
        return self._subject if isinstance(self._subject, Reply) else self._subject.reply

    @property
    def stats(self) -> Row:
        """What `stats` counts."""
        if isinstance(self._subject, Reply | SplitName):
            raise Failed("_do_report_object: no data assigned to field")
        return self._subject

    @property
    def dev(self) -> DevT:
        """The device's number."""
        return self.reply.info.dev

    @cached_property
    def split(self) -> SplitName:
        """The name's parts."""
        if isinstance(self._subject, SplitName):
            return self._subject
        uuid = self.session.shown(self.reply.header.uuid)
        subsystem = uuid.partition("-")[0] if "-" in uuid else ""
        return SplitName.of(subsystem, self.session.shown(self.reply.header.name))

    @cached_property
    def below(self) -> tuple[DevT, ...]:
        """The devices below."""
        reply = self.session.ask("deps", Where(dev=self.dev))
        return unpack_deps(reply.header, reply.buffer)

    @cached_property
    def node(self) -> Node:
        """The device in the tree of all."""
        tree = self.session.tree
        if self.dev not in tree.nodes:
            raise Failed(f"Cannot find node {self.dev}.")
        return tree.nodes[self.dev]

    def names(self, *, inverted: bool) -> str:
        """Return the names of the dm devices below or above."""
        nodes = self.node.children(self.session.tree.root, inverted=inverted)
        return ",".join(node.name for node in nodes if node.name)

    def name_in(self, *, mangled: bool) -> str:
        """Return the name with odd bytes spelled, or as they are."""
        name, mode = self.reply.header.name, self.session.mangling
        return mangle(self.session.shown(name), "name", mode, NAME_MAX) if mangled else unmangle(name)

    def uuid_in(self, *, mangled: bool) -> str:
        """Return the uuid with odd bytes spelled, or as they are."""
        uuid, mode = self.reply.header.uuid, self.session.mangling
        return mangle(self.session.shown(uuid), "UUID", mode, UUID_MAX) if mangled else unmangle(uuid)


def _block_name(dev: DevT) -> str:
    from dmcore.cli._dmsetup.show import block_name  # noqa: PLC0415 - `show` imports this module for splitname

    name = block_name(dev)
    if name is None:
        raise Failed(f"Could not resolve block device name for {dev.major}:{dev.minor}.")
    return name


def _attributes(item: Item) -> str:
    info = item.reply.info
    return "".join((
        "L" if info.live else "-", "I" if info.inactive else "-", "s" if info.suspended else "-",
        "r" if info.readonly else "w",
    ))  # fmt: skip


def _tables(item: Item) -> str:
    info = item.reply.info
    if info.live:
        return "Both" if info.inactive else "Live"
    return "Inactive" if info.inactive else "None"


def _above(item: Item) -> list[Node]:
    return item.node.children(item.session.tree.root, inverted=True)


@dataclass(frozen=True, slots=True)
class Column:
    """A column.

    Attributes:
        group: A key of `GROUPS`.
        name: Its name for -o, -O and -S.
        heading: What stands above it.
        width: Least number of characters.
        value: What it shows of an item: text, or a number.
        about: What that is.
        number: Whether it is a number: shown at the right, sorted by value.
        size: Whether it is a number of sectors, which -S compares with sizes such as 8k.
    """

    group: str
    name: str
    heading: str
    width: int
    value: Callable[[Item], str | int | Shown]
    about: str
    number: bool = False
    size: bool = False


COLUMNS = (
    Column("name", "name", "Name", 16, lambda item: item.session.shown(item.reply.header.name), "Name of the device."),
    Column("name", "mangled_name", "MangledName", 16, lambda item: item.name_in(mangled=True), "Name with odd bytes spelled out."),
    Column("name", "unmangled_name", "UnmangledName", 16, lambda item: item.name_in(mangled=False), "Name with odd bytes as they are."),
    Column("name", "uuid", "UUID", 32, lambda item: item.session.shown(item.reply.header.uuid), "Uuid of the device, if it has one."),
    Column("name", "mangled_uuid", "MangledUUID", 32, lambda item: item.uuid_in(mangled=True), "Uuid with odd bytes spelled out."),
    Column("name", "unmangled_uuid", "UnmangledUUID", 32, lambda item: item.uuid_in(mangled=False), "Uuid with odd bytes as they are."),
    Column("name", "read_ahead", "RAhead", 6, lambda item: read_ahead(item.session, item.reply) or 0, "Read-ahead in sectors.", number=True),
    Column("info", "blkdevname", "BlkDevName", 16, lambda item: _block_name(item.dev), "The kernel's name of the disk."),
    Column("info", "attr", "Stat", 4, _attributes, "(L)ive and (I)nactive table, (s)uspended, (r)ead-only or (w)riteable."),
    Column("info", "tables_loaded", "Tables", 6, _tables, "Which tables there are: Live, Inactive, Both or None."),
    Column("info", "suspended", "Suspended", 9, lambda item: "Suspended" if item.reply.info.suspended else "Active", "Whether it is suspended."),
    Column("info", "readonly", "Read-only", 9, lambda item: "Read-only" if item.reply.info.readonly else "Writeable", "Whether it is read-only."),
    Column("info", "devno", "DevNo", 5, lambda item: str(item.dev), "Its number, MAJOR:MINOR."),
    Column("info", "major", "Maj", 3, lambda item: item.dev.major, "Its major number.", number=True),
    Column("info", "minor", "Min", 3, lambda item: item.dev.minor, "Its minor number.", number=True),
    Column("info", "open", "Open", 4, lambda item: item.reply.info.open_count, "How many have it open.", number=True),
    Column("info", "segments", "Targ", 4, lambda item: item.reply.info.target_count, "Lines of its live table.", number=True),
    Column("info", "events", "Event", 6, lambda item: item.reply.info.event_nr, "Number of the last event.", number=True),
    Column("deps", "device_count", "#Devs", 5, lambda item: len(item.below), "How many devices it stands on.", number=True),
    Column("tree", "devs_used", "DevNamesUsed", 16, lambda item: item.names(inverted=False), "Names of the dm devices it stands on."),
    Column("deps", "devnos_used", "DevNosUsed", 16, lambda item: ",".join(map(str, item.below)), "Numbers of the devices it stands on."),
    Column("deps", "blkdevs_used", "BlkDevNamesUsed", 16, lambda item: ",".join(map(_block_name, item.below)), "The kernel's names of the disks it stands on."),
    Column("tree", "device_ref_count", "#Refs", 5, lambda item: len(_above(item)), "How many dm devices stand on it.", number=True),
    Column("tree", "names_using_dev", "RefNames", 8, lambda item: item.names(inverted=True), "Names of the dm devices that stand on it."),
    Column("tree", "devnos_using_dev", "RefDevNos", 9, lambda item: ",".join(str(node.dev) for node in _above(item)), "Numbers of the dm devices that stand on it."),
    Column("splitname", "subsystem", "Subsys", 6, lambda item: item.split.subsystem, "Whose device it is, by its uuid."),
    Column("splitname", "vg_name", "VG", 4, lambda item: item.split.vg, "LVM's volume group."),
    Column("splitname", "lv_name", "LV", 4, lambda item: item.split.lv, "LVM's logical volume."),
    Column("splitname", "lv_layer", "LVLayer", 7, lambda item: item.split.layer, "LVM's layer of it."),
)  # fmt: skip
"""dmsetup's columns, but for those of its statistics."""


def _no_value(_item: Item) -> int:
    return 0


SPECIAL = (
    Column(
        "special",
        "selected",
        "Selected",
        8,
        _no_value,
        "1 if the row is what -S selects, else 0.",
        number=True,
    ),
    Column("special", "help", "Help", 8, _no_value, "Show this list.", number=True),
    Column("special", "?", "Help", 8, _no_value, "Show this list.", number=True),
)
