# SPDX-License-Identifier: Apache-2.0
"""Agents that die by SIGKILL at a chosen point of their start; nothing of this is in the product.

A point is a moment directly after something was asked of the kernel: each system call on BPF (all
of them are judged by `bpf.libbpf.check`), and each rename, unlink, mkdir and mount below the
directories of the agent. Between two points the agent changes nothing outside of itself, so that a
kill at every point is a kill everywhere.

Run as a process (`Nursery` starts it) it imports the agent once and forks one for each order, so
that a start costs what a start does, not the imports.
"""

from __future__ import annotations

import functools
import importlib
import json
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

import msgspec

from tests.e2e.json_process import JsonProcess

REPOSITORY = Path(__file__).resolve().parents[2]


class Order(msgspec.Struct):
    """What is to be run, where it writes, and at which point it dies; 0 is never."""

    arguments: list[str]
    log: str
    points: str
    kill_at: int
    #: Names in the file system that count; all others are the interpreter's own.
    below: list[str]


class Points:
    """Counts points, writes one line each, and ends the process at the chosen one."""

    def __init__(self, order: Order) -> None:
        self._file = os.open(order.points, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC)
        self._below = tuple(order.below)
        self._kill_at = order.kill_at
        self._count = 0
        self._lock = threading.Lock()

    def reached(self, step: str) -> None:
        with self._lock:
            self._count += 1
            os.write(self._file, f"{step}\n".encode())
            if self._count == self._kill_at:
                os.kill(os.getpid(), signal.SIGKILL)

    def install(self) -> None:
        """Puts a point at each place; the modules of the agent are loaded."""
        from bpf import libbpf
        from cilia.linux import mounts

        check, mount = libbpf.check, mounts.mount

        @functools.wraps(check)
        def counted_check(rc: int, what: str) -> int:
            self.reached(what)
            return check(rc, what)

        @functools.wraps(mount)
        def counted_mount(fstype: str, path: Path) -> None:
            mount(fstype, path)
            self.reached(f"mount {fstype}")

        _replace_everywhere(check, counted_check)
        _replace_everywhere(mount, counted_mount)
        for name in ("rename", "replace", "unlink", "mkdir"):
            setattr(os, name, self._after(name, getattr(os, name)))

    def _after(self, name: str, call: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(call)
        def counted(path: Any, *rest: Any, **named: Any) -> None:
            try:
                call(path, *rest, **named)
            finally:
                if os.fsdecode(path).startswith(self._below):
                    self.reached(f"{name} {os.fsdecode(path)}")

        return counted


def _replace_everywhere(old: object, new: object) -> None:
    """In every module that has it by name."""
    for module in list(sys.modules.values()):
        for name, value in list(getattr(module, "__dict__", {}).items()):
            if value is old:
                setattr(module, name, new)


def run(order: Order) -> None:
    """The forked process: `cilia` with these arguments."""
    from cilia.__main__ import cli

    log = os.open(order.log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for number, target in ((0, os.open(os.devnull, os.O_RDONLY)), (1, log), (2, log)):
        os.dup2(target, number)
    Points(order).install()
    cli(args=order.arguments, prog_name="cilia")


def main() -> None:
    for module in ("bpf.datapath", "cilia.agent.cleanup", "cilia.agent.command", "cilia.agent.run"):
        importlib.import_module(module)  # what the forked ones would import
    print('"ready"', flush=True)
    for line in sys.stdin:
        message = json.loads(line)
        if "wait" in message:
            answer = os.waitstatus_to_exitcode(os.waitpid(message["wait"], 0)[1])
        else:
            answer = os.fork()
            if answer == 0:
                _run_and_exit(msgspec.convert(message, Order))
        print(json.dumps(answer), flush=True)


def _run_and_exit(order: Order) -> NoReturn:
    code = 1
    try:
        run(order)
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else 0
    finally:
        if sys.exc_info()[1] is not None:
            traceback.print_exc()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


class Nursery:
    """The process above, as tests use it."""

    def __init__(self, root: Path = REPOSITORY, *, entering: Sequence[str] = ()) -> None:
        """`root`: the checkout whose agent it is; `entering`: the command that it is run by."""
        command = [*entering, sys.executable, "-m", "tests.e2e.killed_agent"]
        self._process = JsonProcess(command, root)
        self._alive: set[int] = set()

    def start(
        self,
        arguments: Sequence[str],
        *,
        log: Path,
        points: Path,
        kill_at: int = 0,
        below: Sequence[Path] = (),
    ) -> int:
        """The pid of a new one."""
        places = [str(path) for path in below]
        log.write_text("")
        order = Order([*arguments], str(log), str(points), kill_at, places)
        pid = int(self._process.call(msgspec.to_builtins(order)))
        self._alive.add(pid)
        return pid

    def wait(self, pid: int) -> int:
        """Wait for its end; its exit code, or the signal that ended it as a negative number."""
        self._alive.discard(pid)
        return int(self._process.call({"wait": pid}))

    def kill(self, pid: int) -> int:
        """kill -9, and wait."""
        assert pid in self._alive, "0 would be everyone"
        os.kill(pid, signal.SIGKILL)
        return self.wait(pid)

    def close(self) -> None:
        for pid in list(self._alive):
            self.kill(pid)
        self._process.close()


if __name__ == "__main__":
    main()
