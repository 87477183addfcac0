"""ls --tree: what stands on what. Source: lvm2, dmsetup.c (_display_tree), libdm-deptree.c (_add_dev, _link_tree_nodes)."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from dmcore.abi.dm import encode_text
from dmcore.abi.dm_records import unpack_deps
from dmcore.cli._dmsetup.failed import Failed
from dmcore.cli._dmsetup.session import Where
from dmcore.cli._dmsetup.show import block_name, entries

if TYPE_CHECKING:
    from collections.abc import Callable

    from dmcore.abi.devt import DevT
    from dmcore.cli._dmsetup.session import Reply, Session

__all__ = ["Node", "Tree", "build", "draw", "parse"]

_DEPTH = 100


@dataclass(slots=True, eq=False)
class Node:
    """A device of the tree.

    Attributes:
        dev: Its number; None for the root, on which nothing stands and that stands on nothing.
        reply: What the kernel says of it; None for the root and for devices that are not device-mapper's.
        name: Its name, "" for those.
        uses: The nodes below, in the kernel's order; the root for those that stand on nothing.
        users: The nodes above, in the order of their names; the root for those on which nothing stands.
    """

    dev: DevT | None
    reply: Reply | None = None
    name: str = ""
    uses: list[Node] = field(default_factory=list["Node"])
    users: list[Node] = field(default_factory=list["Node"])

    def children(self, root: Node, *, inverted: bool) -> list[Node]:
        """Return the nodes below, or above if `inverted`, without the root."""
        return [node for node in (self.users if inverted else self.uses) if node is not root]


class Tree:
    """All devices, and what each stands on."""

    def __init__(self, session: Session) -> None:
        self.session = session
        self.root = Node(None)
        self.nodes: dict[DevT, Node] = {}
        self.majors: set[int] = set()

    def _link(self, parent: Node, child: Node) -> None:
        root = self.root
        if parent is root:
            if any(node is not root for node in child.users):
                return
        elif root in child.users:
            child.users.remove(root)
            root.uses.remove(child)
        if child is root:
            if any(node is not root for node in parent.uses):
                return
        elif parent is not root and root in parent.uses:
            parent.uses.remove(root)
            root.users.remove(parent)
        if child not in parent.uses:
            parent.uses.append(child)
            child.users.append(parent)

    def add(self, parent: Node, dev: DevT) -> None:
        """Add a device below `parent`, and what it stands on."""
        known = self.nodes.get(dev)
        if known is not None:
            self._link(parent, known)
            return
        node, below = self._describe(dev)
        self.nodes[dev] = node
        self._link(parent, node)
        for lower in below:
            self.add(node, lower)
        if not below:
            self._link(node, self.root)

    def _describe(self, dev: DevT) -> tuple[Node, tuple[DevT, ...]]:
        if dev.major not in self.majors:
            return Node(dev), ()
        reply = self.session.ask("deps", Where(dev=dev))
        below = unpack_deps(reply.header, reply.buffer)
        return Node(dev, reply, self.session.shown(reply.header.name)), below


def build(session: Session) -> Tree:
    """Return the tree of all devices; without one "No devices found" is printed."""
    tree = Tree(session)
    found = entries(session)
    tree.majors = {entry.dev.major for entry in found}
    for entry in found:
        tree.add(tree.root, entry.dev)
    if not found:
        sys.stdout.write("No devices found\n")
    return tree


@dataclass(frozen=True, slots=True)
class Symbols:
    """What lines are drawn with."""

    empty: str
    branch: str
    vertical: str
    last: str
    single: str
    first: str


ASCII = Symbols("  ", "|-", "| ", "`-", "---", "-+-")
UTF = Symbols("  ", "\u251c\u2500", "\u2502 ", "\u2514\u2500", "\u2500\u2500\u2500", "\u2500\u252c\u2500")
_BEGIN, _END = "\033(0\017", "\033(B"
VT100 = Symbols(
    "  ", f"{_BEGIN}tq{_END}", f"{_BEGIN}x{_END} ", f"{_BEGIN}mq{_END}", f"{_BEGIN}qqq{_END}", f"{_BEGIN}qwq{_END}"
)  # fmt: skip


@dataclass(slots=True)
class Style:
    """How -o wants the tree."""

    symbols: Symbols
    device: bool = True
    block_name: bool = False
    active: bool = False
    rw: bool = False
    open_count: bool = False
    uuid: bool = False
    targets: bool = False
    truncate: bool = True
    inverted: bool = False
    compact: bool = False

    @property
    def attributes(self) -> bool:
        """Whether anything stands in brackets behind a device."""
        return self.active or self.rw or self.open_count or self.uuid

    @property
    def joined(self) -> bool:
        """Whether a first child stands on its parent's line."""
        return self.compact and not self.attributes and not self.targets


_SWITCHES: dict[str, tuple[str, object]] = {
    "device": ("device", True), "blkdevname": ("block_name", True), "nodevice": ("device", False),
    "status": ("targets", True), "table": ("targets", True), "active": ("active", True), "open": ("open_count", True),
    "uuid": ("uuid", True), "rw": ("rw", True), "utf": ("symbols", UTF), "vt100": ("symbols", VT100),
    "ascii": ("symbols", ASCII), "inverted": ("inverted", True), "compact": ("compact", True),
    "notrunc": ("truncate", False),
}  # fmt: skip


