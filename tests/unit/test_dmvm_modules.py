"""Modules: what they say of themselves, what comes along, and the tables modprobe reads."""

from __future__ import annotations

import gzip
import lzma
import struct
from typing import TYPE_CHECKING

import pytest

from dmcore.errors import ParseError, Unsupported
from dmvm import modinfo
from dmvm.modinfo import ModuleInfo
from dmvm.modules import Tree, closure, tables

if TYPE_CHECKING:
    from pathlib import Path


def ko(**fields: str | list[str]) -> bytes:
    """Return a module's file with just a .modinfo section."""
    words = [
        f"{key}={value}"
        for key, values in fields.items()
        for value in (values if isinstance(values, list) else [values])
    ]
    info = b"\0".join(word.encode() for word in words) + b"\0"
    names = b"\0.modinfo\0.shstrtab\0"
    sections = [
        (0, 0, 0, 0, 0, 0, 0, 0, 0, 0),
        (1, 1, 0, 0, 64, len(info), 0, 0, 1, 0),
        (10, 3, 0, 0, 64 + len(info), len(names), 0, 0, 1, 0),
    ]
    offset = 64 + len(info) + len(names)
    header = struct.pack(
        "<16sHHIQQQIHHHHHH",
        *(b"\x7fELF\x02\x01\x01", 1, 62, 1, 0, 0, offset, 0, 64, 0, 0, 64, len(sections), 2),
    )
    return header + info + names + b"".join(struct.pack("<IIQQQQIIQQ", *section) for section in sections)


def info(name: str, *depends: str, soft: tuple[str, ...] = (), aliases: tuple[str, ...] = ()) -> ModuleInfo:
    return ModuleInfo(name, depends, soft, aliases, "6.1 SMP")


def test_modinfo() -> None:
    image = ko(
        name="dm_flakey",
        depends="dm-mod,loop",
        alias=["dm-flakey", "x*"],
        softdep=["pre: crc32c post: later", "post: other pre: one two"],
        vermagic="6.1.176 mod_unload ",
    )
    assert modinfo.parse(image, "ignored") == ModuleInfo(
        "dm_flakey",
        ("dm_mod", "loop"),
        ("crc32c", "one", "two"),
        ("dm-flakey", "x*"),
        "6.1.176 mod_unload",
    )
    assert modinfo.parse(ko(depends=""), "dm_x") == ModuleInfo("dm_x", (), (), (), "")


@pytest.mark.parametrize("data", [b"", b"\x7fELF\x01\x01", ko(name="x")[:70], b"\x7fELF\x02\x01"])
def test_what_is_no_module(data: bytes) -> None:
    with pytest.raises(ParseError):
        modinfo.parse(data, "x")


INFOS = {
    module.name: module
    for module in (
        info("a", "b", "c"),
        info("b", "d"),
        info("c", "d", soft=("s", "absent")),
        info("d", "built_in"),
        info("s"),
        info("loop1", soft=("loop2",)),
        info("loop2", soft=("loop1",)),
        info("broken", "gone"),
    )
}
BUILT_IN = frozenset(["built_in"])


def test_closure_has_dependencies_first_each_once() -> None:
    assert closure(["a"], INFOS, BUILT_IN) == ["d", "b", "s", "c", "a"]
    assert closure(["d", "a", "built_in"], INFOS, BUILT_IN) == ["d", "b", "s", "c", "a"]
    assert closure([], INFOS, BUILT_IN) == []


def test_soft_dependencies_may_form_a_circle() -> None:
    assert closure(["loop1"], INFOS, BUILT_IN) == ["loop2", "loop1"]


def test_a_missing_dependency_is_named() -> None:
    with pytest.raises(Unsupported, match="module gone, which broken needs"):
        closure(["broken"], INFOS, BUILT_IN)
    with pytest.raises(Unsupported, match="module nothing"):
        closure(["nothing"], INFOS, BUILT_IN)


def test_tables_list_what_to_load_last_first() -> None:
    infos = {name: INFOS[name] for name in "abcds"} | {"e": info("e", aliases=("fs-e", "dm-e*"))}
    text = tables({name: f"kernel/{name}.ko" for name in infos}, infos, BUILT_IN)
    assert "kernel/a.ko: kernel/c.ko kernel/s.ko kernel/b.ko kernel/d.ko\n" in text["modules.dep"]
    assert "kernel/e.ko:\n" in text["modules.dep"]
    assert text["modules.alias"].splitlines()[1:] == ["alias fs-e e", "alias dm-e* e"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "6.1"
    for path, data in {
        "kernel/drivers/md/dm-mod.ko": ko(name="dm_mod", depends="dax", vermagic="6.1-test SMP"),
        "kernel/drivers/md/dm-x.ko.xz": lzma.compress(ko(name="dm_x", depends="dm-mod", alias="dm-x")),
        "kernel/drivers/dax/dax.ko.gz": gzip.compress(ko(name="dax")),
        "kernel/drivers/net/wifi.ko": ko(name="wifi"),
        "kernel/drivers/md/notes.ko.txt": b"no module",
    }.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(data)
    (root / "modules.builtin").write_text("kernel/drivers/block/loop.ko\nkernel/fs/overlayfs/over-lay.ko\n")
    return root


def test_a_tree_keeps_what_is_wanted_and_what_that_needs(folder: Path, tmp_path: Path) -> None:
    tree = Tree(folder)
    assert tree.release_of("dm-mod") == "6.1-test"
    assert tree.has("loop")
    assert tree.has("over-lay")
    assert not tree.has("dm-dust")
    paths = tree.write(["drivers/md/*"], ["loop"], tmp_path / "out")
    out = tmp_path / "out" / "kernel" / "drivers"
    assert paths == {
        "dax": out / "dax" / "dax.ko",
        "dm_mod": out / "md" / "dm-mod.ko",
        "dm_x": out / "md" / "dm-x.ko",
    }
    assert sorted(path.name for path in out.rglob("*.ko*")) == ["dax.ko", "dm-mod.ko", "dm-x.ko"]
    assert (out / "md" / "dm-x.ko").read_bytes()[:4] == b"\x7fELF"
    assert "kernel/drivers/md/dm-x.ko: kernel/drivers/md/dm-mod.ko kernel/drivers/dax/dax.ko\n" in (
        tmp_path / "out" / "modules.dep"
    ).read_text(encoding="utf-8")
    assert (tmp_path / "out" / "modules.builtin").is_file()
    assert tree.order(["loop", "dm-x"]) == ["dax", "dm_mod", "dm_x"]


def test_a_module_that_is_neither_there_nor_built_in(folder: Path) -> None:
    with pytest.raises(Unsupported, match="module overlay"):
        Tree(folder).order(["overlay"])


def test_a_kernel_without_modules_is_taken_to_have_all_built_in(tmp_path: Path) -> None:
    tree = Tree(None)
    assert tree.order(["overlay", "loop"]) == []
    assert tree.write(["*"], [], tmp_path / "out") == {}
    assert (tmp_path / "out" / "modules.dep").is_file()


def test_a_module_added_to_the_tree(folder: Path, tmp_path: Path) -> None:
    built = tmp_path / "dm-dust.ko"
    built.write_bytes(ko(name="dm_dust", depends="dm-mod"))
    tree = Tree(folder)
    tree.add(built, "kernel/drivers/md/dm-dust.ko")
    assert tree.has("dm-dust")
    assert "dm_dust" in tree.write(["drivers/md/dm-dust"], [], tmp_path / "out")
