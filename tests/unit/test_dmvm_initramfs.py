"""The cpio writer and what the initramfs holds."""

from __future__ import annotations

import stat

from dmvm.initramfs import Node, archive, contents


def test_one_small_archive_byte_for_byte() -> None:
    data = archive([Node("ab", stat.S_IFREG | 0o644, b"hello")])
    first = b"070701" + b"00000001" + b"000081A4" + b"00000000" * 2 + b"00000001" + b"00000000" + b"00000005"
    first += b"00000000" * 4 + b"00000003" + b"00000000" + b"ab\0" + b"\0" * 3 + b"hello" + b"\0" * 3
    last = b"070701" + b"00000000" * 4 + b"00000001" + b"00000000" * 6 + b"0000000B" + b"00000000"
    assert data == first + last + b"TRAILER!!!\0" + b"\0" * 3


def test_the_same_nodes_give_the_same_bytes() -> None:
    modules = [("virtio", b"ELF1"), ("9p", b"ELF22")]
    assert archive(contents(b"busybox", modules)) == archive(contents(b"busybox", modules))


def test_folders_come_before_what_lies_in_them() -> None:
    paths = [node.path for node in contents(b"busybox", [("virtio", b"ELF1")])]
    assert paths == [
        *("dev", "proc", "sys", "host", "modules", "dev/console", "busybox", "init", "modules.list"),
        "modules/virtio.ko",
    ]


def test_the_console_is_a_device_node() -> None:
    data = archive([Node("dev/console", stat.S_IFCHR | 0o600, device=(5, 1))])
    fields = [int(data[6 + 8 * index : 14 + 8 * index], 16) for index in range(13)]
    assert stat.S_ISCHR(fields[1])
    assert fields[9:11] == [5, 1]


def test_init_loads_the_modules_in_order_and_mounts_read_only() -> None:
    nodes = {node.path: node for node in contents(b"", [("b", b""), ("a", b"")])}
    assert nodes["modules.list"].data == b"b.ko\na.ko\n"
    script = nodes["init"].data.decode()
    assert "-o trans=virtio,version=9p2000.L,ro,cache=loose,msize=512000 hostroot /host" in script
    assert "MOUNT_OPTIONS" not in script
    assert script.rstrip().endswith('switch_root /host "$@"')