def _utf8() -> bool:
    """Whether the locale that we were started with is one of UTF-8; Python itself has changed C to C.UTF-8 since."""
    import locale  # noqa: PLC0415 - only for --tree

    try:
        pairs = [pair.partition(b"=") for pair in Path("/proc/self/environ").read_bytes().split(b"\0")]
        given = {name: value for name, _, value in pairs}
    except OSError:
        given = dict(os.environb)
    name = given.get(b"LC_ALL") or given.get(b"LC_CTYPE") or given.get(b"LANG") or b"C"
    if name in {b"C", b"POSIX"}:
        return False
    try:
        locale.setlocale(locale.LC_CTYPE, os.fsdecode(name))
    except locale.Error:
        return False
    return locale.nl_langinfo(locale.CODESET) == "UTF-8"


def parse(text: str) -> Style:
    """Return the style that -o asks for; words may be cut short.

    Raises:
        Failed: A word that there is not.
    """
    style = Style(UTF if _utf8() else ASCII)
    words = text.split(",") if text else []
    for index, word in enumerate(words):
        for name, (attribute, value) in _SWITCHES.items():
            if name.startswith(word):
                setattr(style, attribute, value)
                break
        else:
            raise Failed(f"Tree options not recognised: {','.join(words[index:])}.")
    return style


class _Pen:
    """Writes characters until the terminal's edge."""

    def __init__(self, width: int | None) -> None:
        self.width = width
        self.column = 1
        self.held = b""
        self.out = bytearray()

    def write(self, text: str) -> None:
        for byte in encode_text(text):
            self._byte(bytes((byte,)), begins=byte & 0xC0 != 0x80, wide=byte >= 0x80)

    def _byte(self, raw: bytes, *, begins: bool, wide: bool) -> None:
        """Write one byte; what would stand in the last column is held back, since dots stand there if more comes."""
        self.column += begins
        if self.width is None or self.column <= self.width:
            self.out += raw
        elif self.column == self.width + 1 and begins:
            if self.held or wide:
                self.out += b"..."
            else:
                self.held = raw
                self.column -= 1

    def end_line(self) -> None:
        if self.held and self.column == self.width:
            self.out += self.held
        self.held = b""
        self.out += b"\n"
        self.column = 1


def _width(style: Style) -> int | None:
    if not style.truncate:
        return None
    if style.symbols is VT100:
        return 80
    try:
        columns = os.get_terminal_size(1).columns
    except OSError:
        return 80
    return columns - 3 if columns > 3 else 80


class _Drawing:
    """Draws a tree with a pen."""

    def __init__(self, tree: Tree, style: Style) -> None:
        self.tree = tree
        self.style = style
        self.pen = _Pen(_width(style))
        self.indents = [0] * _DEPTH
        self.more = [False] * (_DEPTH + 1)

    def _prefix(self, depth: int) -> None:
        symbols = self.style.symbols
        for level in range(depth):
            self.pen.write(" " * (self.indents[level] + 1))
            if level == depth - 1:
                self.pen.write(symbols.branch if self.more[depth] else symbols.last)
            else:
                self.pen.write(symbols.vertical if self.more[level + 1] else symbols.empty)

    def _attributes(self, node: Node) -> None:
        if node.reply is None:
            return
        info = node.reply.info
        words = [
            *(["SUSPENDED" if info.suspended else "ACTIVE"] if self.style.active else ()),
            *(["RO" if info.readonly else "RW"] if self.style.rw else ()),
            *([str(info.open_count)] if self.style.open_count else ()),
            *([self.tree.session.shown(info.uuid)] if self.style.uuid else ()),
        ]
        self.pen.write(f" [{', '.join(words)}]" if words else "")

    def _node(self, node: Node, depth: int, *, last: bool, has_children: bool) -> None:
        style = self.style
        if depth + 2 > _DEPTH or not (node.name or style.device or style.block_name):
            return
        self.more[depth] = not last
        self.indents[depth] = 0
        first_on_line = self.pen.column == 1
        if not style.joined or first_on_line:
            self._prefix(depth)
        offset = self.pen.column
        if style.joined and not first_on_line:
            self.pen.write(style.symbols.single if last else style.symbols.first)
        self.pen.write(node.name)
        assert node.dev is not None, "the root is not drawn"
        if style.block_name and (name := block_name(node.dev)) is not None:
            self.pen.write(f" <{name}>")
        if style.device:
            self.pen.write(f" ({node.dev})")
        if style.attributes:
            self._attributes(node)
        if style.joined:
            self.indents[depth] = self.pen.column - offset
        if not style.joined or not has_children:
            self.pen.end_line()

    def walk(self, node: Node, depth: int, label: Callable[[Node], list[Node]]) -> None:
        children = label(node)
        for index, child in enumerate(children):
            below = bool(label(child))
            self._node(child, depth, last=index == len(children) - 1, has_children=below)
            if below:
                self.walk(child, depth + 1, label)


def draw(session: Session) -> None:
    """Draw the tree of all devices."""
    style = parse(session.options.value("options") or "")
    tree = build(session)
    drawing = _Drawing(tree, style)
    drawing.walk(tree.root, 0, lambda node: node.children(tree.root, inverted=style.inverted))
    sys.stdout.write(drawing.pen.out.decode("utf-8", "surrogateescape"))
