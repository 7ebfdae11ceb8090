# SPDX-License-Identifier: Apache-2.0
"""A program that is killed at one of its system calls, by ptrace(2)."""

from __future__ import annotations

import ctypes
import os
import signal
from collections.abc import Mapping
from pathlib import Path

PTRACE_TRACEME, PTRACE_SYSCALL = 0, 24

_libc = ctypes.CDLL(None, use_errno=True)
_libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]


def killed_at(stop: int, program: Path, environment: Mapping[str, str], stdin: bytes) -> bool:
    """Run the program until it has entered or left so many system calls, then kill it; false if it
    ended before.
    """
    reader, writer = os.pipe()
    pid = os.fork()
    if not pid:
        os.dup2(reader, 0)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        _libc.ptrace(PTRACE_TRACEME, 0, None, None)
        os.execve(program, [str(program)], dict(environment))
    os.close(reader)
    os.write(writer, stdin)
    os.close(writer)
    for _ in range(stop + 1):
        _, status = os.waitpid(pid, 0)
        if os.WIFEXITED(status):
            return False
        assert os.WIFSTOPPED(status) and os.WSTOPSIG(status) == signal.SIGTRAP, status
        assert _libc.ptrace(PTRACE_SYSCALL, pid, None, None) == 0 or stop == 0
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return True
