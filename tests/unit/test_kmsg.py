"""The kernel log where it cannot be read, and the records of /dev/kmsg; reading a real one is in tests/kernel."""

from __future__ import annotations

import os

from dmcore.kernel.kmsg import KernelLog


def test_without_a_log_it_says_so_once(tmp_path):
    with KernelLog(str(tmp_path / "none")) as log:
        mark = log.mark()
        (line,) = log.since(mark)
        assert str(tmp_path / "none") in line
        assert log.unavailable in line
        assert log.since(mark) == []


def test_records(tmp_path):
    fifo = tmp_path / "kmsg"
    os.mkfifo(fifo)
    writer = os.open(fifo, os.O_RDWR)

    class Pipe(KernelLog):
        """A log whose records come from a pipe, which cannot seek."""

        def _open(self):
            self._fd = self._fd if self._fd >= 0 else os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
            return True

    with Pipe() as log:
        first = log.mark()
        os.write(writer, b"6,41,100,-;device-mapper: a\\x0ab\\xc3\\xa4\n SUBSYSTEM=block\n")
        assert log.since(first) == ["device-mapper: a\nb\u00e4"]
        second = log.mark()
        assert log.since(second) == []
        os.write(writer, b"3,42,200,-,caller=T1;bad \\xff byte\n")
        assert log.since(second) == ["bad \ufffd byte"]
        assert len(log.since(first)) == 2
        third = log.mark()
        os.write(writer, b"3,50,200,-;after a gap\n")
        assert log.since(third) == ["(7 earlier or skipped lines are lost)", "after a gap"]
    os.close(writer)
