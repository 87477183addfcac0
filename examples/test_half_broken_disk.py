"""A mirror in userspace on two half-broken disks: together they still have everything."""

import errno

import pytest

BLOCK = 4096
SIZE = 1 << 20


class Mirror:
    """Writes everything twice, and is content with one good copy."""

    def __init__(self, *legs):
        self.legs = legs

    def write(self, offset, data):
        return self._on_any("write", offset, data)

    def read(self, offset, length):
        return self._on_any("read", offset, length, first=True)

    def _on_any(self, verb, *args, first=False):
        answers, failures = [], []
        for leg in self.legs:
            try:
                answers.append(getattr(leg, verb)(*args))
            except OSError as error:
                failures.append(error)
            if first and answers:
                break
        if not answers:
            raise failures[0]
        return answers[0]


@pytest.fixture
def legs(dm):
    """Two disks of which the first has lost its first half, the second its second half."""
    return (
        dm.error_range(size=SIZE, start=0, length="512K"),
        dm.error_range(size=SIZE, start="512K", length="512K"),
    )


def test_two_halves_make_a_whole(legs):
    mirror = Mirror(*legs)
    for offset in range(0, SIZE, BLOCK):
        mirror.write(offset, (b"%08d" % offset) * (BLOCK // 8))

    for offset in range(0, SIZE, BLOCK):
        assert mirror.read(offset, BLOCK) == (b"%08d" % offset) * (BLOCK // 8)


def test_a_second_failure_in_one_place_is_too_much(legs):
    _, second = legs
    mirror = Mirror(*legs)
    mirror.write(0, b"x" * BLOCK)

    with second.fail(start=0, length="4K"), pytest.raises(OSError) as failure:
        mirror.read(0, BLOCK)

    assert failure.value.errno == errno.EIO
    assert mirror.read(0, BLOCK) == b"x" * BLOCK
