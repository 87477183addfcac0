"""struct loop_info64 and loop_config: against bytes of real kernels, and round trips."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dmcore.abi.block import BlockCommand, byte_range
from dmcore.abi.loop import LoopConfig, LoopFlags, LoopInfo
from dmcore.errors import AbiError, SpecError

DATA = Path(__file__).parent.parent / "data" / "abi"
U64 = st.integers(0, 2**64 - 1)
OFFSETS = st.integers(0, 2**63 - 1)

infos = st.builds(
    LoopInfo,
    offset=OFFSETS,
    size_limit=OFFSETS,
    flags=st.builds(lambda flags: LoopFlags(sum(flags)), st.sets(st.sampled_from([1, 4, 8, 16]))),
    file_name=st.binary(max_size=63).filter(lambda name: b"\0" not in name),
    device=U64,
    inode=U64,
    rdevice=U64,
    number=st.integers(0, 2**32 - 1),
)


@pytest.mark.parametrize(
    "capture", sorted(DATA.glob("*/loop_status64.bin")), ids=lambda path: path.parent.name
)
def test_what_a_kernel_reported(capture):
    info = LoopInfo.unpack(capture.read_bytes())
    assert (info.offset, info.size_limit) == (4096, 65536)
    assert info.flags == LoopFlags.READ_ONLY | LoopFlags.AUTOCLEAR
    assert info.file_name == b"/tmp/capture.img"
    assert info.inode != 0
    assert info.rdevice == 0
    assert info.pack() == capture.read_bytes()


def test_there_are_captures_of_three_kernels():
    assert {path.parent.name for path in DATA.glob("*/loop_status64.bin")} >= {"6.1", "6.12", "7.2"}


@given(infos)
def test_info_round_trip(info):
    assert len(info.pack()) == 232
    assert LoopInfo.unpack(info.pack()) == info


@given(st.integers(0, 2**31 - 1), st.sampled_from([0, 512, 1024, 2048, 4096]), infos)
def test_config_round_trip(fd, block_size, info):
    config = LoopConfig(fd, block_size, info)
    assert len(config.pack()) == 304
    assert LoopConfig.unpack(config.pack()) == config
    assert config.pack()[-64:] == bytes(64)


@pytest.mark.parametrize("kind", [LoopInfo, LoopConfig])
def test_short_replies(kind):
    with pytest.raises(AbiError, match="bytes, got 100"):
        kind.unpack(bytes(100))


@pytest.mark.parametrize("size", [1, 256, 513, 768, 8192, -512])
def test_block_sizes_the_driver_refuses(size):
    with pytest.raises(SpecError, match="block_size="):
        LoopConfig(3, size, LoopInfo())


def test_a_name_must_be_cut_by_the_caller():
    with pytest.raises(SpecError, match="at most 63 bytes"):
        LoopInfo(file_name=b"x" * 64)


def test_block_ranges():
    assert byte_range(512, 4096) == (512).to_bytes(8, "little") + (4096).to_bytes(8, "little")
    assert BlockCommand.BLKGETSIZE64 == (2 << 30) | (8 << 16) | (0x12 << 8) | 114
