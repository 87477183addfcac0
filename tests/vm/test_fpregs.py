"""UML on processors with more register state than its kernels know: the library that is loaded into its process."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

from dmvm import uml

# A tracer that, as UML does, takes a part of a stopped child's state and gives it back; prints what ptrace(2) says of it.
TRACER = """
import ctypes, errno, os, signal, sys

class Piece(ctypes.Structure):
    _fields_ = [("base", ctypes.c_void_p), ("length", ctypes.c_size_t)]

libc = ctypes.CDLL(None, use_errno=True)
words = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
libc.ptrace.argtypes, libc.ptrace.restype = words, ctypes.c_long
child = os.fork()
if not child:
    libc.ptrace(0, 0, None, None)
    os.kill(os.getpid(), signal.SIGSTOP)
    os._exit(7)
os.waitpid(child, 0)
kept = (ctypes.c_ubyte * 1024)()
piece = Piece(ctypes.addressof(kept), 1024)
assert libc.ptrace(0x4204, child, 0x202, ctypes.byref(piece)) == 0 and piece.length == 1024
instruction = libc.ptrace(3, child, 16 * 8, None)  # its rip
print("peek", instruction > 0 and libc.ptrace(1, child, instruction, None) != -1)
kept[32], kept[512] = 0x5a, kept[512] | 1  # of the first x87 register, and that there is such state
given = libc.ptrace(0x4205, child, 0x202, ctypes.byref(piece))
print("set", given, errno.errorcode.get(ctypes.get_errno(), 0) if given else 0)
again = (ctypes.c_ubyte * 1024)()
libc.ptrace(0x4204, child, 0x202, ctypes.byref(Piece(ctypes.addressof(again), 1024)))
print("kept", bytes(kept[:512]) == bytes(again[:512]))
libc.ptrace(17, child, None, None)
os.kill(child, signal.SIGCONT)
print("exit", os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


def _trace(environment: dict[str, str]) -> dict[str, str]:
    run = subprocess.run(
        [sys.executable, "-c", TRACER],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert not run.stderr
    return dict(line.split(" ", 1) for line in run.stdout.splitlines())


@pytest.mark.skipif(platform.machine() != "x86_64", reason="a library for x86-64")
def test_a_part_of_the_register_state_can_be_given_back(tmp_path):
    said = _trace(uml.environment(tmp_path))
    assert said == {"peek": "True", "set": "0 0", "kept": "True", "exit": "7"}
    without = {name: value for name, value in uml.environment(tmp_path).items() if name != "LD_PRELOAD"}
    assert _trace(without)["set"] == "-1 EFAULT", "nothing to help with: the machine takes a part as it is"
